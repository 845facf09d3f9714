"""Advice for runs that do not learn: the likely cause, judging by the run's figures, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

from rlsys.documents.runs import Stage

LEARN_FORMAT = (
    "Teach it the output format first (sft.rows with generated tasks, sft.data with worked judgements of your own, or rlsys rft), use a "
    "larger or instruction-tuned model, or a shorter prompt.template (compact)"
)

EQUAL_POLICY_REWARDS = (
    "In the first step, all rewards within each group were equal, so nothing was learned. Use more samples (rl.group_size), easier rows "
    "(data.level) or, with a judge, more judgements (judge.k) or judge.reward=mean; judgements/ and trajectories/ show the samples."
)


def describe_failures(failures: Mapping[str, int], samples: int, cut_off: int, limit: int | None = None) -> str:
    """Describe parse failures, e.g. `12 of 256 not parsed, 9 of them cut off at 128 tokens`."""
    where = "at the token limit" if limit is None else f"at {limit:,} tokens"
    return f"{sum(failures.values()):,} of {samples:,} not parsed" + (f", {cut_off:,} of them cut off {where}" if cut_off else "")


def advise_if_nothing_parsed(result: Stage, taught: bool) -> str | None:
    """Return advice if no output of the evaluation before training could be parsed; `taught`: a cold start follows."""
    if taught or sum(result.parse_failures.values()) < result.samples:
        return None
    return (
        f"None of the model's outputs could be parsed and no cold start is configured, so RL has no signal to learn from. "
        f"{_remedy(result.samples, result.cut_off)}"
    )


def advise_on_equal_rewards(reward: float, failures: int, samples: int, truncated: int) -> str:
    """Return advice for a first step in which every group had equal rewards, so nothing was learned."""
    if failures == samples:
        cause = _remedy(samples, truncated)
    elif reward >= 0:
        cause = "Most samples are already correct: the rows are too easy. Exclude those (rlsys filter, data.exclude) or use harder ones."
    else:
        cause = "All samples are wrong: the rows are too hard, or rl.group_size or rollout.temperature is too small for them to differ."
    return f"In the first step, all rewards within each group were equal, so nothing was learned. {cause}"


def advise_at_end(result: Stage) -> str | None:
    """Return advice if every sample of the last evaluation was wrong."""
    if result.accuracy > 0:
        return None
    if sum(result.parse_failures.values()) == result.samples:
        return f"The run ends at reward -1: no verdict could be parsed. {_remedy(result.samples, result.cut_off)}"
    return (
        "The run ends at reward -1: verdicts were parsed, but every one was wrong. Inspect samples (rlsys show RUN), and check that the "
        "rewards of your rows are the right way round: the best response has the highest."
    )


def _remedy(samples: int, cut_off: int) -> str:
    mostly_cut_off = cut_off * 2 > samples
    return ("Most outputs were cut off: raise rollout.max_tokens (eval.max_tokens). " if mostly_cut_off else "") + f"{LEARN_FORMAT}."
