"""What a prompt shows, read back from its text: the inverse of rendering it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.data.records import Record
from rlsys.prompts.reading import PromptReader, chat_turns
from rlsys.prompts.rendering import UserTurns

TURNS = {name: UserTurns(name) for name in ("compact", "pointwise")}
READERS = {name: PromptReader(turns) for name, turns in TURNS.items()}
PIECES = ["a", "\n", " ", "<1>", "</2>", "<turn user>", "[Begin of Response 1]", "[Turn: user]", ".", "\\boxed{1}"]
text = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@given(st.sampled_from(sorted(TURNS)), st.lists(text, min_size=1, max_size=4), st.lists(text, min_size=1, max_size=5), st.randoms())
def test_what_is_read_is_what_was_rendered(template, conversation, responses, random) -> None:
    """Whatever the contents hold: its marks are broken up in them, so that they cannot end a part."""
    turns = TURNS[template]
    roles = ["user" if place % 2 == 0 else "assistant" for place in range(len(conversation))]
    context = tuple({"role": role, "content": content} for role, content in zip(roles, conversation, strict=True))
    record = Record("r", "s", context, tuple(responses), tuple(map(float, range(len(responses)))))
    order = random.sample(range(len(responses)), len(responses))
    prompt = f"<|im_start|>user\n{turns.user_turn(record, order)}<|im_end|>\n<|im_start|>assistant\n"
    shown = READERS[template].read(prompt, len(responses))
    assert shown is not None
    assert shown.turns == [(role, turns.defuse(content)) for role, content in zip(roles, conversation, strict=True)]
    empty = {"compact": "<empty>", "pointwise": "[Empty Response]"}[template]
    assert shown.responses == [turns.defuse(responses[place]) if responses[place].strip() else empty for place in order]


def test_a_prompt_of_another_template_is_not_read() -> None:
    record = Record("r", "s", ({"role": "user", "content": "q"},), ("a", "b"), (0.0, 1.0))
    assert READERS["compact"].read(TURNS["pointwise"].user_turn(record, [0, 1]), 2) is None
    assert READERS["compact"].read(TURNS["compact"].user_turn(record, [0, 1]), 3) is None


@pytest.mark.parametrize(
    ("prompt", "turns"),
    [
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi\nthere<|im_end|>\n<|im_start|>assistant\n",
            [("system", "Be brief."), ("user", "Hi\nthere")],
        ),
        ("<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", [("user", "Hi")]),
        ("<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", [("user", "Hi")]),
        ("<s>[INST] Hi [/INST]", [("user", "Hi")]),
        ("Human: Hi", []),
    ],
)
def test_turns_of_common_chat_templates(prompt, turns) -> None:
    assert chat_turns(prompt) == turns
