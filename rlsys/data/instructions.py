"""General instruction data, mixed into rejective fine-tuning so that the model keeps its general abilities (docs/method.md, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlsys.config.sources import Data
from rlsys.data.batches import completion
from rlsys.data.chain import SupervisedExample
from rlsys.data.datasets import GENERATED, open_rows
from rlsys.data.readers import DataError, strict_rows
from rlsys.data.readers.fields import text
from rlsys.data.readers.messages import as_messages
from rlsys.prompts.chat import Chat, ChatError


def instruction_examples(
    source: Path, count: int, chat: Chat, data: Data, seed: int, max_tokens: int
) -> tuple[list[SupervisedExample], dict[str, int]]:
    """Return examples of the first `count` conversations of at most `max_tokens` tokens; the last answer is the target.

    Rows after the last one needed are not read.

    Args:
        source: a file of {"messages": [{role, content}, ...]} that ends with an assistant message, or of {"prompt": text,
            "completion": text}; or `tasks:SPLIT`, with the best responses as answers.

    Returns:
        The examples, and the number of conversations skipped before the last one: {too_long, refused (by the chat template)}.

    Raises:
        DataError: the file does not exist, a row has another form (file and row are named), or too few conversations are short enough.
    """
    examples: list[SupervisedExample] = []
    counts = {"too_long": 0, "refused": 0}
    refusal = ""
    conversations = _conversations(source, data, seed)
    while len(examples) < count and (messages := next(conversations, None)) is not None:
        try:
            prompt = chat.tokens(messages[:-1])
        except ChatError as error:
            refusal = str(error)
            counts["refused"] += 1
            continue
        example = SupervisedExample(prompt, completion(chat, messages[-1]["content"]))
        if len(example.prompt_token_ids) + len(example.token_ids) <= max_tokens:
            examples.append(example)
        else:
            counts["too_long"] += 1
    if len(examples) < count:
        reason = f" {counts['refused']} were refused: {refusal}" if counts["refused"] else ""
        raise DataError(
            f"{source}: expected {count} conversations of at most {max_tokens} tokens, found {len(examples)}; "
            f"lower rft.instruction_share.{reason}"
        )
    return examples, counts


def _conversations(source: Path, data: Data, seed: int) -> Iterator[list[dict[str, str]]]:
    if str(source).startswith(GENERATED):
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
