"""A stronger model behind an endpoint as the teacher of a student: its judgements, as the student could have written them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from rlsys.data.batches import completion
from rlsys.judging.requests import (
    Answering,
    JudgeRequest,
    JudgeResult,
    RenderedRequest,
    SampleRow,
    Sampling,
    endpoint_sample,
    render_requests,
)
from rlsys.prompts.rendering import Prompter, UserTurns
from rlsys.rewards.thoughts import after_thought


class Teacher:
    """Answers requests with the teacher's judgements, for the student's prompts.

    Args:
        endpoint: the teacher.
        turns: renders what the teacher is asked.
    """

    def __init__(self, endpoint: Answering, turns: UserTurns) -> None:
        self.endpoint, self.turns = endpoint, turns

    def answer(self, asks: Iterable[JudgeRequest], prompter: Prompter, sampling: Sampling, max_prompt_tokens: int) -> Iterator[JudgeResult]:
        """Yield the results of `asks`, in order, with the student's prompts. What the student could not read is not asked.

        Args:
            prompter: the student's.
            sampling: max_tokens bounds the answer in the teacher's tokens, and once more in the student's.

        Raises:
            rlsys.serving.endpoint.EndpointError: a request failed for good.
        """
        waiting: deque[RenderedRequest] = deque()

        def readable() -> Iterator[JudgeRequest]:
            for rendered in render_requests(asks, prompter, max_prompt_tokens):
                waiting.append(rendered)
                if not rendered.skipped:
                    yield rendered.request

        for result in self.endpoint.answer(readable(), self.turns, sampling, max_prompt_tokens):
            while waiting[0].skipped:
                yield JudgeResult(waiting.popleft())
            samples = [student_sample(sample, prompter, sampling.max_tokens) for sample in result.samples]
            rendered = replace(waiting.popleft(), skipped=result.rendered.skipped)
            yield JudgeResult(rendered, samples, result.prompt_tokens)
        yield from map(JudgeResult, waiting)


def student_sample(sample: SampleRow, prompter: Prompter, max_tokens: int) -> SampleRow:
    """Return a teacher's sample without its thought. It counts as cut off if the student needs more than `max_tokens` for it."""
    answer = after_thought(sample["text"])
    text = sample["text"] if answer is None else answer.strip()
    too_long = len(completion(prompter.chat, text)) > max_tokens
    # The student's own thought is opened by its prompt; the teacher's text does not depend on it.
    score_format = replace(prompter.score_format, thought="")
    return endpoint_sample(text, bool(sample.get("truncated")) or too_long, sample["tokens"], sample["order"], score_format)
