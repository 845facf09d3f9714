"""General instruction data, mixed into rejective fine-tuning so that the model stays a general one (docs/method.md, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlsys.config.schema import Data
from rlsys.data.batches import learner_row
from rlsys.data.datasets import TASKS, open_rows
from rlsys.data.readers import DataError, strict_rows
from rlsys.data.readers.fields import text
from rlsys.data.readers.messages import as_messages
from rlsys.prompts.chat import Chat, ChatError


def instruction_rows(
    source: Path, count: int, chat: Chat, data: Data, seed: int, max_tokens: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """LEARNER rows of the first `count` conversations that fit into `max_tokens`; the last answer is learned.

    Args:
        source: a file of {"messages": [{role, content}, ...]}, the last one the assistant's, or of {"prompt": text,
            "completion": text}; or `tasks:SPLIT`, of which the best responses are the answers.

    Returns:
        rows; and counts of the conversations that were set aside on the way: too_long, or refused by the chat template.

    Raises:
        DataError: no such file, a row of another form (file and row are named), or fewer conversations that fit.
    """
    rows: list[dict[str, Any]] = []
    counts = {"too_long": 0, "refused": 0}
    for messages in _conversations(source, data, seed):
        if len(rows) == count:
            break
        try:
            prompt = chat.tokens(messages[:-1])
        except ChatError as error:
            refused = error
            counts["refused"] += 1
            continue
        row = learner_row(len(rows), prompt, chat, messages[-1]["content"])
        if len(row["prompt_tokens"]) + len(row["tokens"]) <= max_tokens:
            rows.append(row)
        else:
            counts["too_long"] += 1
    if len(rows) < count:
        found = f"{len(rows)} conversations of at most {max_tokens} tokens, {count} are wanted"
        why = f" {counts['refused']} were refused: {refused}" if counts["refused"] else ""
        raise DataError(f"{source}: {found}; lower rft.instruction_share.{why}")
    return rows, counts


def _conversations(source: Path, data: Data, seed: int) -> Iterator[list[dict[str, str]]]:
    if str(source).startswith(TASKS):
        for record in open_rows(source, data, seed + 1):
            if record.n > 1:
                yield [*record.context, {"role": "assistant", "content": record.responses[record.best]}]
        return
    for number, row in strict_rows(source):
        try:
            yield _messages(row)
        except DataError as error:
            raise error.at(str(source), number) from error


def _messages(row: dict[str, Any]) -> list[dict[str, str]]:
    if "messages" not in row:
        return [{"role": "user", "content": text(row, "prompt")}, {"role": "assistant", "content": text(row, "completion")}]
    messages = list(as_messages(row["messages"], "messages"))
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise DataError("messages: expected a conversation that ends with the assistant's answer.", key="messages")
    return messages
