"""A run's folder: one writer, one config, checkpoints that are whole or absent."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlsys.config import ConfigError, load_config
from rlsys.metrics import MetricsLog
from rlsys.run_folder import RunFolder, write_parquet


def config(tmp_path, *overrides):
    return load_config(None, [f"run.dir={tmp_path / 'run'}", *overrides])


def test_a_second_writer_is_refused(tmp_path):
    folder = RunFolder(config(tmp_path))
    with pytest.raises(ConfigError, match="another process"):
        RunFolder(config(tmp_path))
    folder.close()
    RunFolder(config(tmp_path)).close()


def test_another_config_is_refused_and_named_but_more_steps_are_welcome(tmp_path):
    RunFolder(config(tmp_path)).close()
    with pytest.raises(ConfigError, match=r"rl.beta: 0.01 there, 0.5 now"):
        RunFolder(config(tmp_path, "rl.beta=0.5"))
    RunFolder(config(tmp_path, "rl.steps=99", "checkpoint.keep=5")).close()
    assert load_config(tmp_path / "run" / "config.yaml").rl.steps == 99


def commit(folder, step, keep=2):
    (folder.begin_checkpoint(step) / "weights").write_text(str(step))
    folder.commit_checkpoint(step, {"step": step}, keep)


def test_keeps_the_newest_and_the_best(tmp_path):
    folder = RunFolder(config(tmp_path))
    for step in (1, 2, 3, 4):
        if step == 1:
            folder.set_best(1, 0.5)
        commit(folder, step)
    assert [path.name for path in folder.checkpoints()] == ["step_000001", "step_000003", "step_000004"]
    path, state = folder.latest_state()
    assert state == {"step": 4} and (path / "weights").read_text() == "4"
    assert folder.is_best(0.6) and not folder.is_best(0.4)


def test_a_checkpoint_that_was_cut_off_is_not_seen(tmp_path):
    folder = RunFolder(config(tmp_path))
    commit(folder, 1)
    (folder.begin_checkpoint(2) / "weights").write_text("half")
    assert folder.latest_state()[1] == {"step": 1}


def test_resume_drops_the_metrics_of_steps_taken_again_and_a_half_line(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"reward": step / 10, "note": "text"})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    log = MetricsLog(tmp_path, resume_step=2)
    log.write(3, {"reward": 0.9})
    log.close()
    assert [(row["step"], row["reward"]) for row in MetricsLog.read(tmp_path)] == [(1, 0.1), (2, 0.2), (3, 0.9)]


def test_what_is_not_finite_is_null_as_json_knows_no_nan(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"grad_norm": float("nan"), "loss": float("inf"), "reward": 0.5})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "grad_norm": None,
        "loss": None,
        "reward": 0.5,
    }


def test_a_cold_start_that_was_cut_off_is_not_taken_for_one(tmp_path):
    folder = RunFolder(config(tmp_path))
    (folder.cold_start / "model").mkdir(parents=True)
    assert folder.cold_start_state() is None
    folder.write_json("cold_start.json", {"kept": 1})
    assert folder.cold_start_state() == {"kept": 1}


def test_tables_and_json_leave_no_partial_files(tmp_path):
    folder = RunFolder(config(tmp_path))
    folder.write_json("summary.json", {"a": 1})
    write_parquet(pa.table({"x": [1]}), folder.heldout_path("base"))
    assert json.loads((folder.path / "summary.json").read_text()) == {"a": 1}
    assert pq.read_table(folder.heldout_path("base")).num_rows == 1
    assert not list(folder.path.rglob("*.partial"))
