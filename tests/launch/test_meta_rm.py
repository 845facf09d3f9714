"""`rlsys meta-rm`, end to end: from trajectory tables and preference rows to a model that transformers loads, and a report."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import kill_rlsys_when, run_rlsys
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.loops.scalar import train_scalar
from rlsys.config.files import load_config
from rlsys.config.schema import Config, ConfigError
from rlsys.data.trajectories import TRAJECTORIES
from rlsys.io.metrics import MetricsLog
from rlsys.models.scalar import Group, load_scalar_model, score_texts

CONFIG = Path(__file__).resolve().parents[2] / "launch" / "configs" / "meta-rm-tiny.yaml"


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory) -> Path:
    """Critiques of 90 rows, 4 each: a right one finds the fault, a wrong one misses it; some did not parse, some were hinted."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(90):
        prompt = f"<|im_start|>user\nWhich response to query {i} is better?<|im_end|>\n<|im_start|>assistant\n"
        for sample in range(4):
            correct = bool(generator.random() < 0.6)
            verdict = "it states the right result" if correct else "it misses the point"
            row = {"prompt_id": f"row-{i}", "prompt": prompt, "sample": sample, "correct": correct, "hinted": sample == 3 and i % 9 == 0}
            failure = "no_box" if sample == 2 and i % 10 == 0 else None
            text = f"Analysis: Response {generator.integers(1, 4)}: {verdict}. Scores: \\boxed{{{generator.integers(1, 10)}, 2}}"
            rows.append(row | {"text": text, "parse_failure": failure, "correct": correct and failure is None})
    path = tmp_path_factory.mktemp("trajectories") / "step_000001.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([*TRAJECTORIES, pa.field("hinted", pa.bool_())])), path)
    return path


def settings(run_dir: Path, model: Path, *overrides: str) -> Config:
    return load_config(CONFIG, [f"run.dir={run_dir}", "run.actor_timeout_s=1200", f"model.path={model}", *overrides])


def quiet() -> Console:
    return Console(file=open(os.devnull, "w"), force_terminal=False)


@pytest.fixture(scope="module")
def straight_run(ray_session, tiny_model, trajectories, tmp_path_factory):
    config = settings(tmp_path_factory.mktemp("straight") / "run", tiny_model, f"meta_rm.data=['{trajectories}']", "meta_rm.eval_every=8")
    return config, train_scalar(config, quiet())


def test_critiques_that_can_be_told_apart_are_reported_apart_on_rows_never_seen(straight_run):
    _, report = straight_run
    heldout = report.heldout.to_json()
    assert heldout["auc"]["value"] > 0.9 and heldout["auc_within_row"]["value"] > 0.9
    assert heldout["accuracy"]["value"] > max(heldout["base_rate"], 1 - heldout["base_rate"])
    assert heldout["brier"]["value"] < heldout["base_rate"] * (1 - heldout["base_rate"])


def test_the_report_accounts_for_every_sample(straight_run, trajectories):
    _, report = straight_run
    rows = pq.read_table(trajectories).to_pylist()
    hinted = sum(row["hinted"] for row in rows)
    failed = sum(row["parse_failure"] is not None for row in rows if not row["hinted"])
    data = report.data.to_json()
    account = data["account"]
    assert account.items() >= {"samples": 360, "hinted": hinted, "parse_failures": failed, "too_long": 0}.items() and hinted and failed
    assert account["samples"] == sum(count for name, count in account.items() if name != "samples")
    assert data["train"]["texts"] + data["heldout"]["texts"] == 360 - hinted - failed
    assert data["train"]["rows"] + data["heldout"]["rows"] == 90
    assert report.heldout.n == data["heldout"]["texts"]
    right = sum(row["correct"] for row in rows if not row["hinted"] and row["parse_failure"] is None)
    assert data["train"]["positive"] * data["train"]["texts"] + data["heldout"]["positive"] * data["heldout"]["texts"] == pytest.approx(
        right
    )
    assert report.encoded_share < 0.8  # prompts and their opening are encoded once


def test_the_folder_explains_itself(straight_run):
    config, report = straight_run
    folder = config.run.dir
    assert load_config(folder / "config.yaml") == config
    assert json.loads((folder / "report.json").read_text()) == report.to_json()
    metrics = MetricsLog.read(folder)
    assert [row["step"] for row in metrics] == list(range(1, report.steps + 1))
    assert metrics[-1]["loss"] < metrics[0]["loss"] and metrics[-1]["lr"] < metrics[0]["lr"]
    assert [row["step"] for row in metrics if "heldout_auc" in row] == list(range(8, report.steps, 8))
    assert (folder / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "logs").glob("learner-0.log"))


def test_the_model_folder_gives_the_reported_scores(straight_run, trajectories):
    config, _ = straight_run
    folder = config.run.dir / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    table = pq.read_table(config.run.dir / "heldout_scores.parquet").to_pylist()
    heldout = {row["prompt_id"] for row in table}
    asked = [
        row
        for row in pq.read_table(trajectories).to_pylist()
        if row["prompt_id"] in heldout and not row["hinted"] and row["parse_failure"] is None
    ]
    assert [(row["prompt_id"], row["label"]) for row in table] == [(row["prompt_id"], float(row["correct"])) for row in asked]
    with torch.no_grad():
        for row, scored in list(zip(asked, table))[:12]:
            ids = tokenizer(row["prompt"] + row["text"], return_tensors="pt", add_special_tokens=False)["input_ids"]
            assert model(ids).logits.item() == pytest.approx(scored["score"], abs=1e-4)


def test_a_complete_run_is_not_run_again(straight_run):
    config, report = straight_run
    assert train_scalar(config, quiet()) == report


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_killed_and_started_again_it_ends_at_the_same_weights(straight_run, tmp_path):
    """SIGKILL after a checkpoint; on one rank the rest of the run is the same arithmetic, bit for bit."""
    straight, report = straight_run
    keys = straight.model_dump(mode="json")
    folder = tmp_path / "killed"
    keys |= {"run": keys["run"] | {"dir": str(folder)}, "checkpoint": {"every": 3, "keep": 2}}
    (tmp_path / "config.yaml").write_text(json.dumps(keys))
    saved = folder / "checkpoints" / "step_000003" / "state.json"
    kill_rlsys_when(saved.exists, tmp_path / "first.log", "meta-rm", tmp_path / "config.yaml")
    assert not (folder / "report.json").exists(), "the run ended before it could be killed"
    resumed = train_scalar(load_config(tmp_path / "config.yaml"), quiet())
    assert resumed.steps == report.steps and [row["step"] for row in MetricsLog.read(folder)] == list(range(1, report.steps + 1))
    ours, theirs = weights(folder / "model"), weights(straight.run.dir / "model")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.heldout == report.heldout


def test_bradley_terry_on_generated_tasks_by_two_ranks(ray_session, tiny_model, tmp_path):
    """A response that holds the wanted word against one that does not: a start is enough to be above chance on fresh rows."""
    config = settings(
        tmp_path / "run", tiny_model, "meta_rm.objective=bt", "meta_rm.rows=240", "meta_rm.epochs=2", "data.families=[letter_case]",
        "data.heldout_rows=120", "learner.ranks=2", "learner.zero_stage=2",
    )  # fmt: skip
    report = train_scalar(config, quiet())
    assert report.heldout.base_rate == 0.5 and report.heldout.rows == 120
    assert report.heldout.pairwise_accuracy.ci95[0] > 0.5
    assert report.data.train.positive == 0.5
    model = load_scalar_model(config.run.dir / "model", torch.float32)
    assert model.model.config.rlsys_objective == "bt"
    assert np.isfinite(score_texts(model, [Group("", np.array([5, 6], np.int32), (np.array([7], np.int32),), (0.0,))], 64)).all()


def test_the_command_prints_one_json_document(straight_run, tmp_path):
    config, report = straight_run
    arguments = [str(CONFIG), f"run.dir={config.run.dir}", "run.actor_timeout_s=1200", f"model.path={config.model.path}"]
    arguments += [f"meta_rm.data={json.dumps(config.meta_rm.data)}", "meta_rm.eval_every=8", "--json"]
    result = run_rlsys("meta-rm", *arguments, timeout_s=1200)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == report.to_json()
    assert "ROC-AUC within a row" in result.stderr


def test_bradley_terry_wants_packing(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="set learner.packing=true"):
        train_scalar(settings(tmp_path / "run", tiny_model, "meta_rm.objective=bt", "learner.packing=false"), quiet())
    assert not (tmp_path / "run").exists()
