"""Tokens of a step: an upper bound, in which every prompt and every sample is of the longest length."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.config.schema import Config


@dataclass(frozen=True)
class Step:
    """One RL step."""

    ranks: int
    """Learner ranks that divide it."""
    samples: int
    """Of the first round; refill rounds add up to as many again, each."""
    sampled_tokens: int
    prompt_tokens: int
    """Each prompt once."""
    group_tokens: int
    """Encoded for one group: with packing its prompt once, otherwise a row per sample."""
    encoded_tokens: int
    """For all groups."""
    micro_batches: int
    """Per rank."""
    micro_batch_tokens: int
    """Encoded in the largest micro-batch."""
    micro_batch_groups: int
    """In it: groups, or rows without packing."""
    scored_tokens: int
    """In it, those whose log-probabilities are computed."""
    longest: int
    """Tokens of the longest prompt and completion together."""


def step_of(config: Config, ranks: int) -> Step:
    """Return the largest step that `config` allows on `ranks` learner ranks."""
    prompt, completion, size = config.prompt.max_tokens, config.rollout.max_tokens, config.rl.group_size
    groups, packing = config.rl.prompts_per_step, config.learner.packing
    unit = prompt + size * (completion - 1) if packing else prompt + completion - 1
    units = -(-(groups if packing else groups * size) // ranks)
    together = min(max(config.learner.token_budget // unit, 1), units)
    return Step(
        ranks=ranks,
        samples=groups * size,
        sampled_tokens=groups * size * completion,
        prompt_tokens=groups * prompt,
        group_tokens=unit if packing else unit * size,
        encoded_tokens=groups * (unit if packing else unit * size),
        micro_batches=-(-units // together),
        # Shorter rows fill the budget, up to what a rank gets.
        micro_batch_tokens=max(unit, min(config.learner.token_budget, units * unit)),
        micro_batch_groups=together,
        scored_tokens=together * completion * (size if packing else 1),
        longest=prompt + completion,
    )
