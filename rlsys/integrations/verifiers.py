"""Judges for verifiers, and an environment that trains one (read and tested with verifiers 0.4.0, whose environments are `verifiers.v1`).

verifiers finds plugins by the name of a module at the top level, so that each takes a file of one's own on the Python path:

    # rlsys_judging.py, for `vf-eval rlsys-judging`
    from rlsys.integrations.verifiers import JudgingTaskset

    __all__ = ["JudgingTaskset"]

    # rlsys_group.py, for `vf-eval TASKSET --env.id rlsys-group`
    from rlsys.integrations.verifiers import GroupJudgeEnv

    __all__ = ["GroupJudgeEnv"]
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import verifiers.v1 as vf
from pydantic import Field

from rlsys.integrations.environment import JudgingTask, judging_tasks
from rlsys.integrations.groups import GroupJudge, as_conversation


class JudgingData(vf.TaskData):  # type: ignore[misc]
    """A prompt that asks for a judgement, with its ground truth."""

    order: list[int]
    rewards: list[float]
    thought: str = ""


class JudgingVerifiersTask(vf.Task[JudgingData]):  # type: ignore[misc]
    """Rewards a judgement by Eq. 10 and 11: +1 if the best response alone has the highest score, else -1."""

    def _judge(self, trace: Any) -> Any:
        data = self.data
        task = JudgingTask(data.id or "", "", tuple(data.order), tuple(data.rewards), data.thought)
        return task.judge(trace.last_reply, trace.is_truncated)

    @vf.reward  # type: ignore[untyped-decorator]
    async def rule(self, trace: vf.Trace) -> float:
        return float(self._judge(trace).reward)

    @vf.metric  # type: ignore[untyped-decorator]
    async def parsed(self, trace: vf.Trace) -> float:
        return float(self._judge(trace).failure is None)


class JudgingConfig(vf.TasksetConfig):  # type: ignore[misc]
    """Which rows are judged, and how they are asked: `--env.taskset.data` and so on."""

    data: str = ""
    """File or folder, as in `rlsys data check`."""
    format: str = "rlsys"
    """Its format."""
    tokenizer: str = ""
    """Folder or hub name of the policy's tokenizer."""
    template: str = "pointwise"
    principles: bool = True
    seed: int = 0


class JudgingTaskset(vf.Taskset[JudgingVerifiersTask, JudgingConfig]):  # type: ignore[misc]
    """Trains a generative reward model: rows with known preferences, judged by the policy, rewarded by our rules."""

    def load(self) -> Iterator[JudgingVerifiersTask]:
        config = self.config
        for name in ("data", "tokenizer"):
            if not getattr(config, name):
                raise ValueError(f"--env.taskset.{name}: expected a value.")
        options = {"template": config.template, "principles": config.principles, "seed": config.seed}
        for task in judging_tasks(config.data, config.format, config.tokenizer, **options):
            data = JudgingData(id=task.id, prompt=task.prompt, order=list(task.order), rewards=list(task.rewards), thought=task.thought)
            yield JudgingVerifiersTask(data, config.task)


class GroupJudgeConfig(vf.EnvConfig):  # type: ignore[misc]
    """The judge, and how many attempts it compares: `--env.judge` and so on."""

    agent: vf.AgentConfig = vf.AgentConfig()
    judge: str = "http://127.0.0.1:8000"
    """Address of the service; its token, if it needs one, is in the environment variable RLSYS_TOKEN."""
    n: int = Field(8, ge=1)
    """Attempts at each task, judged together."""
    k: int = Field(8, ge=1)
    """Samples of each judgement."""
    strategy: str = "vote"


class GroupJudgeEnv(vf.Env[GroupJudgeConfig]):  # type: ignore[misc]
    """Rewards attempts at any taskset by one judgement of all of them: the reward `judge`, 0 to 1, besides the task's own."""

    async def run(self, task: Any, agents: Any) -> None:
        async with asyncio.TaskGroup() as attempts:
            for _ in range(self.config.n):
                attempts.create_task(agents.agent.run(task))

    async def finalize(self, task: Any, episode: Any) -> None:
        """Record the rewards. An episode whose judgement has no scores fails, and is not trained on."""
        config, data = self.config, task.data
        turns = [{"role": "user", "content": data.prompt}] if isinstance(data.prompt, str) else [one.model_dump() for one in data.prompt]
        system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
        conversation = as_conversation([*system, *turns])
        replies = [trace.last_reply for trace in episode.traces]
        rewards = await _judge(config.judge, config.k, config.strategy).arewards([conversation] * len(replies), replies)
        for trace, reward in zip(episode.traces, rewards, strict=True):
            if reward is None:
                raise RuntimeError("the judgement has no scores: none of its samples parsed, or it exceeds a limit of the judge.")
            trace.record_reward("judge", reward)


@lru_cache
def _judge(judge: str, k: int, strategy: str) -> GroupJudge:
    return GroupJudge(judge, k=k, strategy=strategy)
