"""Separation of a model's thought from its answer, for the thought marks of many model families.

Scores in a thought are drafts and never count. The opening mark may be part of the text, or of the prompt if the chat template opens the
thought. Any closing mark closes it, whatever its family; the last mark in the text decides.
"""

from __future__ import annotations

import re

_NAMES = r"(?:think|thinking|thought|thoughts|reasoning|scratch_?pad|cot|reflection|monologue)(?:[_-]\w{1,20}+)?"  # <thought_process>
_PREFIX = r"(?:\w{1,20}[:_-]|ant)?"  # <seed:think>, <mm:think>, <longcat_think>, <antThinking>
_BAR, _JOINT = "[|\uff5c]", "[_\u2581]?"
_OPENING = (
    rf"<\s*+{_PREFIX}{_NAMES}(?:\s++[\w-]++\s*+=[^<>]{{0,100}}+)?\s*+>",  # with or without attributes
    r"\[think(?:ing)?\]",  # Mistral
    r"\u25c1think(?:ing)?\u25b7",  # Kimi
    rf"<{_BAR}(?:(?:begin|start){_JOINT}(?:of{_JOINT})?)?{_PREFIX}{_NAMES}(?:{_JOINT}(?:begin|start))?{_BAR}>",
    r"<\|inner_prefix\|>",
    r"<\|channel\|>\s*+(?:analysis|commentary)",  # GPT-OSS
    r"<\|channel>\s*+thought",  # Gemma
    r"<unused94>\s*+thought",
)
_CLOSING = (
    rf"<\s*+/\s*+{_PREFIX}{_NAMES}\s*+>",
    r"\[/think(?:ing)?\]",
    r"\u25c1/think(?:ing)?\u25b7",
    rf"<{_BAR}(?:/|end{_JOINT}(?:of{_JOINT})?){_PREFIX}{_NAMES}{_BAR}>",
    rf"<{_BAR}{_PREFIX}{_NAMES}{_JOINT}end{_BAR}>",
    r"<\|inner_suffix\|>",
    r"<\|channel\|>\s*+final(?:\s*+<\|message\|>)?",
    r"<channel\|>",
    r"<unused95>",
)
_MARK = re.compile("|".join((*_OPENING, *_CLOSING)), re.IGNORECASE)
_CLOSING_MARK = re.compile("|".join(_CLOSING), re.IGNORECASE)
_FIRST_CHARS = "<[\u25c1"
_PAIRS = (("begin", "end"), ("start", "end"), ("START", "END"), ("prefix", "suffix"), ("<|", "<|/"), ("<\uff5c", "<\uff5c/"))
_IRREGULAR = (
    ("<|channel|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel>", "<channel|>"),
    ("<unused94>", "<unused95>"),
)


def after_thought(text: str) -> str | None:
    """Return the text after the last thought, the whole text if there is none, or None if the last thought is not closed."""
    mark = _last_mark(text)
    if mark is None:
        return text
    return text[mark.end() :] if _CLOSING_MARK.fullmatch(mark[0]) else None


def has_end(text: str) -> bool:
    """Return whether `text` contains a closing mark."""
    return _CLOSING_MARK.search(text) is not None


def open_mark(prompt: str) -> str:
    """Return the opening mark of the thought that `prompt` leaves open; empty if there is none."""
    mark = _last_mark(prompt)
    return "" if mark is None or _CLOSING_MARK.fullmatch(mark[0]) else mark[0]


def closing_mark(opening: str) -> str:
    """Return the closing mark for the mark `opening`."""
    for first, end in _IRREGULAR:
        if opening.startswith(first):
            return end
    for first, second in _PAIRS:
        if first in opening:
            return opening.replace(first, second)
    return f"{opening[0]}/{opening[1:].split()[0].rstrip('>')}>" if opening[0] == "<" else f"{opening[0]}/{opening[1:]}"


def is_mark(token: str) -> bool:
    """Return whether a token is a thought mark or part of one. Decoding must keep such tokens, or the end of the thought is lost."""
    return _last_mark(token) is not None or token in ("<|channel|>", "<|channel>", "<|message|>", "<unused94>")


def _last_mark(text: str) -> re.Match[str] | None:
    if not any(char in text for char in _FIRST_CHARS):
        return None
    last = None
    for mark in _MARK.finditer(text):
        last = mark
    return last
