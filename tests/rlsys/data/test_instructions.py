"""Instruction data for rejective fine-tuning: selection of conversations, accepted forms, and the training target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_templates import STYLES, tokenizer_of

from rlsys.config.sources import Data
from rlsys.data.chain import SupervisedExample
from rlsys.data.datasets import open_rows
from rlsys.data.instructions import instruction_examples
from rlsys.data.readers import DataError
from rlsys.prompts.chat import Chat


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(tokenizer_of(STYLES["chatml"]))


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def turns(*texts: str) -> dict:
    """A conversation that starts with a user turn."""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}


def shown(chat: Chat, row: SupervisedExample) -> tuple[str, str]:
    return chat.tokenizer.decode(row.prompt_token_ids), chat.tokenizer.decode(row.token_ids)


def test_only_the_last_answer_is_the_target(chat: Chat, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", turns("A tree?", "Oak.", "Another?", "Ash."), {"prompt": "A bird?", "completion": "Owl."})
    rows, counts = instruction_examples(path, 2, chat, Data(), 0, 1000)
    assert shown(chat, rows[0]) == (
        "<|im_start|>user\nA tree?<|im_end|>\n<|im_start|>assistant\nOak.<|im_end|>\n"
        "<|im_start|>user\nAnother?<|im_end|>\n<|im_start|>assistant\n",
        "Ash.<|im_end|>",
    )
    assert shown(chat, rows[1]) == ("<|im_start|>user\nA bird?<|im_end|>\n<|im_start|>assistant\n", "Owl.<|im_end|>")
    assert counts == {"too_long": 0, "refused": 0}


def test_both_forms_of_a_row_are_equivalent(chat: Chat, tmp_path: Path) -> None:
    messages = write(tmp_path / "messages.jsonl", turns("A tree?", "Oak."))
    pair = write(tmp_path / "pair.jsonl", {"prompt": "A tree?", "completion": "Oak."})
    assert instruction_examples(messages, 1, chat, Data(), 0, 1000) == instruction_examples(pair, 1, chat, Data(), 0, 1000)


def test_conversations_within_the_limit_are_selected(chat: Chat, tmp_path: Path) -> None:
    """Lengths 1 below, at and 1 above the limit; a long row in between is counted, one after the last row needed is not."""
    path = write(tmp_path / "rows.jsonl", *(turns("?", "x" * length) for length in (8, 10, 9, 30, 7, 30)))
    ((row,), _) = instruction_examples(path, 1, chat, Data(), 0, 1000)
    limit = len(row.prompt_token_ids) + len(row.token_ids) + 1  # the length with an answer of 9 characters
    rows, counts = instruction_examples(path, 3, chat, Data(), 0, limit)
    assert [shown(chat, row)[1] for row in rows] == [f"{'x' * length}<|im_end|>" for length in (8, 9, 7)]
    assert counts == {"too_long": 2, "refused": 0}
    assert instruction_examples(path, 0, chat, Data(), 0, limit) == ([], {"too_long": 0, "refused": 0})
    with pytest.raises(DataError, match=rf"expected 4 conversations of at most {limit} tokens, found 3; lower rft.instruction_share\.$"):
        instruction_examples(path, 4, chat, Data(), 0, limit)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "Hi."}]}, "expected a conversation that ends with the assistant's answer"),
        ({"messages": [{"role": "assistant", "content": "Hi."}]}, "expected a conversation that ends with the assistant's answer"),
        (turns("A tree?", "Oak.", "Another?"), "expected a conversation that ends with the assistant's answer"),
        ({"prompt": "A tree?"}, "completion: expected text, found nothing"),
        ({"prompt": "A tree?", "completion": " "}, "completion: expected non-empty text"),
        ({"messages": "Hi."}, "messages: expected"),
        ({}, "prompt: expected text, found nothing"),
    ],
)
def test_row_of_another_form_is_located(chat: Chat, tmp_path: Path, row: dict, message: str) -> None:
    path = write(tmp_path / "rows.jsonl", turns("A tree?", "Oak."), row)
    with pytest.raises(DataError, match=message) as caught:
        instruction_examples(path, 2, chat, Data(), 0, 1000)
    assert (caught.value.file, caught.value.row) == (str(path), 2)


def test_rows_after_the_last_one_needed_are_not_read(chat: Chat, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", turns("A tree?", "Oak."), {"messages": "malformed"})
    rows, _ = instruction_examples(path, 1, chat, Data(), 0, 1000)
    assert [shown(chat, row)[1] for row in rows] == ["Oak.<|im_end|>"]


def test_best_response_of_a_task_is_the_answer(chat: Chat) -> None:
    data, seed = Data(), 5
    rows, counts = instruction_examples(Path("tasks:train"), 12, chat, data, seed, 1000)
    expected = []
    for record in open_rows(Path("tasks:train"), data, seed + 1):
        if len(record.responses) > 1 and len(expected) < 12:
            best = record.responses[record.rewards.index(max(record.rewards))]
            prompt = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in record.context)
            pair = f"{prompt}<|im_start|>assistant\n", f"{best}<|im_end|>"
            if len(chat.encode("".join(pair))) <= 1000:
                expected.append(pair)
        if len(expected) == 12:
            break
    assert [shown(chat, row) for row in rows] == expected and counts["refused"] == 0
    assert instruction_examples(Path("tasks:train"), 12, chat, data, seed, 1000)[0] == rows
    assert instruction_examples(Path("tasks:train"), 12, chat, data, seed + 1, 1000)[0] != rows
