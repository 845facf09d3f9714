"""Where a model's thought ends and its answer begins, in the spellings that models use.

A thought is a draft: nothing in it is a verdict. Its begin may stand in the text, or at the end of the prompt, where a chat template has
opened it. Any spelling of an end ends it; what counts is the last mark in the text.
"""

from __future__ import annotations

import re

_NAMES = r"(?:think|thinking|thought|thoughts|reasoning|scratchpad)"
_PREFIX = r"(?:\w{1,20}[:_])?"  # <seed:think>, <mm:think>, <longcat_think>
_BEGINS = (
    rf"<{_PREFIX}{_NAMES}\s*+>",
    r"\[think(?:ing)?\]",  # Mistral
    r"\u25c1think(?:ing)?\u25b7",  # Kimi
    r"<\|(?:begin_of_thought|start_thinking|inner_prefix|think|thinking)\|>",
    r"<\|channel\|>\s*+(?:analysis|commentary)",  # GPT-OSS
    r"<\|channel>\s*+thought",  # Gemma
    r"<unused94>\s*+thought",
)
_ENDS = (
    rf"</\s*+{_PREFIX}{_NAMES}\s*+>",
    r"\[/think(?:ing)?\]",
    r"\u25c1/think(?:ing)?\u25b7",
    r"<\|(?:end_of_thought|end_thinking|inner_suffix|/think|/thinking)\|>",
    r"<\|channel\|>\s*+final(?:\s*+<\|message\|>)?",
    r"<channel\|>",
    r"<unused95>",
)
_MARK = re.compile("|".join((*_BEGINS, *_ENDS)), re.IGNORECASE)
_END = re.compile("|".join(_ENDS), re.IGNORECASE)
_FIRST = "<[\u25c1"
_PAIRS = (("begin_of", "end_of"), ("start_", "end_"), ("START_", "END_"), ("prefix", "suffix"))


def after_thought(text: str) -> str | None:
    """What stands after the last end of a thought; all of a text without one; None where the last thought did not end."""
    mark = _last_mark(text)
    if mark is None:
        return text
    return text[mark.end() :] if _END.fullmatch(mark[0]) else None


def has_end(text: str) -> bool:
    """Whether a thought ends in `text`."""
    return _END.search(text) is not None


def opened(prompt: str) -> str:
    """The mark of a thought that `prompt` begins and does not end; empty where there is none."""
    mark = _last_mark(prompt)
    return "" if mark is None or _END.fullmatch(mark[0]) else mark[0]


def end_of(begin: str) -> str:
    """The mark that ends what `begin` begins."""
    for first, second in _PAIRS:
        if first in begin:
            return begin.replace(first, second)
    return begin[0] + "/" + begin[1:]


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
