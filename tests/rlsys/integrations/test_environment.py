"""Judging as a task for other trainers: the prompts and rewards of ours."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from rlsys.data.readers import DataError
from rlsys.data.tasks import generate
from rlsys.integrations.environment import judging_tasks, write_nemo_gym_rows
from rlsys.prompts.rendering import Prompter, worked_text
from rlsys.rewards.rules import is_correct


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    records = list(generate("train", 12, seed=1, responses=(1, 2, 4)))
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))
    return file, records


def test_prompts_and_rewards_are_those_of_training(rows, tiny_model):
    file, records = rows
    prompter = Prompter(AutoTokenizer.from_pretrained(tiny_model), "compact")
    tasks = list(judging_tasks(file, "rlsys", tiny_model, template="compact", seed=3))
    assert len(tasks) == len(records) == 12
    for task, record in zip(tasks, records, strict=True):
        assert task.prompt == prompter.user_turn(record, task.order) and sorted(task.order) == list(range(record.n))
        taught = worked_text(record, task.order)
        assert task.judge(taught).reward == 1.0 and task.judge(taught).scores == record.worked.scores
        assert is_correct(record.worked.scores, task.rewards)
        assert task.judge(taught, truncated=True).reward == -1.0 and task.judge("no box").failure == "no_box"
    assert any(task.order != tuple(range(len(task.order))) for task in tasks)
    assert tasks == list(judging_tasks(file, "rlsys", tiny_model, template="compact", seed=3))
    assert tasks != list(judging_tasks(file, "rlsys", tiny_model, template="compact", seed=4))


def test_rows_for_nemo_gym(rows, tiny_model, tmp_path):
    file, records = rows
    assert write_nemo_gym_rows(tmp_path / "out.jsonl", file, "rlsys", tiny_model) == 12
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["judging"]["id"] for line in lines] == [record.id for record in records]
    assert [line["judging"]["rewards"] for line in lines] == [list(record.rewards) for record in records]
    prompts = [line["responses_create_params"]["input"][0]["content"] for line in lines]
    assert prompts == [task.prompt for task in judging_tasks(file, "rlsys", tiny_model)]


def test_unusable_files_are_named(tiny_model, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q"}\n')
    with pytest.raises(DataError, match="row 2.*chosen"):
        list(judging_tasks(file, "trl_preference", tiny_model))
