"""Where a model's thought ends and its answer begins, in the spellings that models use.

A thought is a draft: nothing in it is a verdict. Its begin may stand in the text, or at the end of the prompt, where a chat template has
opened it. Any spelling of an end ends it; what counts is the last mark in the text.
"""

from __future__ import annotations

import re

_NAMES = r"(?:think|thinking|thought|thoughts|reasoning|scratch_?pad|cot|reflection|monologue)(?:[_-]\w{1,20}+)?"  # <thought_process>
_PREFIX = r"(?:\w{1,20}[:_-]|ant)?"  # <seed:think>, <mm:think>, <longcat_think>, <antThinking>
_BAR, _JOINT = "[|\uff5c]", "[_\u2581]?"
_BEGINS = (
    rf"<\s*+{_PREFIX}{_NAMES}(?:\s++[\w-]++\s*+=[^<>]{{0,100}}+)?\s*+>",  # with or without attributes
    r"\[think(?:ing)?\]",  # Mistral
    r"\u25c1think(?:ing)?\u25b7",  # Kimi
    rf"<{_BAR}(?:(?:begin|start){_JOINT}(?:of{_JOINT})?)?{_PREFIX}{_NAMES}(?:{_JOINT}(?:begin|start))?{_BAR}>",
    r"<\|inner_prefix\|>",
    r"<\|channel\|>\s*+(?:analysis|commentary)",  # GPT-OSS
    r"<\|channel>\s*+thought",  # Gemma
    r"<unused94>\s*+thought",
)
_ENDS = (
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
_MARK = re.compile("|".join((*_BEGINS, *_ENDS)), re.IGNORECASE)
_END = re.compile("|".join(_ENDS), re.IGNORECASE)
_FIRST = "<[\u25c1"
_PAIRS = (("begin", "end"), ("start", "end"), ("START", "END"), ("prefix", "suffix"), ("<|", "<|/"), ("<\uff5c", "<\uff5c/"))
_OTHER_ENDS = (
    ("<|channel|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel>", "<channel|>"),
    ("<unused94>", "<unused95>"),
)


def after_thought(text: str) -> str | None:
    """What stands after the last end of a thought; all of a text without one; None where the last thought did not end."""
    mark = _last_mark(text)
    if mark is None:
        return text
    return text[mark.end() :] if _END.fullmatch(mark[0]) else None


def has_end(text: str) -> bool:
    """Whether a thought ends in `text`."""
    return _END.search(text) is not None


def open_mark(prompt: str) -> str:
    """The mark of a thought that `prompt` begins and does not end; empty where there is none."""
    mark = _last_mark(prompt)
    return "" if mark is None or _END.fullmatch(mark[0]) else mark[0]


def closing_mark(begin: str) -> str:
    """The mark that ends what `begin` begins."""
    for first, end in _OTHER_ENDS:
        if begin.startswith(first):
            return end
    for first, second in _PAIRS:
        if first in begin:
            return begin.replace(first, second)
    return f"{begin[0]}/{begin[1:].split()[0].rstrip('>')}>" if begin[0] == "<" else f"{begin[0]}/{begin[1:]}"


def is_mark(token: str) -> bool:
    """Whether a token is a mark or a part of one: a text without it would hide where its thought ends."""
    return _last_mark(token) is not None or token in ("<|channel|>", "<|channel>", "<|message|>", "<unused94>")


def _last_mark(text: str) -> re.Match[str] | None:
    if not any(sign in text for sign in _FIRST):
        return None
    last = None
    for mark in _MARK.finditer(text):
        last = mark
    return last
