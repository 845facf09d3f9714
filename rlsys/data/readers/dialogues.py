"""Splitting conversations into the context that the responses share and the responses."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from rlsys.data.readers.fields import DataError, Row, as_list, as_text, optional_text, required, text, wrong
from rlsys.data.readers.messages import MEDIA, Messages, as_messages, ask, conversation, is_message, read_back, written_out

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ASKS = "human|user|instruction|question|q|customer|client|student|patient|input|prompt|post|article|title|context|document|passage|system"
_TAGGED = "assistant|ai|bot|chatbot|gpt|chatgpt|model|response|reply|answer"
_ANSWERS = rf"{_TAGGED}|a|output|completion|solution|summary|tl;?dr|agent|teacher|tutor|doctor|therapist|expert"
_SPEAKER = re.compile(
    rf"(?:^|\n)[ \t]*(?:\#+\ *|\*\*)?(?:(?P<line>{_ASKS})|{_ANSWERS})(?:\*\*)?:"
    rf"|(?:<[|\uff5c]?|\[)(?:(?P<tag>{_ASKS})|{_TAGGED})(?:[|\uff5c]?>|\])"
    r"|(?<=\s)(?-i:(?P<inline>USER|User|HUMAN|Human|Q)|ASSISTANT|Assistant|AI|A):"
    r"|(?:<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>|<\|turn>)(?:(?P<role>user|human|system|developer|tool)|\w+)"
    r"(?:<\|end_header_id\|>)?"
    r"|\[/INST\]",
    re.IGNORECASE,
)
"""Speaker markers in plain-text transcripts."""
PROMPT_WORDS = {
    "prompt", "question", "query", "instruction", "instructions", "input", "inputs", "context", "conversation", "conversations",
    "messages", "dialog", "dialogue", "history", "problem", "task", "request", "user", "human", "post", "article", "document", "passage",
    "turns", "issue",
}  # fmt: skip
"""Words in the names of columns that contain a prompt."""
_ABOUT = {
    "id", "ids", "source", "hash", "type", "category", "length", "tokens", "model", "chosen", "rejected", "response", "responses", "answer",
    "answers", "output", "outputs", "completion", "score", "scores", "margin", "label", "labels", "language", "lang", "split", "dataset",
    "subset", "domain", "license", "url", "date", "time", "timestamp", "annotator", "annotators", "rationale", "explanation", "reason",
    "reasoning", "feedback", "comment", "comments", "critique", "note", "notes", "metadata", "meta", "reference", "version", "tags", "name",
}  # fmt: skip
"""Words in the names of columns that do not contain a prompt."""


def prompt_of(row: Row, key: str = "prompt") -> Messages:
    """Return the conversation under `key`, preceded by `system` (text) and `history` ([[question, answer], ...] or messages).

    Raises:
        DataError: the conversation has another form; there are two system texts; or the row has images, audio or other media.
    """
    for name in MEDIA:
        if row.get(name):
            raise DataError(f"{name}: expected a text-only row, found {name}, which cannot be rendered.", key=name)
    messages = (*_history(row), *conversation(row, key))
    system = optional_text(row, "system")
    if system is None or messages[0] == {"role": "system", "content": system}:
        return messages
    if messages[0]["role"] == "system":
        raise DataError("system: expected one system text, found another one in the conversation.", key="system")
    return ({"role": "system", "content": system}, *messages)


def _history(row: Row) -> Messages:
    turns = read_back(row.get("history") or [], "history")
    if not isinstance(turns, list):
        raise wrong("history", "a list of [question, answer] or of messages", turns)
    if turns and is_message(turns[0]):
        return as_messages(turns, "history")
    found = []
    for position, pair in enumerate(turns):
        if not isinstance(pair, list) or len(pair) != 2:
            raise wrong(f"history[{position}]", "a question and its answer", pair)
        for role, said in zip(("user", "assistant"), pair, strict=True):
            found.append({"role": role, "content": as_text(said, f"history[{position}]", blank=True)})
    return tuple(found)


def replies(row: Row, key: str, context: Messages) -> tuple[str, ...]:
    """Return the responses to `context` under `key`: one, or a list.

    A response is text, or messages with or without `context` in front; several turns are written out with their roles.
    """
    value = read_back(required(row, key, "text or a list of messages"), key)
    if isinstance(value, list) and value and not is_message(value[0]):
        return tuple(_reply(entry, f"{key}[{position}]", context) for position, entry in enumerate(value))
    return (_reply(value, key, context),)


def reply(row: Row, key: str, context: Messages) -> str:
    """Return the single response under `key`: see `replies`."""
    return _reply(required(row, key, "text or a list of messages"), key, context)


def _reply(value: Any, key: str, context: Messages) -> str:
    value = [value] if is_message(value) else read_back(value, key)
    if not isinstance(value, list):
        return as_text(value, key, blank=True)
    messages = as_messages(value, key)
    if len(messages) > len(context) and messages[: len(context)] == context:
        messages = messages[len(context) :]
    roles = [message["role"] for message in messages]
    if roles[0] != "assistant" or roles[-1] != "assistant" or (len(roles) > 1 and set(roles) == {"assistant"}):
        raise wrong(key, "the assistant's turns, after the prompt's messages or alone", value)
    return written_out(messages)


def split_messages(row: Row) -> tuple[Messages, tuple[str, ...], tuple[str, ...]]:
    """Return (context, chosen, rejected) of message lists, one or several per side, that begin with the same turns."""
    sides = {key: _conversations(read_back(required(row, key, "a list of messages"), key), key) for key in ("chosen", "rejected")}
    count = len(sides["chosen"])
    keys = ["chosen"] * count + ["rejected"] * len(sides["rejected"])
    context, answers = split([*sides["chosen"], *sides["rejected"]], keys)
    return context, answers[:count], answers[count:]


def split(conversations: Sequence[Messages], keys: Sequence[str]) -> tuple[Messages, tuple[str, ...]]:
    """Return (the common beginning of all conversations, up to a user or tool turn; the rest of each, written out).

    Args:
        keys: names of the conversations, for messages.

    Raises:
        DataError: the conversations have no common beginning, or one does not end with an assistant turn.
    """
    for key, messages in zip(keys, conversations, strict=True):
        if messages[-1]["role"] != "assistant":
            raise wrong(key, "an assistant message at the end", messages[-1]["role"])
    common = takewhile(lambda turns: all(turn == turns[0] for turn in turns), zip(*conversations, strict=False))
    shared = sum(1 for _ in common)
    for end in range(shared, 0, -1):
        asked = conversations[0][end - 1]["role"] in ("user", "tool")
        if asked and all(len(messages) > end and messages[end]["role"] == "assistant" for messages in conversations):
            return conversations[0][:end], tuple(written_out(messages[end:]) for messages in conversations)
    raise DataError(f"{keys[-1]}: expected a conversation that begins with the same query as {keys[0]}, found another.", key=keys[-1])


def _conversations(value: Any, key: str) -> list[Messages]:
    if not (entries := as_list(value, key)) or is_message(entries[0]) or not isinstance(entries[0], list):
        return [as_messages(entries, key)]
    return [as_messages(entry, f"{key}[{position}]") for position, entry in enumerate(entries)]


def split_texts(row: Row) -> tuple[Messages, str, str]:
    """Return (context, chosen, rejected) of two texts that begin with the same prompt, split between words.

    Raises:
        DataError: the texts have no common beginning; the row's prompt is null; another column looks like the prompt; or the common
            beginning ends inside the assistant's turn, so that it would include a part of both answers.
    """
    chosen, rejected = text(row, "chosen"), text(row, "rejected")
    if "prompt" in row:
        raise wrong("prompt", "text or a list of messages", None)
    for name in row:
        if name not in ("chosen", "rejected") and _looks_like_prompt(name, row[name]):
            hint = f"map it with data.columns={{prompt: {name}}} (--columns prompt={name}), or remove the column"
            raise DataError(f"prompt: expected a prompt, found none, but a column {ascii(name)} that looks like one: {hint}.", key="prompt")
    end = len(os.path.commonprefix([chosen, rejected]))
    while end and not chosen[end - 1].isspace():
        end -= 1
    prompt = chosen[:end].rstrip()
    if not prompt:
        raise DataError("prompt: expected a prompt, or a common beginning of chosen and rejected, found neither.", key="prompt")
    if _inside_answer(prompt):
        raise DataError(
            "prompt: expected chosen and rejected to differ from the beginning of the answer, found that they differ in the middle of the "
            "assistant's turn; use format hh_rlhf for transcripts with Human: and Assistant:.",
            key="prompt",
        )
    return ask(prompt), chosen[len(prompt) :], rejected[len(prompt) :]


def _looks_like_prompt(name: Any, value: Any) -> bool:
    if not value or not isinstance(value, (str, list, dict)):
        return False
    if isinstance(value, list) and is_message(value[0]):
        return True
    words = set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", str(name)).lower()))
    if words & PROMPT_WORDS:
        return not words & {"id", "ids", "source", "hash", "type", "category", "length", "tokens"}
    # Under an uninformative name: any text that is not a single word, such as a name or a category.
    said = isinstance(value, str) and (not re.fullmatch(r"[\x21-\x7e]*", value.strip()) or value.strip().endswith("?"))
    return said and not words & _ABOUT


def _inside_answer(prompt: str) -> bool:
    """Whether the last speaker marker in the text is the assistant's and is followed by text."""
    *_, last = (None, *_SPEAKER.finditer(prompt))
    if last is None or any(last.groupdict().values()):
        return False
    return bool(prompt[last.end() :].strip(" \t\n*"))


def transcript_to_answer(row: Row, key: str) -> Messages:
    """Return the turns of a transcript that ends where the assistant answers next, without that empty turn."""
    messages = transcript(row, key)
    return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages


def transcript(row: Row, key: str) -> Messages:
    """Return the turns of an HH-RLHF transcript. Consecutive turns of one speaker, which do occur, are merged."""
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
    return tuple(messages)
