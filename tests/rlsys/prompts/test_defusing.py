"""The sign that marks are broken up with: none that a mark, a turn or a token has in it, as that could put one together again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from chat_templates import STYLES, tokenizer_of

from rlsys.prompts.chat import Chat
from rlsys.prompts.defusing import Defuser

DOT, BAR, POINT = "·¦‧"
"""The signs in the order in which they are tried."""
PLAIN = STYLES["chatml"]


def reserving(*tokens: str) -> Chat:
    """A tokenizer that reserves further tokens."""
    return Chat(tokenizer_of(replace(PLAIN, special=(*PLAIN.special, *tokens))))


def writing(mark: str) -> Chat:
    """A chat template that writes a mark in plain text behind every turn."""
    return Chat(tokenizer_of(replace(PLAIN, template=PLAIN.template.replace("<|im_end|>", f"<|im_end|>{mark}"))))


def test_the_first_sign_is_taken_where_nothing_has_it() -> None:
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
def test_a_sign_that_stands_in_a_mark_a_turn_or_a_token_is_passed_over(marks: list[str], chat: Chat, guard: str) -> None:
    defuse = Defuser(marks, chat)
    assert defuse.guard == guard
    for mark in (marks[0].replace("#", "7"), "<|im_start|>", "\\boxed"):
        assert defuse(f"a {mark} b") == f"a {mark[0]}{guard}{mark[1:]} b"


def test_a_mark_that_a_sign_would_put_together_stays_apart() -> None:
    """`<>`, broken up by the dot that stands in the other mark, would be that other mark."""
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
def test_where_no_sign_is_left_the_template_is_refused(marks: list[str], chat: Chat) -> None:
    with pytest.raises(ValueError, match="needs one that they do not contain"):
        Defuser(marks, chat)
