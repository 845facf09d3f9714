"""The task of judging, for training a generative reward model with another library: prompts of ours, rewarded by our rules (Eq. 10, 11).

Only building the prompts needs a tokenizer and the readers' libraries. Rewarding needs neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlsys.rewards.extraction import ScoreFormat
from rlsys.rewards.rules import GroundTruth, Judgement


@dataclass(frozen=True)
class JudgingTask:
    """A prompt that asks for a judgement, and the ground truth that rewards it."""

    id: str
    prompt: str
    """The user's turn. Responses that imitate its marks, or the chat template's, are defused."""
    order: tuple[int, ...]
    """order[p] is the index of the response shown at place p."""
    rewards: tuple[float, ...]
    """Ground truth, in the record's own order."""
    thought: str = ""
    """Opening mark of a thought with which the policy's prompt ends, if its chat template adds one."""

    def judge(self, text: str, truncated: bool = False) -> Judgement:
        """Return scores or the parse failure, correctness (Eq. 10) and reward, +1 or -1 (Eq. 11), of a judgement.

        Args:
            truncated: whether the token limit cut the text off, which is a parse failure.
        """
        return GroundTruth(self.rewards, self.order, ScoreFormat(thought=self.thought)).judge(text, truncated)


def judging_tasks(
    data: str | Path, format: str, tokenizer: str | Path, *, template: str = "pointwise", principles: bool = True, seed: int = 0
) -> Iterator[JudgingTask]:
    """Yield a task for every usable row of a file.

    Args:
        data, format: as in `rlsys data check`.
        tokenizer: folder or hub name of the policy's tokenizer, whose marks of turns are defused in the responses.
        template, principles: as prompt.template and prompt.principles.
        seed: of the response orders.

    Raises:
        DataError: a row is malformed, or none is usable. Rows without a unique best response are left out.
        PromptError: the template or the tokenizer's chat template is unusable.
    """
    from transformers import AutoTokenizer

    from rlsys.data.readers import DataError, Report, read
    from rlsys.prompts.rendering import Prompter, shuffled

    prompter = Prompter(AutoTokenizer.from_pretrained(str(tokenizer)), template, principles=principles)
    report = Report()
    for record in read(data, format, strict=True, report=report):
        order = shuffled(record.n, "environment", seed, record.id)
        prompt = prompter.user_turn(record, order)
        yield JudgingTask(record.id, prompt, tuple(order), record.rewards, prompter.score_format.thought)
    if not report.records:
        raise DataError(f"{data}: no row has a unique best response.")


def nemo_gym_row(task: JudgingTask) -> dict[str, Any]:
    """Return a row for NeMo Gym's rollouts, as `rlsys.integrations.nemo_gym.JudgingServer` rewards it."""
    given = {"input": [{"role": "user", "content": task.prompt}]}
    return {"responses_create_params": given, "judging": asdict(task) | {"prompt": ""}}


def write_nemo_gym_rows(file: str | Path, data: str | Path, format: str, tokenizer: str | Path, **options: Any) -> int:
    """Write the rows of `judging_tasks` as JSONL; returns their number."""
    rows = [nemo_gym_row(task) for task in judging_tasks(data, format, tokenizer, **options)]
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)
