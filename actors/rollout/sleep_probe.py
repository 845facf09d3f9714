"""Does an engine that slept and woke up compute what it did before? vLLM restores what an update sends, and buffers that it knows.

A model that derives tensors from its weights when it is loaded may come back with others, without any error. So an engine answers a fixed
prompt greedily before its first sleep, and again whenever it wakes up under the weights of that time; a job has it sleep once at the start.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pyarrow as pa

from rlsys.data.chain import PROMPTS

TOKENS = 16
"""Length of the prompt and of the answer."""
TOLERANCE = 0.1
"""Nats per token that rounding may change."""

Generate = Callable[[pa.RecordBatch, float, float, int, int], Awaitable[pa.RecordBatch]]
"""`actors.rollout.rollout.RolloutActor.generate`."""


class Answer(NamedTuple):
    """A greedy answer and the log-probabilities of its tokens."""

    tokens: list[int]
    logprobs: list[float]


class SleepProbe:
    """The answer of an engine before its first sleep."""

    def __init__(self) -> None:
        self.version: int | None = None
        """Version of the weights that gave the answer; None before the first sleep."""
        self.answer = Answer([], [])

    async def remember(self, generate: Generate, version: int) -> None:
        """Ask the engine before its first sleep; no effect later."""
        if self.version is None:
            self.answer, self.version = await _ask(generate), version

    async def difference(self, generate: Generate, version: int) -> str:
        """Ask again under the same weights; returns how the answers differ, or nothing if they agree, or the weights are others."""
        return different(self.answer, await _ask(generate)) if version == self.version else ""


async def _ask(generate: Generate) -> Answer:
    prompt = pa.RecordBatch.from_pylist([{"group": 0, "prompt_token_ids": list(range(TOKENS)), "seeds": [0]}], schema=PROMPTS)
    samples = await generate(prompt, 0.0, 1.0, TOKENS, TOKENS)
    return Answer(samples["token_ids"][0].as_py(), samples["logprobs"][0].as_py())


def different(before: Answer, after: Answer) -> str:
    """Describe how two answers differ beyond rounding; after the first token that differs, they are not comparable."""
    for place, (old, new, was, now) in enumerate(zip(before.tokens, after.tokens, before.logprobs, after.logprobs, strict=True), start=1):
        if not abs(was - now) <= TOLERANCE or (old != new and place == 1):
            return f"token {place} of a greedy answer was {old} at {was:.3f} nats before it slept, and is {new} at {now:.3f} now"
        if old != new:
            return ""
    return ""
