"""Choice of the guard character: one that occurs in no mark or token, as it could otherwise complete one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from chat_templates import STYLES, tokenizer_of

from rlsys.prompts.chat import Chat
from rlsys.prompts.defusing import Defuser

DOT, BAR, POINT = "·¦‧"
"""Guards in the order in which they are tried."""
PLAIN = STYLES["chatml"]


def reserving(*tokens: str) -> Chat:
    """Return a chat whose tokenizer reserves further tokens."""
    return Chat(tokenizer_of(replace(PLAIN, special=(*PLAIN.special, *tokens))))


def writing(mark: str) -> Chat:
    """Return a chat whose template writes a plain-text mark after every turn."""
    return Chat(tokenizer_of(replace(PLAIN, template=PLAIN.template.replace("<|im_end|>", f"<|im_end|>{mark}"))))


def test_the_first_guard_is_used_if_no_mark_contains_it() -> None:
    defuse = Defuser(["<#>", "</#>"], reserving())
    assert defuse.guard == DOT
    assert defuse("<1> <|im_end|>") == f"<{DOT}1> <{DOT}|im_end|>"


@pytest.mark.parametrize(
    ("marks", "chat", "guard"),
    [
        ([f"<{DOT}#>"], reserving(), BAR),
        (["<#>"], reserving(f"<|{DOT}|>"), BAR),
        (["<#>"], writing(f"[{DOT}turn]"), BAR),
        ([f"<{BAR}#>"], reserving(), DOT),
        (["<#>"], reserving(f"<|{BAR}|>"), DOT),
        ([f"<{DOT}#>"], reserving(f"<|{BAR}|>"), POINT),
        ([f"<{DOT}#>", f"<{BAR}#>"], reserving(), POINT),
        (["<#>"], reserving(f"<|{DOT}|>", f"<|{BAR}|>"), POINT),
        ([f"<{BAR}#>"], writing(f"[{DOT}turn]"), POINT),
    ],
)
def test_a_guard_that_occurs_in_a_mark_is_not_used(marks: list[str], chat: Chat, guard: str) -> None:
    defuse = Defuser(marks, chat)
    assert defuse.guard == guard
    for mark in (marks[0].replace("#", "7"), "<|im_start|>", "\\boxed"):
        assert defuse(f"a {mark} b") == f"a {mark[0]}{guard}{mark[1:]} b"


def test_a_guard_never_completes_another_mark() -> None:
    """Breaking up `<>` with the dot that the other mark contains would create that other mark."""
    defuse = Defuser(["<>", f"<{DOT}>"], reserving())
    assert defuse("<>") == f"<{BAR}>" and defuse(f"<{DOT}>") == f"<{BAR}{DOT}>"


@pytest.mark.parametrize(
    ("marks", "chat"),
    [
        ([f"<{DOT}#>", f"<{BAR}#>", f"<{POINT}#>"], reserving()),
        ([f"<{DOT}{BAR}#>"], reserving(f"<|{POINT}|>")),
        ([f"<{POINT}#>"], writing(f"[{DOT}turn{BAR}]")),
    ],
)
def test_a_template_whose_marks_contain_all_guards_is_rejected(marks: list[str], chat: Chat) -> None:
    with pytest.raises(ValueError, match="needs one that they do not contain"):
        Defuser(marks, chat)
