"""The `Strategy` type, its options and outcome, and the registry of strategies."""

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
    """Options of the strategies. Each strategy reads its own.

    Raises:
        ValueError: a value is out of range.
    """

    k_meta: int | None = None
    """meta: number of samples to keep, 1 .. k. None means k // 2, at least 1."""
    power: float = 1.0
    """borda: exponent of the rank weights, 0 to 64. 0 is the majority vote; larger values give more weight to certain samples."""
    error_rate: float = 0.05
    """adaptive: maximum probability, above 0 and below 1, of stopping early for a response that is not the likeliest winner."""
    round_size: int = 2
    """adaptive: number of samples per round, at least 1."""
    margin: float = 1.0
    """abstain: minimum lead for a verdict, in points of the mean score, at least 0."""

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
    """Result of a strategy."""

    totals: Floats
    """[..., n], the highest wins. NaN if no sample parsed, never zero."""
    used: Bools
    """[..., k]: the samples that the result required, including parse failures."""
    abstained: Bools
    """[...]: whether the strategy abstained from a verdict."""
    weight: Floats | float = 1.0
    """[...], above 0 if any sample parsed: divisor that turns the totals into means, such as the number of parsed samples; 1 if they are
    means or shares."""

    @property
    def levels(self) -> Floats:
        """[..., n]: `totals` / `weight`, comparable between rows with different numbers of parsed samples. The winner is the same."""
        divisor: Floats = np.where(np.asarray(self.weight) > 0, self.weight, np.nan)[..., None]
        return self.totals / divisor


Function = Callable[[Samples, Options], Floats | Outcome]


@dataclass(frozen=True)
class Strategy:
    """A registered strategy: a callable from samples and options to an `Outcome`."""

    name: str
    source: str
    """Paper and equation."""
    needs: tuple[str, ...]
    """Fields of `Samples` that it requires in addition to the scores."""
    counts: str
    """`scores`: it sums scores, so `Outcome.levels` are scores, comparable between rows. `winners`: it counts the samples that each
    response won, so they are shares of the samples, and carry no information about a single response."""
    function: Function = field(repr=False)

    def __call__(self, samples: Samples, options: Options | None = None) -> Outcome:
        """Apply the strategy over the leading dimensions of `samples`.

        Raises:
            ValueError: the samples lack a required field, or an option does not fit them.
        """
        for name in self.needs:
            value = getattr(samples, name)
            if value is None or not np.isfinite(value[samples.parsed]).all():
                raise ValueError(f"strategy {self.name}: needs a finite {name} for every sample that parsed.")
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
"""Registered strategies by name."""


def strategy(name: str, *, source: str, needs: Sequence[str] = (), counts: str = "scores") -> Callable[[Function], Strategy]:
    """Register a function (samples, options) -> totals [..., n] (or an `Outcome`) as a strategy; see `Strategy` for the arguments.

    Plain totals are assumed to be means or shares; a strategy that sums returns an `Outcome` with its `weight`.

    Raises:
        ValueError: the name is already registered, or `needs` or `counts` has an unknown value.
    """
    if name in STRATEGIES:
        raise ValueError(f"strategy {name}: already registered; choose another name.")
    if unknown := set(needs) - set(OPTIONAL):
        raise ValueError(f"strategy {name}: needs {', '.join(sorted(unknown))}, expected some of {', '.join(OPTIONAL)}.")
    if counts not in ("scores", "winners"):
        raise ValueError(f"strategy {name}: counts {counts!r}, expected scores or winners.")

    def register(function: Function) -> Strategy:
        STRATEGIES[name] = Strategy(name, source, tuple(needs), counts, function)
        return STRATEGIES[name]

    return register


def find_strategy(name: str) -> Strategy:
    """Return the strategy `name`, or, for FILE.py:NAME, the one that the Python file FILE.py registers as NAME.

    Raises:
        ValueError: the file or strategy does not exist; the message lists the registered strategies.
    """
    path, separator, inner = name.rpartition(":")
    if separator:
        _run(Path(path).resolve())
    if inner not in STRATEGIES:
        raise ValueError(f"{name}: no such strategy; expected one of {', '.join(STRATEGIES)}, or FILE.py:NAME for your own.")
    return STRATEGIES[inner]


@cache
def _run(path: Path) -> None:
    """Execute a user's Python file once."""
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"{path}: no such file; expected FILE.py:NAME, a Python file and a strategy that it registers.")
    spec = importlib.util.spec_from_file_location(f"rlsys_strategies_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # None only for unknown file extensions
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
