"""The main job, end to end, on real parts: Ray actors, vLLM engines, DeepSpeed learners, a tiny real model.

The tiny model learns little more than the output format; tested are that the job runs, that its counts add up, and exact resumption.
"""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from commands import ROOT, kill_rlsys_when, rlsys_here
from transformers import AutoModelForCausalLM

from actors.loops.rl import train
from rlsys.algorithms.mismatch import MismatchError
from rlsys.config.files import load_config
from rlsys.data.datasets import open_rows
from rlsys.data.trajectories import TRAJECTORIES
from rlsys.io.metrics import MetricsLog
from rlsys.io.progress import read_progress
from rlsys.rewards.rules import judge

REAL_DATA = Path(os.environ.get("RLSYS_REAL_DATA", "../shared/data"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_a_run_leaves_a_folder_that_explains_itself(straight_run):
    config, summary = straight_run
    folder = config.run.dir
    assert load_config(folder / "config.yaml") == config
    assert json.loads((folder / "summary.json").read_text()) == summary.to_json()
    assert set(summary.heldout) == {"base", "cold_start", "rl"}
    for stage in summary.heldout.values():
        assert stage.n == 6 and -1 <= stage.reward <= 1
        assert stage.reward_ci95[0] <= stage.reward <= stage.reward_ci95[1]
    assert {"rl_minus_base", "rl_minus_cold_start"} <= set(summary.paired)
    assert {"chance", "first", "longer"} <= set(summary.baselines.to_json())
    assert summary.teacher == "programmatic"
    assert [row["step"] for row in MetricsLog.read(folder)] == [1, 2, 3]
    assert list((folder / "tensorboard").iterdir()) and list((folder / "logs").iterdir())


def test_every_sample_is_on_record_and_its_reward_can_be_worked_out_again(straight_run):
    config, _ = straight_run
    rows = open_rows(config.data.train, config.data, config.seed)
    trained = [row["groups_trained"] > 0 for row in MetricsLog.read(config.run.dir)]
    for step in (1, 2, 3):
        table = pq.read_table(config.run.dir / "trajectories" / f"step_{step:06d}.parquet")
        assert table.schema.names == TRAJECTORIES.names
        # The cold start produced version 1, and each step that trained anything the next one.
        assert set(table["weight_version"].to_pylist()) == {1 + sum(trained[: step - 1])}
        for row in table.to_pylist():
            record = rows[int(row["prompt_id"].split("-")[1])]
            assert record.id == row["prompt_id"]
            again = judge(row["text"], record.rewards, row["order"])
            assert (row["scores"], row["parse_failure"], row["correct"], row["reward"]) == (
                list(again.scores) if again.scores is not None else None,
                again.failure,
                again.correct,
                again.reward,
            )
            assert row["token_count"] <= 160
        by_group = {}
        for row in table.to_pylist():
            by_group.setdefault(row["group"], []).append(row)
        for group in by_group.values():
            assert len(group) == 4
            equal = len({row["reward"] for row in group}) == 1
            assert all((row["advantage"] == 0) == equal for row in group)
            assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-5)
            if not equal:
                # The trainer's and the engine's view of the same tokens under the same weights, fp32 on both sides.
                assert all(row["trainer_logprob"] == pytest.approx(row["rollout_logprob"], abs=1e-3) for row in group)


def test_the_model_was_checked_and_engine_and_trainer_agree(straight_run):
    config, _ = straight_run
    for rank in range(config.learner.ranks):
        check = json.loads((config.run.dir / "actors.json").read_text())[f"learner-{rank}"]["self_check"]
        assert check["logprob_error"] <= check["tolerance"]
    found = [row["mismatch"] for row in MetricsLog.read(config.run.dir) if row.get("mismatch") is not None]
    assert found and max(found) < config.rl.mismatch_float32 / 4


def test_a_run_stops_when_engine_and_trainer_do_not_agree(ray_session, tiny, quiet, tiny_model, tmp_path):
    """No rounding is below what is allowed here."""
    settings = ("sft.rows=0", "rl.equal_groups=train", "rl.mismatch_float32=1e-9", "rl.mismatch_steps=2", "rl.steps=3")
    config = tiny(tmp_path / "run", tiny_model, "data.heldout_rows=1", *settings)
    with pytest.raises(MismatchError, match="step 2: .* for 2 consecutive step"):
        train(config, quiet)
    assert [row["step"] for row in MetricsLog.read(config.run.dir)] == [1, 2]


def test_a_model_that_fails_its_self_check_is_one_line_and_nothing_else(ray_session, tiny_model, tmp_path):
    """Flex attention has no backward pass on a CPU."""
    settings = ["learner.attention=flex", f"model.path={tiny_model}", f"run.dir={tmp_path / 'run'}"]
    failed = rlsys_here("train", ROOT / "launch/configs/tiny.yaml", *settings)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr and "LlamaForCausalLM" in failed.stderr.splitlines()[-1]


def test_checkpoints_load_in_transformers_and_moved_from_the_cold_start(straight_run):
    config, _ = straight_run
    checkpoints = config.run.dir / "checkpoints"
    assert sorted(path.name for path in checkpoints.glob("step_*"))[-2:] == ["step_000002", "step_000003"]
    cold, final = weights(checkpoints / "cold_start" / "model"), weights(checkpoints / "step_000003" / "model")
    assert cold.keys() == final.keys()
    assert any(not torch.equal(cold[name], final[name]) for name in cold)
    rows = MetricsLog.read(config.run.dir)
    assert any(row["groups_trained"] > 0 and not row["skipped"] for row in rows)
    sizes = {bool(row["groups_trained"]): row["weight_bytes"] for row in rows}
    model = AutoModelForCausalLM.from_pretrained(checkpoints / "step_000003" / "model", dtype=torch.float32)
    assert sizes == sizes | {True: sum(parameter.nbytes for parameter in model.parameters())}
    assert sizes.get(False, 0) == 0


def test_a_complete_run_is_not_run_again(straight_run, quiet):
    config, summary = straight_run
    assert train(config, quiet) == summary


def comparable(folder: Path, step: int):
    table = pq.read_table(folder / "trajectories" / f"step_{step:06d}.parquet")
    return table.select(["prompt_id", "order", "prompt", "text", "group", "sample", "weight_version"]).to_pylist()


def test_killed_and_started_again_it_goes_on_exactly_as_it_would_have(straight_run, quiet, tmp_path):
    """SIGKILL in the middle of a step; the second start draws the same rows and samples, and ends at the same weights.

    An engine's rounding depends on which requests happen to share a batch, so a sampled token may differ once in a blue moon,
    and weights agree to rounding. (The learner alone resumes bit for bit: tests/actors/test_learner.py.)
    """
    straight, _ = straight_run
    folder = tmp_path / "killed"
    keys = straight.model_dump(mode="json")
    (tmp_path / "config.yaml").write_text(json.dumps(keys | {"run": keys["run"] | {"dir": str(folder)}}))
    saved = folder / "checkpoints" / "step_000001" / "state.json"
    kill_rlsys_when(saved.exists, tmp_path / "first.log", "train", tmp_path / "config.yaml")
    assert not (folder / "summary.json").exists(), "the run ended before it could be killed"
    resumed = load_config(tmp_path / "config.yaml")
    summary = train(resumed, quiet)
    assert summary.rl_steps == 3
    same_text = []
    for step in (2, 3):
        ours, theirs = comparable(folder, step), comparable(straight.run.dir, step)
        same_text += [mine.pop("text") == other.pop("text") for mine, other in zip(ours, theirs, strict=True)]
        assert ours == theirs
    assert np.mean(same_text) > 0.5
    if all(same_text):
        cold = weights(straight.run.dir / "checkpoints" / "cold_start" / "model")
        ours, theirs = (weights(path / "checkpoints" / "step_000003" / "model") for path in (folder, straight.run.dir))
        moved = sum(((theirs[name] - cold[name]) ** 2).sum() for name in cold) ** 0.5
        apart = sum(((theirs[name] - ours[name]) ** 2).sum() for name in cold) ** 0.5
        assert apart < 0.02 * moved
    assert [row["step"] for row in MetricsLog.read(folder)] == [1, 2, 3]
    assert [read_progress(run).restarts for run in (folder, straight.run.dir)] == [1, 0]


@pytest.mark.parametrize(
    ("file", "format", "parts"),
    [
        pytest.param(
            "llmbar_gptinst.jsonl",
            "llmbar",
            ["rollout.actors=2", "learner.ranks=2", "learner.zero_stage=3"],
            id="pairs, two ZeRO-3 ranks, two engines",
        ),
        pytest.param("gsm8k_unpaired_a.jsonl", "trl_unpaired", [], id="single responses"),
    ],
)
def test_real_preferences_with_generation_overlapping_training(straight_run, tiny, quiet, tmp_path, file, format, parts):
    """Real rows: every trained sample lags at most one version behind.

    The model is the tiny one after its cold start, as a policy that never writes a score has nothing to learn from.
    """
    if not (REAL_DATA / file).exists():
        pytest.skip(f"no real preference data: {REAL_DATA / file} is absent; RLSYS_REAL_DATA names the folder")
    config = tiny(
        tmp_path / "run",
        straight_run[0].run.dir / "checkpoints" / "cold_start" / "model",
        f"data.train={REAL_DATA / file}",
        f"data.heldout={REAL_DATA / file}",
        f"data.format={format}",
        "prompt.max_tokens=900",
        "sft.rows=0",
        "rl.prompts_per_step=4",
        "rl.staleness=1",
        *parts,
    )
    summary = train(config, quiet)
    assert summary.heldout["rl"].n == 6
    current = 0
    for row in MetricsLog.read(config.run.dir):
        table = pq.read_table(config.run.dir / "trajectories" / f"step_{row['step']:06d}.parquet")
        versions = np.array(table["weight_version"].to_pylist())
        assert ((current - versions) <= 1).all() and (versions <= current).all()
        current += row["groups_trained"] > 0
    assert any(row["groups_trained"] > 0 and not row["skipped"] for row in MetricsLog.read(config.run.dir))
    report = json.loads((config.run.dir / "data_report.json").read_text())
    for side in ("train", "heldout"):
        (account,) = report[side].values()
        assert account["rows"] == account["used"] + sum(account["set_aside"].values()) > 0
