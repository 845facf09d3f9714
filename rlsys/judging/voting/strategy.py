"""What a strategy is: its options, its outcome, how one is registered and how it is found by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from rlsys.judging.voting.samples import OPTIONAL, Bools, Floats, Samples


@dataclass(frozen=True)
class Options:
    """What the strategies can be told. Each reads what concerns it.

    Raises:
        ValueError: a value outside its range.
    """

    k_meta: int | None = None
    """meta: samples kept, 1 .. k. None: k // 2, at least 1."""
    power: float = 1.0
    """borda: p, 0 to 64. 0 is the majority vote; the larger, the more the most certain samples decide."""
    error_rate: float = 0.05
    """adaptive: largest probability, above 0 and below 1, of stopping early for a response that is not the likeliest winner."""
    round_size: int = 2
    """adaptive: samples drawn before each look, at least 1."""
    margin: float = 1.0
    """abstain: smallest lead that gives a verdict, in points of the mean score, at least 0."""

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("k_meta", self.k_meta is None or self.k_meta >= 1, "at least 1"),
            ("power", 0 <= self.power <= 64, "0 to 64"),
            ("error_rate", 0 < self.error_rate < 1, "above 0 and below 1"),
            ("round_size", self.round_size >= 1, "at least 1"),
            ("margin", 0 <= self.margin < np.inf, "a finite number, at least 0"),
        ):
            if not valid:
                raise ValueError(f"{name} = {getattr(self, name)}: expected {expected}.")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a strategy makes of samples."""

    totals: Floats
    """[..., n], the highest wins. NaN where no sample parsed: a parse failure is its own outcome, never a zero."""
    used: Bools
    """[..., k]: the samples that had to be drawn for it, those that did not parse included."""
    abstained: Bools
    """[...]: no verdict, by the strategy's own choice."""
    weight: Floats | float = 1.0
    """[...], above 0 wherever a sample parsed: what the totals are sums over, such as the number of samples that parsed; 1 if they are
    means or shares."""

    @property
    def levels(self) -> Floats:
        """[..., n]: `totals` / `weight`: what compares between rows of which different numbers of samples parsed. The same wins."""
        return self.totals / np.where(np.asarray(self.weight) > 0, self.weight, np.nan)[..., None]


Function = Callable[[Samples, Options], Floats | Outcome]


@dataclass(frozen=True)
class Strategy:
    """A registered strategy. Call it with samples and options for an `Outcome`."""

    name: str
    source: str
    """Paper and equation."""
    needs: tuple[str, ...]
    """Fields of `Samples`, besides the scores, that it cannot do without."""
    counts: str
    """`scores`: it adds up scores, so `Outcome.levels` are scores, and those of different rows compare. `winners`: it counts which response
    won each sample, so they are shares of the samples, and of a single response they say nothing."""
    function: Function = field(repr=False)

    def __call__(self, samples: Samples, options: Options | None = None) -> Outcome:
        """The outcome over the leading dimensions of `samples`.

        Raises:
            ValueError: the samples lack what the strategy needs, or an option does not fit them.
        """
        for name in self.needs:
            value = getattr(samples, name)
            if value is None or not np.isfinite(value[samples.parsed]).all():
                raise ValueError(f"strategy {self.name}: needs a finite {name} of every sample that parsed.")
        result = self.function(samples, options or Options())
        leading, k, n = samples.scores.shape[:-2], samples.scores.shape[-2], samples.scores.shape[-1]
        if not isinstance(result, Outcome):
            result = Outcome(np.asarray(result, np.float64), np.ones((*leading, k), bool), np.zeros(leading, bool))
        if result.totals.shape != (*leading, n):
            raise ValueError(f"strategy {self.name}: returned totals of shape {list(result.totals.shape)}, expected {[*leading, n]}.")
        if np.shape(result.weight) not in ((), leading):
            raise ValueError(f"strategy {self.name}: returned a weight of shape {list(np.shape(result.weight))}, expected {[*leading]}.")
        return result


STRATEGIES: dict[str, Strategy] = {}
"""The registered strategies, by name."""


def strategy(name: str, *, source: str, needs: Sequence[str] = (), counts: str = "scores") -> Callable[[Function], Strategy]:
    """Register a function (samples, options) -> totals [..., n] (or an `Outcome`) as a strategy; see `Strategy` for the arguments.

    Bare totals are taken to be means or shares: a strategy that adds up returns an `Outcome` with its `weight`.

    Raises:
        ValueError: the name is taken, or `needs` or `counts` names something that there is not.
    """
    if name in STRATEGIES:
        raise ValueError(f"strategy {name}: there is one of that name already; give yours another.")
    if unknown := set(needs) - set(OPTIONAL):
        raise ValueError(f"strategy {name}: needs {', '.join(sorted(unknown))}, expected some of {', '.join(OPTIONAL)}.")
    if counts not in ("scores", "winners"):
        raise ValueError(f"strategy {name}: counts {counts!r}, expected scores or winners.")

    def register(function: Function) -> Strategy:
        STRATEGIES[name] = Strategy(name, source, tuple(needs), counts, function)
        return STRATEGIES[name]

    return register


def find_strategy(name: str) -> Strategy:
    """The strategy `name`; or, written FILE.py:NAME, the one that the Python file FILE.py registers under NAME.

    Raises:
        ValueError: there is no such file or strategy; the message lists what there is.
    """
    path, separator, inner = name.rpartition(":")
    if separator:
        _run(Path(path).resolve())
    if inner not in STRATEGIES:
        raise ValueError(f"{name}: no such strategy; expected one of {', '.join(STRATEGIES)}, or FILE.py:NAME for one of your own.")
    return STRATEGIES[inner]


@cache
def _run(path: Path) -> None:
    """Execute a Python file of the user's, once."""
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"{path}: no such file; expected FILE.py:NAME, a Python file and the strategy that it registers.")
    spec = importlib.util.spec_from_file_location(f"rlsys_strategies_{path.stem}", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
