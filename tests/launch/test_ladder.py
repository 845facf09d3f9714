"""`rlsys ladder` end to end: every rung is present, its figures match its rows, and a second start repeats nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import ROOT, run_rlsys

from launch.commands.ladder import ladder

CONFIG = ROOT / "launch/configs/ladder-tiny.yaml"


@pytest.fixture(scope="module")
def settings(straight_run, tmp_path_factory) -> list[str]:
    """The tiny run's model is at the bottom: it writes scores already, so a short primer is enough."""
    folder, model = tmp_path_factory.mktemp("ladder") / "run", straight_run[0].run.dir
    return [f"run.dir={folder}", f"model.path={model}", "ladder.primer_rows=64", "data.heldout_rows=4", "ladder.ablations=[]"]


@pytest.fixture(scope="module")
def finished_ladder(settings) -> Path:
    ladder(CONFIG, settings)
    return Path(settings[0].removeprefix("run.dir="))


def test_every_rung_has_an_interval_and_a_difference(finished_ladder):
    document = json.loads((finished_ladder / "ladder.json").read_text())
    names = [rung["name"] for rung in document["rungs"]]
    votes = ["vote@1", "vote@2", "vote@4", "meta@2", "meta@4"]
    assert names == ["base", "base@1", "rft", "rft@1", "rl", *votes, "bt"]
    assert document["n"] == 12
    for rung in document["rungs"]:
        assert 0 <= rung["value"] <= 1 and rung["ci95"] is None, "twelve rows are too few for a mean"
        assert (rung["minus_previous"] is None) == (rung["name"] in ("base", "base@1"))
    # The same samples, scored by the benchmark's own rule, which breaks ties at random where they are shared out here.
    evaluated = json.loads((finished_ladder / "eval-rl" / "eval.json").read_text())["benchmarks"]["format:rlsys"]
    by_name = {rung["name"]: rung["value"] for rung in document["rungs"]}
    for k in (1, 2, 4):
        assert by_name[f"vote@{k}"] == pytest.approx(evaluated["strategies"]["vote"][str(k)]["overall"]["value"], abs=0.1)
    assert max(by_name[name] for name in names if name != "bt") > 0
    page = (finished_ladder / "page.html").read_text()
    assert "vote@4" in page and "Bradley-Terry" in page


def test_no_stage_has_seen_the_test_rows(finished_ladder):
    tested = {json.loads(line)["id"] for line in (finished_ladder / "test.jsonl").read_text().splitlines()}
    seen = set()
    for table in finished_ladder.glob("*/trajectories/*.parquet"):
        seen |= set(pq.read_table(table, columns=["prompt_id"])["prompt_id"].to_pylist())
    assert len(tested) == 12 and seen and not tested & seen


def test_second_start_repeats_nothing(finished_ladder, settings):
    before = {path: path.stat().st_mtime_ns for path in finished_ladder.rglob("model.safetensors")}
    document = (finished_ladder / "ladder.json").read_text()
    ended = run_rlsys("ladder", CONFIG, *settings)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in finished_ladder.rglob("model.safetensors")} == before
    assert (finished_ladder / "ladder.json").read_text() == document


@pytest.mark.nightly
def test_an_ablation_can_be_added_to_a_finished_ladder(finished_ladder, settings):
    ladder(CONFIG, [*settings[:-1], "ladder.ablations=[principles]"])
    rungs = json.loads((finished_ladder / "ladder.json").read_text())["rungs"]
    assert [(rung["name"], rung["ablation"]) for rung in rungs][-2:] == [("bt", False), ("rft-without-principles", True)]
    asked = pq.read_table(finished_ladder / "rft-without-principles" / "trajectories" / "rft_round_1.parquet")["prompt"].to_pylist()
    assert not any("Criteria" in prompt for prompt in asked)
