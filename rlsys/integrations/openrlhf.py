"""A judge as OpenRLHF's reward (read with openrlhf 0.11.2: utils/agent.py, trainer/ray/vllm_engine.py).

Judged in groups, with `--train.agent_func_path agent.py`, where agent.py holds

    from rlsys.integrations.openrlhf import agent_executor

    AgentExecutor = agent_executor("http://127.0.0.1:8000", group_size=8)  # as --rollout.n_samples_per_prompt

Or, without code in the trainer, `--reward.remote_url "http://127.0.0.1:8000/get_reward?group=8"`: the service joins the groups. OpenRLHF
sends no token. A reward file judges what it is called with, which in OpenRLHF 0.11 is each response alone:

    from rlsys.integrations.openrlhf import reward_function

    reward_func = reward_function("http://127.0.0.1:8000")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlsys.client import GRM
from rlsys.client.grm import Conversation
from rlsys.integrations.groups import GroupCollector, GroupJudge
from rlsys.serving.markup import conversation_of, without_end

ToConversation = Callable[[str, Any], Conversation]


def from_prompt(prompt: str, label: Any) -> Conversation:
    """Return the messages that a chat template put into the prompt, in ChatML or as of Llama 3 or Gemma; any other prompt as it is."""
    return conversation_of(prompt)


def agent_executor(
    judge: str | GRM,
    group_size: int,
    *,
    token: str | None = None,
    k: int = 8,
    strategy: str = "vote",
    conversation: ToConversation = from_prompt,
    missing: float = 0.0,
    wait_s: float = 120.0,
) -> type:
    """Return the `AgentExecutor` of an agent file: one turn, rewarded when all samples of its prompt were judged together.

    Args:
        judge, token, k, strategy: as in `rlsys.integrations.groups.GroupJudge`.
        group_size, wait_s: as in `rlsys.integrations.groups.GroupCollector`; OpenRLHF samples a prompt's group on one engine. Evaluation
            needs the same number of samples (`--eval.n_samples_per_prompt`), or its samples have no reward.
        conversation: from a row's prompt and label to what the judge reads.
        missing: reward of a sample without one. All samples of a group have it then, which is no advantage in GRPO; `judged` is 0.
    """
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    class AgentExecutor(SingleTurnAgentExecutor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.collector = GroupCollector(GroupJudge(judge, token=token, k=k, strategy=strategy), group_size, wait_s)

        async def execute(self, prompt: str, label: Any, *, hf_tokenizer: Any, **given: Any) -> dict[str, Any]:
            output: dict[str, Any] = await super().execute(prompt, label, hf_tokenizer=hf_tokenizer, **given)
            ((start, end),) = output["action_ranges"]
            response = hf_tokenizer.decode(output["observation_tokens"][start:end], skip_special_tokens=True)
            found = await self.collector.reward(conversation(prompt, label), response)
            value = missing if found is None else found
            return output | {"reward": value, "scores": value, "extra_logs": {"judged": float(found is not None)}}

    return AgentExecutor


def reward_function(
    judge: str | GRM,
    *,
    token: str | None = None,
    k: int = 8,
    strategy: str = "vote",
    conversation: ToConversation = from_prompt,
    missing: float = 0.0,
) -> Callable[[Sequence[str], Sequence[str], Sequence[Any]], dict[str, Any]]:
    """Return the `reward_func` of a reward file. OpenRLHF 0.11 calls it for each response alone; given several responses to equal prompts,
    as by older versions, it judges them together.
    """
    group = GroupJudge(judge, token=token, k=k, strategy=strategy)

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
        responses = [without_end(response_of(query, prompt)) for query, prompt in zip(queries, prompts, strict=True)]
        conversations = [conversation(prompt, label) for prompt, label in zip(prompts, labels, strict=True)]
        found = group.rewards(conversations, responses)
        values = [missing if one is None else one for one in found]
        return {"rewards": values, "scores": values, "extra_logs": {"judged": [float(one is not None) for one in found]}}

    return reward_func


def response_of(query: str, prompt: str) -> str:
    """Return what follows the prompt in a query.

    Raises:
        ValueError: the query does not start with the prompt, which a tokenizer that changes text on its way to tokens and back may cause.
    """
    if not query.startswith(prompt):
        raise ValueError(f"the query starts with {query[:60]!r}, not with its prompt {prompt[:60]!r}.")
    return query[len(prompt) :]
