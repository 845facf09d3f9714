r"""Content made harmless before it enters a prompt: whatever in it could end a section or a turn, or pass for a score, is broken up.

That is a template's own marks, `\boxed`, a tokenizer's special tokens, and the marks that its chat template writes around turns, which in
some families are plain text: `[/INST]`, `USER:`, `<|assistant|>`. Those are found by rendering marked words and looking between them.
Words alone on a line (`USER`) are marks as such a line only. Signs alone (`>>> `) and words that a blank follows (`User `) are not: they
begin lines of ordinary text, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from rlsys.prompts.chat import Chat
from rlsys.rewards.extraction import GUARDS

_SURROGATES = re.compile("[\ud800-\udfff]")
_INVISIBLE = re.compile(
    # Controls that are no blanks, and what Unicode calls default-ignorable or a format character without a shape of its own.
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U00013430-\U00013455\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_GAP = "[\\s\u2800]*+"
_TAG = re.compile("<+[^\\s<>]{1,60}>+|\\[[^\\s\\[\\]]{1,60}\\]|\u25c1[^\\s\u25c1\u25b7]{1,60}\u25b7")
_TURN_TAG = re.compile(rf"{_TAG.pattern}|\[[^\n\[\]]{{1,60}}\]")
_LONGEST = 60
"""Characters of a mark; what is longer is a sentence that a template adds."""
_OTHER_ROLES = ("system", "developer", "tool", "function")


class Defuser:
    r"""Breaks up marks by a visible dot behind their first character: `<|im_end|>` -> `<·|im_end|>`.

    Marks and tokens are found in any case, marks and `\boxed` with any blanks between their parts, and all of them with characters in
    them that cannot be seen. Any other text comes back as it is.

    Args:
        marks: of the prompt's template; `#` stands for any number.
        chat: whose special tokens and turns are defused, too.

    Raises:
        ValueError: no character is left to break them up with.
    """

    def __init__(self, marks: Sequence[str], chat: Chat) -> None:
        tokens, turns, lines = special_tokens(chat), turn_marks(chat), turn_lines(chat)
        # The first that none of them contains.
        guard = next((guard for guard in GUARDS if not any(guard in text for text in (*marks, *turns, *lines, *tokens))), None)
        if guard is None:
            raise ValueError(f"its marks use all of {GUARDS}, one of which must be free to defuse content with.")
        self.guard = guard
        patterns = [rf"\\{_GAP}boxed", *map(mark_pattern, marks), *map(_turn_pattern, turns), *map(re.escape, tokens)]
        patterns += [rf"(?-i:(?<![^\n]){re.escape(line)}(?=[ \t\r]*+(?:\n|\Z)))" for line in lines]
        self._hostile = re.compile("|".join(dict.fromkeys(patterns)), re.IGNORECASE)

    def __call__(self, text: str) -> str:
        """The text, defused. Lone surrogates, which no tokenizer takes, become U+FFFD.

        No pattern contains the guard, so a new match can never arise, and what overlapped is found in the next round.
        """
        text = _SURROGATES.sub("\ufffd", text)
        while found := list(self._found(text)):
            pieces, done = [], 0
            for start, whole in found:
                # A mark of one character has no inside.
                pieces += [text[done : start + (not whole)], self.guard]
                done = start + 1
            text = "".join([*pieces, text[done:]])
        return text

    def _found(self, text: str) -> Iterator[tuple[int, bool]]:
        """(where a mark begins, whether it is a single character), as a reader sees the text: without what cannot be seen."""
        if _INVISIBLE.search(text) is None:
            places: Sequence[int] = range(len(text))
            seen = text
        else:
            places = [place for place, char in enumerate(text) if not _INVISIBLE.match(char)]
            seen = _INVISIBLE.sub("", text)
        for match in self._hostile.finditer(seen):
            yield places[match.start()], match.end() - match.start() == 1


def mark_pattern(mark: str) -> str:
    """A mark as a pattern: any blanks between its words and signs, # for any number."""
    return _GAP.join(r"\d++" if part == "#" else re.escape(part) for part in re.findall(r"\w+|[^\w\s]", mark))


def _turn_pattern(mark: str) -> str:
    """A mark between turns: any blanks, as above, and any number in place of one. A word of few letters stands in others (FAQ: and Q:)."""
    parts = re.findall(r"\d+|[^\W\d]+|[^\w\s]", mark)
    pattern = _GAP.join(r"\d++" if part.isdecimal() else re.escape(part) for part in parts)
    return rf"(?<!\w){pattern}" if parts[0].isalpha() and len(parts[0]) < 4 else pattern


def special_tokens(chat: Chat) -> list[str]:
    """What the tokenizer turns into one reserved id, longest first.

    Of tokens that were merely added, such as a language's tags, those that the chat template writes or that are shaped <|like this|>.
    """
    tokenizer, source = chat.tokenizer, chat.tokenizer.get_chat_template()
    tokens = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        text = str(token)
        if token.special or re.fullmatch(r"<[|｜].*[|｜]>", text) or (text in source and re.search(r"[^\w\s]", text)):
            tokens.add(text)
    return sorted((token for token in tokens if token.strip()), key=lambda token: (-len(token), token))


def turn_marks(chat: Chat) -> list[str]:
    """What the chat template writes around turns and the tokenizer does not reserve: tags, and lines with a sign in them."""
    tokens = special_tokens(chat)
    reserved = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
    marks: dict[str, Any] = {}
    for before, between in _around_turns(chat):
        marks.update(dict.fromkeys(_TAG.findall(reserved.sub("\n", before))))
        for segment in between:
            segment = reserved.sub("\n", segment)
            marks.update(dict.fromkeys(_TURN_TAG.findall(segment)))
            lines = (line.strip() for line in _TURN_TAG.sub("\n", segment).splitlines())
            marks.update(dict.fromkeys(line for line in lines if len(line) <= _LONGEST and re.search(r"\w\W|\W\w", line)))
    return [mark for mark in marks if re.search(r"[^\W\d_]", mark)]


def turn_lines(chat: Chat) -> list[str]:
    """Words that the chat template writes on a line of their own between turns, beside no tag and no reserved token."""
    reserved = re.compile("|".join([_TURN_TAG.pattern, *map(re.escape, special_tokens(chat))]))
    lines: dict[str, None] = {}
    for _, between in _around_turns(chat):
        for segment in between:
            # The first and the last line are those of what is said.
            whole = [line.rstrip() for line in segment.split("\n")[1:-1]]
            lines.update(dict.fromkeys(line for line in whole if 1 < len(line) <= _LONGEST and not reserved.search(line)))
    return [line for line in lines if re.fullmatch(r"[^\W_]+( [^\W_]+)*", line)]


def _around_turns(chat: Chat) -> Iterator[tuple[str, list[str]]]:
    """(what stands before the first turn, what stands behind each) of conversations that the template takes."""
    talks = [("user",), ("user", "assistant", "user"), *((role, "user") for role in _OTHER_ROLES)]
    talks += [("user", "assistant", role, "user") for role in _OTHER_ROLES]
    for roles in talks:
        if chat.takes(roles):
            text, words = chat.marked(roles)
            before, *between = re.split("|".join(words), text)
            yield before, between
