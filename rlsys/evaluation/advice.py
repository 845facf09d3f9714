"""What a run says when it goes nowhere: why, as far as its figures tell, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORM = (
    "Let it learn the form first (sft.rows with generated tasks, sft.data with worked judgements of your own, or rlsys rft), take a larger "
    "or an instruction-tuned model, or a shorter prompt.template (compact)"
)


def describe_failures(failures: Mapping[str, int], samples: int, cut_off: int, limit: int | None = None) -> str:
    """`12 of 256 not parsed, 9 of them cut off at 128 tokens`."""
    where = "at the token limit" if limit is None else f"at {limit:,} tokens"
    return f"{sum(failures.values()):,} of {samples:,} not parsed" + (f", {cut_off:,} of them cut off {where}" if cut_off else "")


def advise_if_nothing_parsed(result: Mapping[str, Any], taught: bool) -> str | None:
    """Of the evaluation before training. `taught`: a cold start follows."""
    if taught or sum(result["parse_failures"].values()) < result["samples"]:
        return None
    return f"The model writes no verdict that can be read, and nothing teaches it to: RL will have nothing to prefer. {_todo(result)}"


def advise_on_equal_rewards(reward: float, failures: int, samples: int, truncated: int) -> str:
    """Of a first step in which every group had equal rewards, so that nothing was learned."""
    if failures == samples:
        cause = _todo({"samples": samples, "cut_off": truncated})
    elif reward >= 0:
        cause = "Most samples are right already: the rows are too easy. Leave those out (rlsys filter, data.exclude), or take harder ones."
    else:
        cause = "Samples are wrong alike: the rows are too hard, or rl.group_size or rollout.temperature too small for them to differ."
    return f"All rewards of a group were equal in every group of the first step, so nothing was learned from it. {cause}"


def advise_at_end(result: Mapping[str, Any]) -> str | None:
    """Of the last evaluation, where everything failed."""
    if result["accuracy"] > 0:
        return None
    if sum(result["parse_failures"].values()) == result["samples"]:
        return f"The run ends at reward -1: no verdict could be read. {_todo(result)}"
    return (
        "The run ends at reward -1: verdicts could be read, and every one was wrong. Look at samples (rlsys show RUN), and check that "
        "the rewards of your rows are the right way round: the best response has the highest."
    )


def _todo(result: Mapping[str, Any]) -> str:
    most = result.get("cut_off", 0) * 2 > result["samples"]
    return f"Most texts were cut off: raise rollout.max_tokens (eval.max_tokens). {FORM}." if most else f"{FORM}."
