"""Run folders: one writer, one config, complete checkpoints."""

import json
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlsys.config.files import load_config
from rlsys.config.schema import ConfigError
from rlsys.io.metrics import MetricsLog
from rlsys.io.progress import ProgressFile
from rlsys.io.run_folder import CheckpointError, RunFolder, write_parquet


def config(tmp_path, *overrides):
    return load_config(None, [f"run.dir={tmp_path / 'run'}", *overrides])


def test_second_writer_is_rejected(tmp_path):
    folder = RunFolder(config(tmp_path))
    with pytest.raises(ConfigError, match="another process is writing this run;"):
        RunFolder(config(tmp_path))
    ProgressFile(folder.path).say("begins")
    with pytest.raises(ConfigError, match=rf"another process is writing this run \(process {os.getpid()} on {socket.gethostname()}\)"):
        RunFolder(config(tmp_path))
    folder.close()
    RunFolder(config(tmp_path)).close()


def test_other_config_is_rejected_unless_only_the_steps_change(tmp_path):
    with RunFolder(config(tmp_path)) as folder:
        folder.write_json("cold_start.json", {})
    with pytest.raises(ConfigError, match=r"cold_start.json.*rl.beta: 0.01 before, 0.5 now; these may change: rl.steps: 20 before, 9 now"):
        RunFolder(config(tmp_path, "rl.beta=0.5", "rl.steps=9"))
    with pytest.raises(ConfigError, match="run.deterministic: False before, True now"):
        RunFolder(config(tmp_path, "run.deterministic=true"))
    RunFolder(config(tmp_path, "rl.steps=99", "checkpoint.keep=5")).close()
    assert load_config(tmp_path / "run" / "config.yaml").rl.steps == 99


WORK = ("checkpoints/step_000001/state.json", "trajectories/step_000001.parquet", "trajectories/rft_round_1.parquet")
WORK += ("metrics.jsonl", "round_1/samples.jsonl.part", "round_1/model/x", "model/config.json", "report.json", "summary.json")
NOT_WORK = ("trajectories/heldout_base.parquet", "checkpoints/.partial_000001/x", "checkpoints/cold_start/model/x", "logs/rollout-0.log")
NOT_WORK += ("actors.json", "data_report.json", "round_1/samples.jsonl.settings.json", "tensorboard/events", "metrics.jsonl-nothing-yet")


def write(path, text="something"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("name", WORK)
def test_folder_with_completed_work_keeps_its_config(tmp_path, name):
    RunFolder(config(tmp_path)).close()
    write(tmp_path / "run" / name)
    with pytest.raises(ConfigError, match=r"learner.lr: 2e-05 before, 1e-05 now"):
        RunFolder(config(tmp_path, "learner.lr=1e-5"))
    assert (tmp_path / "run" / name).exists() and load_config(tmp_path / "run" / "config.yaml") == config(tmp_path)


def test_folder_without_completed_work_is_reset_for_another_config(tmp_path):
    RunFolder(config(tmp_path)).close()
    for name in NOT_WORK:
        write(tmp_path / "run" / name)
    write(tmp_path / "run" / "metrics.jsonl", "")
    write(tmp_path / "run" / "notes.txt")
    with RunFolder(config(tmp_path, "learner.lr=1e-5")) as folder:
        assert folder.was_reset and load_config(tmp_path / "run" / "config.yaml").learner.lr == 1e-5
        left = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()}
        assert left == {".lock", "config.yaml", "notes.txt", "metrics.jsonl-nothing-yet", "data_files.json"}
    with RunFolder(config(tmp_path, "learner.lr=1e-5")) as folder:
        assert not folder.was_reset


def test_truncated_config_without_completed_work_is_replaced(tmp_path):
    write(tmp_path / "run" / "config.yaml", "rl: [")
    RunFolder(config(tmp_path)).close()
    assert load_config(tmp_path / "run" / "config.yaml") == config(tmp_path)


def test_file_at_the_path_of_the_folder_is_left_unchanged(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(FileExistsError):
        RunFolder(config(tmp_path))
    assert (tmp_path / "run").read_text() == "mine"


def commit(folder, step, keep=2):
    (folder.begin_checkpoint(step) / "weights").write_text(str(step))
    folder.commit_checkpoint(step, {"step": step}, keep)


def test_newest_and_best_checkpoints_are_kept(tmp_path):
    folder = RunFolder(config(tmp_path))
    for step in (1, 2, 3, 4):
        if step == 1:
            folder.set_best(1, 0.5)
        commit(folder, step)
    assert [path.name for path in folder.checkpoints()] == ["step_000001", "step_000003", "step_000004"]
    path, state = folder.latest_state(pytest.fail)
    assert state == {"step": 4} and (path / "weights").read_text() == "4"
    assert folder.is_best(0.6) and not folder.is_best(0.4)


def test_incomplete_checkpoint_is_ignored(tmp_path):
    folder = RunFolder(config(tmp_path))
    commit(folder, 1)
    (folder.begin_checkpoint(2) / "weights").write_text("half")
    assert folder.latest_state(pytest.fail)[1] == {"step": 1}


def test_resume_drops_metrics_of_repeated_steps_and_an_incomplete_line(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"reward": step / 10, "skip_reason": "text"})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    log = MetricsLog(tmp_path, resume_step=2)
    log.write(3, {"reward": 0.9})
    log.close()
    assert [(row["step"], row["reward"]) for row in MetricsLog.read(tmp_path)] == [(1, 0.1), (2, 0.2), (3, 0.9)]


def test_a_metric_without_a_definition_is_refused(tmp_path):
    log = MetricsLog(tmp_path)
    with pytest.raises(ValueError, match="rewrad: no figure of a step has this name"):
        log.write(1, {"rewrad": 0.5})
    log.close()
    assert MetricsLog.read(tmp_path) == []


def test_non_finite_metrics_become_null(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"grad_norm": float("nan"), "loss": float("inf"), "reward": 0.5})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "grad_norm": None,
        "loss": None,
        "reward": 0.5,
    }


def test_incomplete_cold_start_is_ignored(tmp_path):
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


def test_a_resumed_run_keeps_the_ranks_that_wrote_its_optimizer_state(tmp_path):
    with RunFolder(config(tmp_path, "learner.ranks=null")) as folder:
        assert folder.config.learner.ranks is None
        write(folder.cold_start / "optimizer/learner.json", '{"learner.ranks": 3}')
    with RunFolder(config(tmp_path, "learner.ranks=null")) as folder:
        assert folder.config.learner.ranks == 3
        partial = folder.begin_checkpoint(1)
        write(partial / "optimizer/learner.json", '{"learner.ranks": 4}')
        folder.commit_checkpoint(1, {"step": 1}, keep=1)
    with RunFolder(config(tmp_path, "learner.ranks=null")) as folder:
        assert folder.config.learner.ranks == 4
    assert load_config(tmp_path / "run/config.yaml").learner.ranks is None, "the next resume compares with what was given"


def _checkpoint(folder, step, optimizer="all"):
    partial = folder.begin_checkpoint(step)
    (partial / "model").mkdir()
    (partial / "model" / "weights").write_bytes(bytes(range(200)) * step)
    (partial / "optimizer").mkdir()
    (partial / "optimizer" / "rank_0").write_bytes(b"moments")
    folder.commit_checkpoint(step, {"step": step}, 2, optimizer)


def _two_checkpoints(folder):
    for step in (1, 2):
        _checkpoint(folder, step)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "harm", "words"),
    [
        ("model/weights", _cut, "model/weights has changed or was cut off"),
        ("model/weights", _flip_a_bit, "model/weights has changed or was cut off"),
        ("optimizer/rank_0", Path.unlink, "optimizer/rank_0 is missing"),
        ("state.json", _cut, "state.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path, file, harm, words):
    with RunFolder(config(tmp_path)) as folder:
        _two_checkpoints(folder)
        newest, older = folder.checkpoint_path(2), folder.checkpoint_path(1)
        assert folder.latest_state(pytest.fail) == (newest, {"step": 2})
        harm(newest / file)
        warnings = []
        assert folder.latest_state(warnings.append) == (older, {"step": 1})
        aside = newest.with_name("damaged_step_000002")
        assert len(warnings) == 1 and words in warnings[0] and str(aside) in warnings[0] and aside.is_dir()
        # The next one replaces it among the newest.
        _checkpoint(folder, 2)
        assert folder.checkpoints() == [older, newest] and folder.latest_state(pytest.fail)[0] == newest
        for path in (older, newest):
            harm(path / file)
        with pytest.raises(CheckpointError, match="no checkpoint can be continued from"):
            folder.latest_state(pytest.fail)
        assert folder.checkpoints() == [older, newest]


def test_a_checkpoint_without_optimizer_state_is_not_continued_from(tmp_path):
    with RunFolder(config(tmp_path)) as folder:
        _checkpoint(folder, 1)
        _checkpoint(folder, 2, "last")
        _cut(folder.checkpoint_path(2) / "model/weights")
        with pytest.raises(CheckpointError, match=r"step_000001: it has no optimizer state \(checkpoint.optimizer=last\)"):
            folder.latest_state(pytest.fail)


@pytest.mark.parametrize("harm", [_cut, _flip_a_bit, Path.unlink])
def test_a_damaged_cold_start_is_named(tmp_path, harm):
    with RunFolder(config(tmp_path)) as folder:
        folder.require_intact_cold_start()
        (folder.cold_start / "model").mkdir(parents=True)
        weights = folder.cold_start / "model/weights"
        weights.write_bytes(bytes(range(200)))
        (folder.cold_start / "optimizer").mkdir()
        (folder.cold_start / "optimizer/rank_0").write_text("moments")
        folder.commit_cold_start({"kept": 1})
        folder.require_intact_cold_start()
        _checkpoint(folder, 1)
        assert not (folder.cold_start / "optimizer").exists()
        folder.require_intact_cold_start()
        harm(weights)
        with pytest.raises(CheckpointError, match="cold_start: model/weights"):
            folder.require_intact_cold_start()


def test_a_checkpoint_without_checksums_is_taken_as_it_is(tmp_path):
    with RunFolder(config(tmp_path)) as folder:
        _two_checkpoints(folder)
        (folder.checkpoint_path(2) / "state.json").write_text('{"step": 2}')
        assert folder.latest_state(pytest.fail) == (folder.checkpoint_path(2), {"step": 2})


def test_what_an_interrupted_checkpoint_left_is_removed(tmp_path):
    with RunFolder(config(tmp_path)) as folder:
        (folder.begin_checkpoint(3) / "half").write_text("x")
    with RunFolder(config(tmp_path)) as folder:
        assert list((folder.path / "checkpoints").iterdir()) == []


def test_a_kill_while_a_folder_is_removed_leaves_no_part_of_it(tmp_path, monkeypatch):
    """The cold start's optimizer state is removed with the first checkpoint, here until one of its two files is gone."""
    with RunFolder(config(tmp_path)) as folder:
        (folder.cold_start / "optimizer").mkdir(parents=True)
        for name in ("learner.json", "rank_0"):
            (folder.cold_start / "optimizer" / name).write_text(name)
        folder.commit_cold_start({"kept": 1})

        def killed(place, ignore_errors=False):
            if (Path(place) / "learner.json").exists():
                (Path(place) / "learner.json").unlink()
                raise KeyboardInterrupt

        monkeypatch.setattr("rlsys.io.run_folder.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            _checkpoint(folder, 1)
        monkeypatch.undo()
    with RunFolder(config(tmp_path)) as folder:
        folder.require_intact_cold_start()
        assert [path.name for path in (folder.path / "checkpoints").iterdir()] in (
            ["cold_start", "step_000001"],
            ["step_000001", "cold_start"],
        )
