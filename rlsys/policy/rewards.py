"""Rewards of a policy's samples besides the judge's: checks, and functions with weights."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence

from rlsys.config.policy import RewardTerm
from rlsys.data.chain import Sample
from rlsys.data.records import Record
from rlsys.rewards.checks import passes, words_of

RewardFunction = Callable[[Record, Sample], float]
"""(prompt, sample) -> number."""


def gold(record: Record, sample: Sample) -> bool | None:
    """Return whether the sample passes the checks of its row; None if the row has none. A text that was cut off is no answer."""
    if not record.checks:
        return None
    return not sample.truncated and passes(record.checks, sample.text)


def tokens(record: Record, sample: Sample) -> float:
    """Number of generated tokens."""
    return len(sample.token_ids)


def words(record: Record, sample: Sample) -> float:
    """Number of words."""
    return len(words_of(sample.text))


def cut_off(record: Record, sample: Sample) -> float:
    """1 if the sample was cut off at rollout.max_tokens, else 0."""
    return float(sample.truncated)


FUNCTIONS: dict[str, RewardFunction] = {function.__name__: function for function in (tokens, words, cut_off)}
"""Reward functions by name."""


def find_function(name: str) -> RewardFunction:
    """Return a function of `FUNCTIONS`, or the one that MODULE:FUNCTION names.

    Raises:
        ValueError: there is none; the message says what was expected.
    """
    require_module(name)
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy.rewards: {name} cannot be imported ({error}).") from error
    if not callable(found):
        raise ValueError(f"policy.rewards: {name} is not a function.")
    return found  # type: ignore[no-any-return]


def require_module(name: str) -> None:
    """Check that a function is one of `FUNCTIONS`, or that its module can be found; does not import it.

    Raises:
        ValueError: neither is the case.
    """
    module, separator, _ = name.partition(":")
    if name in FUNCTIONS:
        return
    if not separator:
        raise ValueError(f"policy.rewards: no function {name!r}; expected one of {', '.join(FUNCTIONS)}, or MODULE:FUNCTION.")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise ValueError(f"policy.rewards: {name}: no module {module} ({error}).") from error
    if spec is None:
        raise ValueError(f"policy.rewards: {name}: no module {module} in PYTHONPATH.")


class FurtherRewards:
    """The weighted sum of `policy.rewards`.

    Raises:
        ValueError: a function does not exist.
    """

    def __init__(self, terms: Sequence[RewardTerm]):
        self._terms = [(term, find_function(term.function)) for term in terms]

    def __call__(self, record: Record, sample: Sample) -> float:
        """Return the sum for one sample.

        Raises:
            ValueError: a function did not return a finite number.
        """
        total = 0.0
        for term, function in self._terms:
            if term.sources and not any(record.source == name or record.source.startswith(f"{name}/") for name in term.sources):
                continue
            value = function(record, sample)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"policy.rewards: {term.function} returned {value!r} for row {record.id}, expected a finite number.")
            total += term.weight * value
        return total
