"""A judge as verl's reward (read and tested with verl 0.9.1: experimental/reward_loop, workers/reward_manager/batch.py).

    reward.custom_reward_function.path=pkg://rlsys.integrations.verl
    +reward.custom_reward_function.reward_kwargs.judge=http://127.0.0.1:8000
    +reward.custom_reward_function.reward_kwargs.group_size=8        as actor_rollout_ref.rollout.n
    reward.num_workers=1

verl scores samples one at a time, in `reward.num_workers` processes that it chooses at random. With one process, all samples of a prompt
meet there, and are judged together. The prompt is read from the row's extra_info, as verl does not pass it on. Validation with another
number of samples (`val_kwargs.n`) needs its number in the extra_info of its rows, as `group_size`; else its samples have no reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from rlsys.integrations.groups import GroupCollector, GroupJudge, as_conversation

PROMPT_KEYS = ("question", "prompt", "raw_prompt")


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    judge: str,
    group_size: int,
    token: str | None = None,
    k: int = 8,
    strategy: str = "vote",
    prompt_key: str | None = None,
    missing: float = 0.0,
    wait_s: float = 120.0,
    **_: Any,
) -> dict[str, float]:
    """Return {score, judged} of one sample, when its group was judged.

    Args:
        judge, token, k, strategy: as in `rlsys.integrations.groups.GroupJudge`.
        group_size, wait_s: as in `rlsys.integrations.groups.GroupCollector`; `group_size` of a row's extra_info goes first.
        prompt_key: key of extra_info that holds the prompt, as text or messages; None: question, prompt or raw_prompt.
        missing: score of a sample without a reward. All samples of a group have it then, which is no advantage in GRPO; `judged` is 0.
    """
    collector = _collector(judge, token, k, strategy, group_size, wait_s)
    size = (extra_info or {}).get("group_size")
    found = await collector.reward(_prompt(extra_info, prompt_key), solution_str, None if size is None else int(size))
    return _result(found, missing)


def compute_scores(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any]],
    *,
    judge: str,
    token: str | None = None,
    k: int = 8,
    strategy: str = "vote",
    prompt_key: str | None = None,
    missing: float = 0.0,
    **_: Any,
) -> list[dict[str, float]]:
    """Return {score, judged} of a whole batch, for the reward manager `batch`, which older versions of verl train with."""
    prompts = [_prompt(extra, prompt_key) for extra in extra_infos]
    found = _group_judge(judge, token, k, strategy).rewards(prompts, solution_strs)
    return [_result(reward, missing) for reward in found]


@lru_cache
def _group_judge(judge: str, token: str | None, k: int, strategy: str) -> GroupJudge:
    return GroupJudge(judge, token=token, k=k, strategy=strategy)


@lru_cache
def _collector(judge: str, token: str | None, k: int, strategy: str, group_size: int, wait_s: float) -> GroupCollector:
    return GroupCollector(_group_judge(judge, token, k, strategy), group_size, wait_s)


def _prompt(extra_info: Mapping[str, Any] | None, key: str | None) -> Any:
    found = [name for name in ((key,) if key else PROMPT_KEYS) if (extra_info or {}).get(name) is not None]
    if not found:
        keys = ", ".join(extra_info or {}) or "nothing"
        expected = key or f"one of {', '.join(PROMPT_KEYS)}"
        raise ValueError(
            f"extra_info: expected {expected}, the prompt as text or messages; found {keys}. Add it to the rows, or set prompt_key."
        )
    assert extra_info is not None
    return as_conversation(extra_info[found[0]])


def _result(reward: float | None, missing: float) -> dict[str, float]:
    return {"score": missing if reward is None else reward, "judged": float(reward is not None)}
