r"""Protection against prompt injection: breaks up marks in content that could end a section or a turn, or be read as a score.

Marks are those of the prompt template, `\boxed`, the tokenizer's special tokens, and those that the chat template writes around turns. The
latter are plain text in some model families (`[/INST]`, `USER:`, `<|assistant|>`) and are found by rendering probe words and reading the
text between them. A word on a line of its own (`USER`) is a mark only as such a line. Punctuation alone (`>>> `) and words followed by a
blank (`User `) are not marks, as they also start lines of ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from rlsys.prompts.chat import Chat
from rlsys.rewards.extraction import GUARDS

_SURROGATES = re.compile("[\ud800-\udfff]")
_INVISIBLE = re.compile(
    # Control characters other than whitespace, and Unicode default-ignorable and invisible format characters.
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U00013430-\U00013455\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_GAP = "[\\s\u2800]*+"
_TAG = re.compile("<+[^\\s<>]{1,60}>+|\\[[^\\s\\[\\]]{1,60}\\]|\u25c1[^\\s\u25c1\u25b7]{1,60}\u25b7")
_TURN_TAG = re.compile(rf"{_TAG.pattern}|\[[^\n\[\]]{{1,60}}\]")
_MAX_MARK = 60
"""Maximum length of a mark; longer text is a sentence that the template adds."""
COMMON_TOKENS = r"<[|\uff5c][^\s<>]{1,60}+(?<=[|\uff5c])>|</?s>|<(?:bos|eos|pad|unk)>"
"""Regular expression of the special tokens that most models have in one form or another."""
COMMON_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<start_of_turn>", "<end_of_turn>", "<think>", "</think>")
"""Marks around turns and thoughts that many chat templates write."""
_OTHER_ROLES = ("system", "developer", "tool", "function")


class Defuser:
    r"""Breaks up marks with a visible dot after their first character, or before `boxed`: `<|im_end|>` -> `<·|im_end|>`.

    Matching ignores case and invisible characters; in marks and `\boxed` it also ignores whitespace between their parts. All other text is
    returned unchanged.

    Args:
        marks: marks of the prompt template; `#` stands for any number.
        chat: its special tokens and turn marks are defused as well. None: those of an unknown model, by their usual forms.
        boxes: also defuse `\boxed`.

    Raises:
        ValueError: the marks contain every possible guard character.
    """

    def __init__(self, marks: Sequence[str], chat: Chat | None, boxes: bool = True) -> None:
        tokens, turns, lines = (special_tokens(chat), turn_marks(chat), turn_lines(chat)) if chat else ([], list(COMMON_MARKS), [])
        # Use the first guard character that occurs in no mark.
        guard = next((guard for guard in GUARDS if not any(guard in text for text in (*marks, *turns, *lines, *tokens))), None)
        if guard is None:
            raise ValueError(f"its marks contain all of {GUARDS}; defusing needs one that they do not contain.")
        self.guard = guard
        patterns = [
            *([rf"\\{_GAP}(?P<word>boxed)"] if boxes else []),
            *map(mark_pattern, marks),
            *map(_turn_pattern, turns),
            *map(re.escape, tokens),
        ]
        patterns += [] if chat else [COMMON_TOKENS]
        patterns += [rf"(?-i:(?<![^\n]){re.escape(line)}(?=[ \t\r]*+(?:\n|\Z)))" for line in lines]
        self._pattern = re.compile("|".join(dict.fromkeys(patterns)), re.IGNORECASE)

    def __call__(self, text: str) -> str:
        """Defuse a text. Lone surrogates, which tokenizers reject, become U+FFFD.

        No pattern contains the guard, so that replacements create no new matches; overlapping matches are found in the next round.
        """
        text = _SURROGATES.sub("\ufffd", text)
        while found := list(self._found(text)):
            pieces, done = [], 0
            for place, whole in found:
                # A mark of a single character is replaced by the guard.
                pieces += [text[done : place - whole], self.guard]
                done = place
            text = "".join([*pieces, text[done:]])
        return text

    def _found(self, text: str) -> Iterator[tuple[int, bool]]:
        """Yield (place of the guard, whether the mark is the single character before it), ignoring invisible characters."""
        if _INVISIBLE.search(text) is None:
            positions: Sequence[int] = range(len(text))
            seen = text
        else:
            positions = [position for position, char in enumerate(text) if not _INVISIBLE.match(char)]
            seen = _INVISIBLE.sub("", text)
        for match in self._pattern.finditer(seen):
            # Right before the word `boxed`, where the extraction of scores looks for it.
            place = positions[match.start("word")] if match.lastgroup else positions[match.start()] + 1
            yield place, match.end() - match.start() == 1


def mark_pattern(mark: str) -> str:
    """Return the regular expression of a mark: any whitespace between words and punctuation; # matches any number."""
    return _GAP.join(r"\d++" if part == "#" else re.escape(part) for part in re.findall(r"\w+|[^\w\s]", mark))


def _turn_pattern(mark: str) -> str:
    """Return the regular expression of a turn mark. Numbers match any number; short words match only as whole words (Q: but not FAQ:)."""
    parts = re.findall(r"\d+|[^\W\d]+|[^\w\s]", mark)
    pattern = _GAP.join(r"\d++" if part.isdecimal() else re.escape(part) for part in parts)
    return rf"(?<!\w){pattern}" if parts[0].isalpha() and len(parts[0]) < 4 else pattern


def special_tokens(chat: Chat) -> list[str]:
    """Return the texts that the tokenizer encodes as a reserved id, longest first.

    Of added tokens that are not special, such as language tags, only those in the chat template or of the form <|...|> are included.
    """
    tokenizer, source = chat.tokenizer, chat.tokenizer.get_chat_template()
    tokens = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        text = str(token)
        if token.special or re.fullmatch(r"<[|｜].*[|｜]>", text) or (text in source and re.search(r"[^\w\s]", text)):
            tokens.add(text)
    return sorted((token for token in tokens if token.strip()), key=lambda token: (-len(token), token))


def turn_marks(chat: Chat) -> list[str]:
    """Return the marks around turns that are not reserved tokens: tags, and lines that contain punctuation."""
    tokens = special_tokens(chat)
    reserved = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
    marks: dict[str, Any] = {}
    for before, between in _around_turns(chat):
        marks.update(dict.fromkeys(_TAG.findall(reserved.sub("\n", before))))
        for segment in between:
            segment = reserved.sub("\n", segment)
            marks.update(dict.fromkeys(_TURN_TAG.findall(segment)))
            lines = (line.strip() for line in _TURN_TAG.sub("\n", segment).splitlines())
            marks.update(dict.fromkeys(line for line in lines if len(line) <= _MAX_MARK and re.search(r"\w\W|\W\w", line)))
    return [mark for mark in marks if re.search(r"[^\W\d_]", mark)]


def turn_lines(chat: Chat) -> list[str]:
    """Return the words that the chat template writes on a line of their own between turns, without tags or reserved tokens."""
    reserved = re.compile("|".join([_TURN_TAG.pattern, *map(re.escape, special_tokens(chat))]))
    lines: dict[str, None] = {}
    for _, between in _around_turns(chat):
        for segment in between:
            # The first and the last line belong to the content.
            whole = [line.rstrip() for line in segment.split("\n")[1:-1]]
            lines.update(dict.fromkeys(line for line in whole if 1 < len(line) <= _MAX_MARK and not reserved.search(line)))
    return [line for line in lines if re.fullmatch(r"[^\W_]+( [^\W_]+)*", line)]


def _around_turns(chat: Chat) -> Iterator[tuple[str, list[str]]]:
    """Yield (text before the first turn, texts after each turn) of conversations that the template supports."""
    conversations = [("user",), ("user", "assistant", "user"), *((role, "user") for role in _OTHER_ROLES)]
    conversations += [("user", "assistant", role, "user") for role in _OTHER_ROLES]
    for roles in conversations:
        if chat.supports(roles):
            text, words = chat.render_probe(roles)
            before, *between = re.split("|".join(words), text)
            yield before, between
