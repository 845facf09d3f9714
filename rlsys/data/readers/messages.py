"""Messages as {role, content}: tool calls, tool results and multi-part content are rendered as text, so that a judge sees all of it.

    Tool call: weather({"city": "Oslo"})
    Result of weather: 3 C

Ids match results to calls and are shown if one turn makes several calls. Accepted are the message formats of OpenAI (`tool_calls`,
`function_call`, roles `tool` and `function`, parts), Anthropic (parts `tool_use`, `tool_result`) and ShareGPT (`from`, `value`).
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass, field
from typing import Any

from rlsys.data.readers.fields import DataError, as_list, as_object, as_text, required, wrong

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {
    **dict.fromkeys(("human", "user"), "user"), "system": "system",
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}  # fmt: skip
"""Role by the value of ShareGPT's `from`."""
MEDIA = ("image", "images", "audio", "audios", "video", "videos", "file", "files", "attachments")
"""Keys of messages and rows with non-text content."""
_WRITTEN = re.compile(r"\s*\[\s*\{\s*(['\"])(?:role|content|from|value)\1\s*:.*\}\s*\]\s*", re.DOTALL)
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")

Messages = tuple[dict[str, str], ...]


def as_messages(value: Any, key: str) -> Messages:
    """Convert a non-empty list of messages with known roles to {role, content}, with calls and results in the content.

    Raises:
        DataError: not such a list; a message without text or call; or non-text content, such as an image.
    """
    value, calls = read_back(value, key), _Calls()
    return tuple(_message(as_object(entry, f"{key}[{i}]"), f"{key}[{i}]", calls) for i, entry in enumerate(as_list(value, key)))


def is_message(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def read_back(value: Any, key: str) -> Any:
    """Return `value`, or the messages that it encodes as text: JSON or a Python list literal, as often found in CSV files.

    Raises:
        DataError: messages in neither notation, such as numpy's repr.
    """
    if not isinstance(value, str) or not _WRITTEN.fullmatch(value):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list) and all(map(is_message, found)) else value
    if not re.search(r"(['\"])(?:role|from)\1\s*:", value):
        return value
    raise DataError(
        f"{key}: expected messages, found text with messages that is neither JSON nor a Python literal: save as Parquet.", key=key
    )


def conversation(row: dict[str, Any], key: str) -> Messages:
    """Return the conversation under `key`: messages, or text, which is a single user turn."""
    value = read_back(required(row, key, "text or a list of messages"), key)
    if isinstance(value, list):
        return as_messages(value, key)
    if not isinstance(value, str):
        raise wrong(key, "text or a list of messages", value)
    return ask(as_text(value, key))


def ask(query: str) -> Messages:
    """Return a conversation of one user turn."""
    return ({"role": "user", "content": query},)


def written_out(messages: Messages) -> str:
    """Return turns as one text: the content of a single turn; several turns each with their role in front."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


@dataclass
class _Calls:
    """The calls of a conversation so far."""

    names: dict[str, str] = field(default_factory=dict)
    """Tool name by call id."""
    shown: set[str] = field(default_factory=set)
    """Ids that appear in the rendered text."""

    def call(self, name: str, arguments: Any, id: Any, with_id: bool) -> str:
        id = str(id) if id is not None else ""
        if id:
            self.names[id] = name
        if id and with_id:
            self.shown.add(id)
        return f"Tool call{f' {id}' if id in self.shown else ''}: {name}({_arguments(arguments)})"

    def result(self, content: str, name: Any, id: Any) -> str:
        id = str(id) if id is not None else ""
        name = name or self.names.get(id, "")
        unknown = id and id not in self.names
        label = " ".join(part for part in (str(name), f"({id})" if unknown or id in self.shown else "") if part)
        return f"Result of {label}: {content}" if label else content


def _message(message: dict[str, Any], where: str, calls: _Calls) -> dict[str, str]:
    for key in MEDIA:
        if message.get(key):
            raise DataError(f"{where}.{key}: expected a text-only message, found {key}, which cannot be rendered.", key=f"{where}.{key}")
    if "role" not in message and "from" in message:
        return _sharegpt(message, where, calls)
    role = required(message, "role", "a role", f"{where}.")
    if role not in (*ROLES, "function"):
        raise wrong(f"{where}.role", "one of " + ", ".join(ROLES), role)
    role = "tool" if role == "function" else role
    requests = _tool_calls(message, where)
    content = message.get("content")
    if content is None and message.get("refusal"):
        content = message["refusal"]
    if content is None and not requests:
        raise wrong(f"{where}.content", "text, text parts, or tool calls", None)
    if isinstance(content, list):
        role, text = _parts(content, f"{where}.content", role, calls)
    else:
        text = as_text("" if content is None else content, f"{where}.content", blank=True)
    if role == "tool" and not isinstance(content, list) or role == "tool" and message.get("tool_call_id") is not None:
        text = calls.result(text, message.get("name"), message.get("tool_call_id"))
    rendered = [calls.call(*request, with_id=len(requests) > 1) for request in requests]
    content = "\n".join([text, *rendered] if text.strip() or not rendered else rendered)
    return {"role": role, "content": as_text(content, f"{where}.content", blank=True)}


def _tool_calls(message: dict[str, Any], where: str) -> list[tuple[str, Any, Any]]:
    """Return (name, arguments, id) of each call of a message."""
    entries = message.get("tool_calls") or []
    if not isinstance(entries, list):
        raise wrong(f"{where}.tool_calls", "a list", entries)
    made = [_call(entry, f"{where}.tool_calls[{position}]") for position, entry in enumerate(entries)]
    if message.get("function_call") is not None:
        made.append(_call(message["function_call"], f"{where}.function_call"))
    return made


def _call(entry: Any, where: str) -> tuple[str, Any, Any]:
    call = as_object(entry, where)
    inner = next((call[key] for key in ("function", "custom") if isinstance(call.get(key), dict)), call)
    arguments = next((inner[key] for key in ("arguments", "args", "input", "parameters") if inner.get(key) is not None), None)
    name = as_text(required(inner, "name", "the name of a tool", f"{where}."), f"{where}.name")
    return name, arguments, call.get("id", call.get("call_id"))


def _arguments(value: Any) -> str:
    """Return arguments as JSON, whether given as an object or as encoded text."""
    if isinstance(value, str):
        try:
            given = json.loads(value)
        except (ValueError, RecursionError):
            return value
        value = given
    return "" if value in (None, {}) else json.dumps(value, ensure_ascii=False, default=str)


def _parts(parts: list[Any], where: str, role: str, calls: _Calls) -> tuple[str, str]:
    """Return (role, text) of multi-part content. A user turn with only tool results gets the role `tool`."""
    texts, kinds = [], set()
    several = sum(isinstance(part, dict) and part.get("type") == "tool_use" for part in parts) > 1
    for position, part in enumerate(parts):
        here = f"{where}[{position}]"
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = as_object(part, here).get("type") or "text"
        kinds.add(kind)
        if kind in _TEXT_PARTS:
            key = "refusal" if kind == "refusal" else "text"
            texts.append(as_text(required(part, key, "text", f"{here}."), f"{here}.{key}", blank=True))
        elif kind == "tool_use":
            name, arguments, id = _call(part, here)
            texts.append(calls.call(name, arguments, id, with_id=several))
        elif kind == "tool_result":
            content = part.get("content")
            inner = _parts(content, f"{here}.content", role, calls)[1] if isinstance(content, list) else "" if content is None else content
            failed = "failed, " if part.get("is_error") is True else ""
            texts.append(calls.result(failed + as_text(inner, f"{here}.content", blank=True), None, part.get("tool_use_id")))
        else:
            raise DataError(f"{here}: expected a text part, found one of type {ascii(kind)[:60]}, which cannot be rendered.", key=here)
    return "tool" if kinds == {"tool_result"} else role, "\n".join(texts)


def _sharegpt(message: dict[str, Any], where: str, calls: _Calls) -> dict[str, str]:
    speaker = message["from"]
    if not isinstance(speaker, str) or speaker not in SHAREGPT:
        raise wrong(f"{where}.from", "one of " + ", ".join(SHAREGPT), speaker)
    value = required(message, "value", "text", f"{where}.")
    if speaker == "function_call":
        try:
            found = json.loads(value) if isinstance(value, str) else value
            made = [_call(call, f"{where}.value") for call in (found if isinstance(found, list) else [found])]
        except (ValueError, RecursionError):  # not an encoded call: keep it as text
            made = []
        if made:
            return _message({"role": "assistant", "content": "", "tool_calls": [_rebuilt(*call) for call in made]}, where, calls)
    return _message({"role": SHAREGPT[speaker], "content": value, "name": message.get("name")}, where, calls)


def _rebuilt(name: str, arguments: Any, id: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments, "id": id}
