"""Taking a conversation apart: the context that two responses share, and the responses."""

from __future__ import annotations

import os
import re

from rlsys.readers.fields import DataError, Messages, Row, as_messages, as_text, ask, required, text, wrong

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def reply(row: Row, key: str, context: Messages) -> str:
    """The one assistant turn under `key`: a text, or messages with or without `context` in front."""
    value = required(row, key, "text or a list of messages")
    if not isinstance(value, list):
        return as_text(value, key)
    messages = as_messages(value, key)
    if messages[:-1] not in ((), context) or messages[-1]["role"] != "assistant":
        raise wrong(key, "one assistant message, after the prompt's messages or alone", value)
    return messages[-1]["content"]


def split_messages(row: Row) -> tuple[Messages, str, str]:
    """(context, chosen, rejected) of two message lists that differ in the last, the assistant's, only."""
    chosen, rejected = (as_messages(required(row, key, "a list of messages"), key) for key in ("chosen", "rejected"))
    for key, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[-1]["role"] != "assistant":
            raise wrong(key, "an assistant message at the end", messages[-1]["role"])
    if chosen[:-1] != rejected[:-1]:
        raise DataError("rejected: expected the messages of chosen up to the last one, found others.", key="rejected")
    return chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]


def split_texts(chosen: str, rejected: str) -> tuple[Messages, str, str]:
    """(context, chosen, rejected) of two texts that begin with the same prompt, cut between words."""
    end = len(os.path.commonprefix([chosen, rejected]))
    while end and not chosen[end - 1].isspace():
        end -= 1
    prompt = chosen[:end].rstrip()
    if not prompt:
        raise DataError("prompt: expected a prompt, or texts in chosen and rejected that begin alike, found neither.", key="prompt")
    return ask(prompt), chosen[len(prompt) :], rejected[len(prompt) :]


def transcript(row: Row, key: str) -> tuple[Messages, str]:
    """(context, last assistant turn) of an HH-RLHF transcript. Neighbouring turns of one speaker, which do occur, are one turn."""
    before, *parts = _TURN.split(text(row, key))
    if before.strip() or not parts:
        raise wrong(key, r'a transcript that begins with "\n\nHuman:"', row[key])
    messages: list[dict[str, str]] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role, content = ("user" if speaker == "Human" else "assistant"), content.strip()
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content}".strip()
        else:
            messages.append({"role": role, "content": content})
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"]:
        raise wrong(key, "a transcript that ends with the assistant's turn", row[key][-50:])
    return tuple(messages[:-1]), messages[-1]["content"]
