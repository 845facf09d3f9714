"""Chat templates of many families: conversations that each supports, adapts or rejects, and the token that ends a turn."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from chat_templates import STYLES, tokenizer_of

from rlsys.config.sources import Data
from rlsys.data.batches import completion, prompt_completion_examples
from rlsys.data.datasets import open_rows
from rlsys.data.instructions import instruction_examples
from rlsys.data.mixtures import Mixture, MixturePart
from rlsys.data.readers import DataError
from rlsys.data.records import Record
from rlsys.data.sampler import Sampler
from rlsys.data.scalar_data import read_preferences
from rlsys.models.scalar import Group
from rlsys.prompts.chat import Chat, ChatError
from rlsys.prompts.rendering import Prompter

ROLES = ("system", "developer", "user", "assistant", "tool")


@pytest.fixture(scope="module")
def chats() -> dict[str, Chat]:
    return {name: Chat(tokenizer_of(style)) for name, style in STYLES.items()}


def talk(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"turn{i} of the {role}"} for i, role in enumerate(roles)]


@pytest.mark.parametrize("style", STYLES)
def test_every_conversation_is_rendered_completely_or_rejected(chats, style: str) -> None:
    for length in (1, 2, 3, 4):
        for roles in product(ROLES, repeat=length):
            messages = talk(*roles)
            try:
                text = chats[style].render(messages)
            except ChatError as error:
                assert style in ("gemma", "llama2") and "assistant" in roles and "does not support conversations" in str(error)
                continue
            places = [text.index(message["content"]) for message in messages]
            assert places == sorted(places), (roles, text)


@pytest.mark.parametrize("style", ["gemma", "llama2"])
def test_a_conversation_that_starts_with_a_user_is_never_rejected(chats, style: str) -> None:
    for length in (0, 1, 2, 3):
        for rest in product(ROLES, repeat=length):
            messages = talk("user", *rest)
            text = chats[style].render(messages)
            assert all(message["content"] in text for message in messages)


def test_supported_conversations_are_rendered_unchanged(chats) -> None:
    messages = talk("system", "user", "assistant", "tool", "user")
    expected = "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages) + "<|im_start|>assistant\n"
    assert chats["chatml"].render(messages) == expected


def test_system_text_moves_into_the_first_user_turn_and_consecutive_turns_are_merged(chats) -> None:
    text = chats["gemma"].render(talk("system", "user", "user", "assistant", "developer", "user"))
    assert text == (
        "<bos><start_of_turn>user\nturn0 of the system\n\nturn1 of the user\n\nturn2 of the user<end_of_turn>\n"
        "<start_of_turn>model\nturn3 of the assistant<end_of_turn>\n"
        "<start_of_turn>user\nturn4 of the developer\n\nturn5 of the user<end_of_turn>\n<start_of_turn>model\n"
    )


def test_a_role_that_the_template_drops_becomes_a_user_turn(chats) -> None:
    text = chats["phi3"].render(talk("user", "assistant", "tool"))
    assert text.endswith("<|user|>\ntool:\nturn2 of the tool<|end|>\n<|assistant|>\n")
    assert "turn1 of the tool" in chats["vicuna"].render(talk("user", "tool"))


def test_a_later_system_turn_leaves_the_first_one_unchanged(chats) -> None:
    text = chats["llama2"].render(talk("system", "user", "assistant", "system", "user"))
    assert "<<SYS>>\nturn0 of the system\n<</SYS>>" in text and "[INST] turn3 of the system\n\nturn4 of the user [/INST]" in text


def test_a_conversation_that_starts_with_the_assistant_is_rejected_if_unsupported(chats) -> None:
    with pytest.raises(ChatError, match="does not support conversations of assistant, user .*alternate"):
        chats["gemma"].render(talk("assistant", "user"))
    assert "turn0" in chats["chatml"].render(talk("assistant", "user"))


# --- the end of a turn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_the_end_of_turn_token_comes_from_the_template(chats, style: str) -> None:
    chat, known = chats[style], STYLES[style]
    assert chat.tokenizer.convert_ids_to_tokens(chat.end) == known.end
    # The first closes the thought that the template opens.
    openings = {"thinking": "\n</think>\n\n", "channels": "<|channel|>final<|message|>", "llama2": " ", "vicuna": " ", "deepseek": " "}
    opening = openings.get(style, "")
    assert chat.tokenizer.decode(completion(chat, "fine")) == f"{opening}fine{known.end}"


@pytest.mark.parametrize("style", STYLES)
def test_a_training_row_is_a_turn_as_rendered_by_the_template(chats, style: str) -> None:
    chat = chats[style]
    whole = chat.render([*talk("user"), {"role": "assistant", "content": "fine"}], add_generation_prompt=False)
    learned = chat.render(talk("user")) + chat.opening + "fine" + STYLES[style].end
    opened = "<think>\n" if style == "thinking" else ""  # what was thought is not shown later
    if style == "alpaca":  # whose template writes no end
        learned = learned.removesuffix(STYLES[style].end)
    assert "".join(whole.split()).startswith("".join(learned.replace(opened, "").split()))


def test_a_tokenizer_without_reserved_and_eos_tokens_is_rejected() -> None:
    tokenizer = tokenizer_of(STYLES["alpaca"])
    tokenizer.eos_token = None
    with pytest.raises(ChatError, match="no eos_token"):
        _ = Chat(tokenizer).end


def test_an_answer_closes_the_thought_that_the_template_opens() -> None:
    tokenizer = tokenizer_of(STYLES["thinking"])
    chat, quiet = Chat(tokenizer), Chat(tokenizer, {"enable_thinking": False})
    assert (chat.thought, quiet.thought) == ("<think>", "")
    assert chat.answer("Oak.") == "\n</think>\n\nOak." and chat.answer("Hm.</think>Oak.") == "Hm.</think>Oak."
    assert quiet.answer("Oak.") == "Oak."


def test_an_answer_starts_with_the_text_that_the_template_writes() -> None:
    channels, vicuna = Chat(tokenizer_of(STYLES["channels"])), Chat(tokenizer_of(STYLES["vicuna"]))
    assert channels.answer("Oak.") == "<|channel|>final<|message|>Oak."
    drafted = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Oak."
    assert channels.answer(drafted) == drafted and vicuna.answer(" Oak.") == " Oak."


# --- what the template is given ----------------------------------------------------------------------------------


def test_template_arguments_apply_everywhere() -> None:
    tokenizer = tokenizer_of(STYLES["thinking"])
    record = Record("r", "s", ({"role": "user", "content": "q"},), ("a", "b"), (1.0, 0.0))
    plain, quiet = Prompter(tokenizer), Prompter(tokenizer, template_args={"enable_thinking": False})
    assert plain.render(record, (0, 1)).endswith("assistant\n<think>\n")
    assert quiet.render(record, (0, 1)).endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(quiet.tokens(record, (0, 1))) == quiet.render(record, (0, 1))


@pytest.mark.parametrize("name", ["enable_thinkin", "tokenize", "messages"])
def test_an_argument_that_the_template_does_not_use_is_rejected(name: str) -> None:
    with pytest.raises(ChatError, match=f"chat_template_args.*does not use '{name}'"):
        Chat(tokenizer_of(STYLES["thinking"]), {name: False})


def test_unusable_templates_are_rejected() -> None:
    tokenizer = tokenizer_of(STYLES["chatml"])
    for template, message in (
        (None, "no chat template"),
        ("hello", "does not render a user turn"),
        ("{% for m in %}", "does not render a user turn"),
        ({"rag": "{{ messages }}"}, "chat template"),
    ):
        tokenizer.chat_template = template
        with pytest.raises(ChatError, match=message):
            Chat(tokenizer)


# --- rows that cannot be shown ------------------------------------------------------------------------------------


def test_rows_with_a_system_turn_are_used_for_training_and_others_counted(tmp_path: Path) -> None:
    chat = Chat(tokenizer_of(STYLES["gemma"]))
    good = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "A bird?"}, {"role": "assistant", "content": "Owl."}]
    refused = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (good, refused, good)))
    rows, counts = instruction_examples(path, 2, chat, Data(), 0, 500)
    assert counts == {"too_long": 0, "refused": 1} and len(rows) == 2
    shown = chat.tokenizer.decode(rows[0].prompt_token_ids + rows[0].token_ids)
    assert shown == "<bos><start_of_turn>user\nBe short.\n\nA bird?<end_of_turn>\n<start_of_turn>model\nOwl.<end_of_turn>"
    with pytest.raises(DataError, match="expected 3 conversations.*1 were refused: .*does not support conversations of assistant"):
        instruction_examples(path, 3, chat, Data(), 0, 500)


def test_preference_rows_with_a_system_turn_are_used_and_others_counted(tmp_path: Path) -> None:
    prompter, path = Prompter(tokenizer_of(STYLES["gemma"])), tmp_path / "rows.jsonl"
    contexts = (("system", "user"), ("assistant", "user"), ("user", "assistant", "user"))
    rows = [json.dumps(Record(str(i), "s", tuple(talk(*roles)), ("a", "b"), (1.0, 0.0)).to_json()) for i, roles in enumerate(contexts)]

    def read(*lines: str) -> tuple[list[Group], dict[str, int]]:
        path.write_text("".join(line + "\n" for line in lines))
        found = open_rows(path, Data(), 0)
        return read_preferences(Mixture([MixturePart(str(path), found, Sampler(len(found), 0))]), prompter, 10, 1000)

    groups, counts = read(*rows)
    assert [group.id for group in groups] == ["0", "2"] and counts["refused"] == 1
    with pytest.raises(DataError, match="refused 1.*does not support conversations"):
        read(rows[1])


def test_a_completion_ends_with_the_templates_end_of_turn(tmp_path: Path) -> None:
    path = tmp_path / "sft.jsonl"
    path.write_text('{"prompt": "A tree?", "completion": "Oak."}\n')
    chat = Chat(tokenizer_of(STYLES["phi3"]))
    (row,) = prompt_completion_examples(path, 5, chat)
    assert chat.tokenizer.decode(row.prompt_token_ids + row.token_ids) == "<|user|>\nA tree?<|end|>\n<|assistant|>\nOak.<|end|>"
