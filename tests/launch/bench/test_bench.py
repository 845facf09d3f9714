"""`rlsys bench step`: it does the work that was asked for, whole, and its figures add up. How fast is no matter for a test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.bench.step import PHASES, render, summarise
from launch.bench.work import TRAIN_PARTS, Work, choose_cores, prompt_texts
from launch.console import UserError

SHAPE = ("--prompts", 2, "--samples", 4, "--prompt-tokens", 50, "--output-tokens", 9, "--repeats", 2)


def check_system(system: dict, phases: tuple[str, ...], asks_late: bool) -> None:
    assert len(system["steps"]) == 3
    for number, step in enumerate(system["steps"]):
        assert (step["samples"], step["prompt_tokens"], step["output_tokens"]) == (8, [50], [9])
        seconds = step["seconds"]
        assert set(seconds) == {*phases, "whole"} and min(seconds.values()) > 0
        parts = sum(seconds[phase] for phase in phases)
        assert parts <= seconds["whole"] + 1e-9
        assert set(step["train_seconds"]) == set(TRAIN_PARTS)
        # Until the first update our reference is the policy, and is not asked.
        unasked = {"reference"} if asks_late and number == 0 else set()
        assert {name for name, value in step["train_seconds"].items() if value == 0} == unasked and min(step["train_seconds"].values()) >= 0
        assert sum(step["train_seconds"].values()) <= seconds["train"]
    wholes = [step["seconds"]["whole"] for step in system["steps"]]
    assert system["first"]["seconds"]["whole"] == wholes[0]
    assert system["best"]["seconds"]["whole"] == min(wholes[1:])
    assert system["median"]["seconds"]["whole"] == pytest.approx(sum(wholes[1:]) / 2)
    assert system["tokens_per_s"]["generate"] == pytest.approx(8 * 9 / system["median"]["seconds"]["generate"])
    assert system["tokens_per_s"]["whole"] == pytest.approx(8 * (50 + 9) / system["median"]["seconds"]["whole"])


def test_whole_steps_of_the_shape_that_was_asked_for(bench, all_cores, tiny_bench_model: Path) -> None:
    overrides = ("model.dtype=float32", "rollout.kv_cache_gib=0.25", "weights.verify=true")
    document = bench("step", "--model", tiny_bench_model, *all_cores, *SHAPE, *overrides)
    assert document["work"]["cores"] == choose_cores(all_cores[1])
    assert set(document["systems"]) == {"rlsys"} and "times_as_fast_as_trl" not in document
    ours = document["systems"]["rlsys"]
    check_system(ours, PHASES, asks_late=True)
    # Each prompt is encoded once for its four samples.
    assert ours["steps"][0]["encoded_tokens"] < 8 * (50 + 9)
    assert ours["settings"]["dtype"] == "float32"
    floors = ours["floors"]
    assert 0 < floors["train"] < ours["median"]["seconds"]["train"]
    assert floors["generate"] >= max(floors["generate_arithmetic"], floors["generate_memory"]) > 0
    # Weights moved: another step on other samples has another loss.
    assert len({step["loss"] for step in ours["steps"]}) == 3


@pytest.mark.nightly
def test_the_same_work_in_trl(all_cores, tiny_bench_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is an optional extra: pip install 'rlsys[bench]'")
    from launch.bench.runner import run_system
    from launch.console import to_stderr

    work = Work(2, 4, 50, 9, choose_cores(all_cores[1]), 2, ["model.dtype=float32"], str(tiny_bench_model))
    theirs = run_system("TRL", "launch.bench.trl", work, 1800, to_stderr())
    document = summarise(work, 0.0, {"trl": theirs, "rlsys": theirs | {"floors": {}}})
    check_system(document["systems"]["trl"], ("generate", "judge", "train"), asks_late=False)
    assert document["times_as_fast_as_trl"] == {"whole": 1.0, "train": 1.0, "generate": 1.0}
    assert theirs["system"].startswith("TRL ") and theirs["settings"]["dtype"] == "float32" and theirs["settings"]["beta"] > 0
    assert len(render(document).renderables) == 5


def test_prompts_have_exactly_the_length_and_nothing_in_common(tiny_bench_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bench_model)
    for tokens in (16, 50, 337):
        texts = prompt_texts(tokenizer, 3, 4, tokens)
        ids = [tokenizer(text)["input_ids"] for text in texts]
        assert [len(row) for row in ids] == [tokens] * 4
        assert len({row[0] for row in ids}) == 4
    assert prompt_texts(tokenizer, 4, 1, 50) == prompt_texts(tokenizer, 3, 2, 50)[1:]


def test_more_cores_than_there_are_is_the_persons_mistake() -> None:
    with pytest.raises(UserError, match="--cores 4096"):
        choose_cores(4096)
    assert set(choose_cores(1)) <= os.sched_getaffinity(0)


def test_a_failed_process_is_quoted(run_bench, tmp_path: Path) -> None:
    result = run_bench("step", "--model", tmp_path / "absent", *SHAPE)
    assert result.returncode == 1
    assert "error: our system failed" in result.stderr and "no such folder" in result.stderr
    assert "Traceback" not in result.stderr.split("error:")[0]


def test_a_wrong_setting_is_reported_before_anything_starts(run_bench, tiny_bench_model: Path) -> None:
    result = run_bench("step", "--model", tiny_bench_model, "learner.pack=true")
    assert result.returncode == 2
    assert "learner.packing" in result.stderr
