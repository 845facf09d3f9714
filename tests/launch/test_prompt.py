"""`rlsys prompt`: what a row looks like filled in, requests for a teacher, and answers as rows for a cold start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import rlsys, rlsys_here
from transformers import AutoTokenizer

from rlsys.config.schema import Prompt
from rlsys.data.batches import prompt_completion_examples
from rlsys.data.readers import read
from rlsys.prompts.rendering import Prompter

COMPACT = "prompt.template=compact"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"id": f"r{i}", "prompt": f"The capital of country {i}?", "chosen": f"Oslo {i}", "rejected": f"Bergen {i}"} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prompt(pairs: Path, *options: object):
    return rlsys("prompt", pairs, "--format", "trl_preference", COMPACT, *options)


def test_text_chat_and_tokens_are_those_that_a_run_renders(pairs, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompter = Prompter.from_config(tokenizer, Prompt(template="compact"))
    record = list(read(pairs, "trl_preference"))[2]
    text = prompt(pairs, "--row", 3).stdout
    order = [0, 1] if text.index("Oslo 2") < text.index("Bergen 2") else [1, 0]
    assert text == prompter.user_turn(record, order) + "\n"
    hinted = prompt(pairs, "--row", 3, "--hint").stdout
    assert hinted.startswith(text.rstrip("\n")) and f"Response {order.index(0) + 1} is the best one" in hinted
    assert prompt(pairs, f"model.path={tiny_model}", "--row", 3, "--as", "chat").stdout == prompter.render(record, order) + "\n"
    tokens = prompt(pairs, f"model.path={tiny_model}", "--row", 3, "--as", "tokens").stdout
    assert [int(number) for number in re.findall(r'(\d+):"(?:[^"\\]|\\.)*"', tokens)] == prompter.tokens(record, order)


def answer_to(request: dict, text: str, **choice) -> dict:
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"} | choice]}
    return {"id": "batch", "custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}


def judgement(request: dict, right: bool = True) -> str:
    shown = request["body"]["messages"][0]["content"]
    first = (shown.index("Oslo") < shown.index("Bergen")) == right
    return f"<think>\\boxed{{1, 1}}</think>\nSpecific Criteria: x.\nScores: \\boxed{{{'9, 2' if first else '2, 9'}}}"


def test_answers_to_the_requests_become_the_rows_of_a_cold_start(pairs, tiny_model, tmp_path):
    options = ["--samples", 2, "--hint", "--seed", 5]
    asked = ["--as", "requests", "--teacher", "big", "--temperature", 0.7, "rollout.max_tokens=99"]
    made = prompt(pairs, *options, *asked, "-o", tmp_path / "q.jsonl")
    assert made.returncode == 0, made.stderr
    requests = lines(tmp_path / "q.jsonl")
    assert len({request["custom_id"] for request in requests}) == len(requests) == 8
    for request in requests:
        assert request["method"] == "POST" and request["url"] == "/v1/chat/completions"
        assert request["body"].keys() == {"model", "messages", "temperature", "max_tokens", "seed"}
        assert (request["body"]["model"], request["body"]["temperature"], request["body"]["max_tokens"]) == ("big", 0.7, 99)
        assert "Hint: Response" in request["body"]["messages"][0]["content"]
    answers = [answer_to(requests[i], judgement(requests[i])) for i in (0, 1)]
    answers += [answer_to(requests[2], judgement(requests[2], right=False)), answer_to(requests[3], "No scores.")]
    answers += [answer_to(requests[4], judgement(requests[4]), finish_reason="length")]
    answers += [{"custom_id": requests[5]["custom_id"], "response": {"status_code": 500, "body": {}}, "error": None}]
    answers += [{"custom_id": requests[6]["custom_id"], "completion": judgement(requests[6])}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in reversed(answers)))
    back = prompt(pairs, *options, "--completions", tmp_path / "a.jsonl", "-o", tmp_path / "sft.jsonl", "--json")
    assert back.returncode == 0, back.stderr
    lost = ["incorrect", "parse failure: no_box", "parse failure: truncated", "no answer: the endpoint failed", "no answer"]
    assert json.loads(back.stdout)["outcomes"] == {"kept": 3} | dict.fromkeys(lost, 1)
    rows = lines(tmp_path / "sft.jsonl")
    assert [row["id"] for row in rows] == ["r0", "r0", "r3"]
    assert all("Hint" not in row["prompt"] and "<think>" not in row["completion"] for row in rows)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompter = Prompter.from_config(tokenizer, Prompt(template="compact"))
    records = {record.id: record for record in read(pairs, "trl_preference")}
    rendered = {tuple(prompter.tokens(records[row["id"]], order)) for row in rows for order in ([0, 1], [1, 0])}
    for example in prompt_completion_examples(tmp_path / "sft.jsonl", 10, prompter.chat):
        assert tuple(example.prompt_token_ids) in rendered, "sft.data trains on exactly the prompts of a run"


@pytest.mark.nightly
def test_vllm_answers_the_requests_of_a_batch_file(pairs, tiny_model, tmp_path):
    """Its own `run-batch` reads what we write, and we read what it writes; this untrained model never answers in the form."""
    prompt(pairs, "--as", "requests", "--samples", 2, "--teacher", tiny_model, "rollout.max_tokens=8", "-o", tmp_path / "q.jsonl")
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "run-batch", "-i", tmp_path / "q.jsonl", "-o", tmp_path / "a.jsonl"]
    command += ["--model", tiny_model, "--max-model-len", "1024", "--enforce-eager"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=800)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert {answer["custom_id"] for answer in lines(tmp_path / "a.jsonl")} == {line["custom_id"] for line in lines(tmp_path / "q.jsonl")}
    back = prompt(pairs, "--samples", 2, "--completions", tmp_path / "a.jsonl", "-o", tmp_path / "sft.jsonl", "--json")
    outcomes = json.loads(back.stdout)["outcomes"]
    assert back.returncode == 1 and sum(outcomes.values()) == 8 and all(name.startswith("parse failure") for name in outcomes)


def test_answers_without_a_ground_truth_only_have_to_parse(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "x", "prompt": "q", "responses": ["Oslo", "Bergen", "Narvik"]}) + "\n")
    options = ["prompt", rows, "--format", "responses", COMPACT]
    (request,) = [json.loads(line) for line in rlsys_here(*options, "--as", "requests", "--teacher", "t").stdout.splitlines()]
    (tmp_path / "a.jsonl").write_text(json.dumps(answer_to(request, "\\boxed{3, 3, 8}")) + "\n")
    back = rlsys_here(*options, "--completions", tmp_path / "a.jsonl")
    assert json.loads(back.stdout.splitlines()[0])["completion"] == "\\boxed{3, 3, 8}"


def test_answers_to_other_requests_are_refused(pairs, tmp_path):
    prompt(pairs, "--as", "requests", "--teacher", "t", "-o", tmp_path / "q.jsonl")
    answers = [answer_to(request, judgement(request)) for request in lines(tmp_path / "q.jsonl")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    for options in (["--seed", 1], ["--hint"], ["prompt.principles=false"]):
        result = prompt(pairs, *options, "--completions", tmp_path / "a.jsonl", "-o", tmp_path / "sft.jsonl")
        assert result.returncode == 2 and "answers belong to none of the requests" in " ".join(result.stderr.split())
        assert not (tmp_path / "sft.jsonl").exists()


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"custom_id": 3}, "custom_id: expected the id of a request"),
        ({"custom_id": "a", "response": {"body": {}}}, "expected {"),
        ({"custom_id": "a", "completion": 3}, "expected {"),
    ],
)
def test_a_malformed_answer_is_named(pairs, tmp_path, row, expected):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    result = prompt(pairs, "--completions", tmp_path / "a.jsonl")
    assert result.returncode == 2 and expected in result.stderr and "row 1" in result.stderr


def test_a_row_that_is_not_there(pairs):
    assert "name the teacher's model" in prompt(pairs, "--as", "requests").stderr
    result = prompt(pairs, "--row", 9)
    assert result.returncode == 2 and "4 usable rows" in result.stderr
