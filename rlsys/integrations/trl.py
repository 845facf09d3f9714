"""A judge as a reward function of TRL's GRPOTrainer (read and tested with trl 1.16.0)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

from rlsys.client import GRM
from rlsys.client.grm import Options
from rlsys.integrations.groups import GroupJudge, as_conversation, as_response

Reward = Callable[..., list[float | None]]


def reward(
    judge: str | GRM,
    *,
    token: str | None = None,
    k: int = 8,
    strategy: str = "vote",
    max_responses: int = 32,
    name: str = "judge",
    **options: Unpack[Options],
) -> Reward:
    """Return a function for `reward_funcs`. All completions of a prompt in a call are judged together.

    A reward is the score as a share of the score range, 0 to 1; None, which TRL counts as no reward, if no sample parsed, or if the
    judgement exceeds a limit of the judge. With several processes, each judges its own completions: a `per_device_train_batch_size` that
    `num_generations` divides keeps groups whole. The share of completions without a reward is logged as `rewards/NAME/unjudged`.

    Args:
        judge, token, k, strategy, max_responses, options: as in `rlsys.integrations.groups.GroupJudge`.
        name: of the function, as in TRL's logs.
    """
    group = GroupJudge(judge, token=token, k=k, strategy=strategy, max_responses=max_responses, options=options)

    def rewards(prompts: Sequence[Any], completions: Sequence[Any], **given: Any) -> list[float | None]:
        conversations, responses = [as_conversation(prompt) for prompt in prompts], [as_response(one) for one in completions]
        found = group.rewards(conversations, responses)
        if log := given.get("log_metric"):
            log(f"rewards/{name}/unjudged", found.count(None) / max(1, len(found)))
        return found

    rewards.__name__ = name
    return rewards
