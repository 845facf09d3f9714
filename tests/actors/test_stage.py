"""The loop of every training stage, on a stand-in for the learners: what is logged, printed, saved and resumed."""

from __future__ import annotations

import pytest
from rich.console import Console

from actors.loops.progress import ProgressReporter
from actors.loops.stage import LINES, StageLoop
from rlsys.config.files import load_config
from rlsys.config.schema import Checkpoint
from rlsys.io.metrics import MetricsLog
from rlsys.io.run_folder import RunFolder


class Learners:
    """Stands in for the learners: its weights are the sum of the steps trained on."""

    def __init__(self):
        self.weights = 0

    def save(self, folder, files):
        (folder / "weights").write_text(str(self.weights))

    def load(self, folder):
        self.weights = int((folder / "weights").read_text())


class Killed(Exception):
    """Ends a process in the middle of a step."""


@pytest.fixture
def folder(tmp_path):
    with RunFolder(load_config(None, [f"run.dir={tmp_path / 'run'}"])) as opened:
        yield opened


@pytest.fixture
def reporter(tmp_path):
    """A progress reporter whose lines go to the file `lines`."""
    with (tmp_path / "lines").open("w") as file, ProgressReporter(Console(file=file, width=200), "test") as progress:
        yield progress


def stage(folder, progress, total, before=0, killed_at=None, checkpoint=Checkpoint(every=2, keep=2)):
    """Run a stage as a new process would: resume if possible, then take the steps that are left; returns the loop."""
    learners = Learners()
    loop = StageLoop(f"round {before}, batch", folder, progress, learners, checkpoint, before)
    loop.state = loop.resume()

    def step(number):
        if number == killed_at:
            raise Killed
        learners.weights += number
        with progress.phase("train it"):
            pass
        loop.log({"round": before, "loss": learners.weights})
        loop.say(f"weights {learners.weights}")
        loop.save_if_due(note=f"after {number}")

    loop.run(total, step)
    return loop


def test_a_killed_stage_continues_after_its_last_checkpoint_and_keeps_the_metrics_of_the_stages_before(folder, reporter, tmp_path):
    assert stage(folder, reporter, 11).learners.weights == sum(range(1, 12))
    with pytest.raises(Killed):
        stage(folder, reporter, 7, before=11, killed_at=6)
    # Step 5 is repeated: the checkpoint is of step 4.
    again = stage(folder, reporter, 7, before=11)
    assert again.learners.weights == sum(range(1, 8))
    assert again.state["note"] == "after 4" and again.state["step"] == 15
    rows = MetricsLog.read(folder.path)
    assert [row["step"] for row in rows] == list(range(1, 19))
    assert [row["loss"] for row in rows] == [sum(range(1, n + 1)) for n in range(1, 12)] + [sum(range(1, n + 1)) for n in range(1, 8)]
    assert [path.name for path in folder.checkpoints()] == ["step_000015", "step_000017"]
    assert "resumed after round 11, batch 4 from" in (tmp_path / "lines").read_text()


def test_a_new_stage_does_not_resume_from_the_checkpoint_of_the_one_before(folder, reporter):
    stage(folder, reporter, 5)
    assert folder.checkpoints() and stage(folder, reporter, 1, before=5).learners.weights == 1


def test_the_last_step_is_not_saved_by_the_loop_and_every_0_saves_nothing(folder, reporter):
    stage(folder, reporter, 4)
    assert [path.name for path in folder.checkpoints()] == ["step_000002"]
    stage(folder, reporter, 3, before=4, checkpoint=Checkpoint(every=0))
    assert [path.name for path in folder.checkpoints()] == ["step_000002"]


def test_phases_are_logged_and_about_ten_lines_are_printed(folder, reporter, tmp_path):
    stage(folder, reporter, 35)
    for row in MetricsLog.read(folder.path):
        phases = {name: value for name, value in row.items() if name.startswith("seconds/") and name != "seconds/step"}
        assert "seconds/train_it" in phases and sum(phases.values()) == pytest.approx(row["seconds/step"])
    lines = [line for line in (tmp_path / "lines").read_text().splitlines() if "weights" in line]
    assert LINES <= len(lines) <= LINES + 2
    assert lines[-1].endswith(f"round 0, batch 35/35: weights {sum(range(36))}, ETA 0:00")


def test_a_skipped_update_is_printed_with_its_reason(folder, reporter, tmp_path):
    loop = StageLoop("step", folder, reporter, Learners(), Checkpoint())

    def step(number):
        loop.log({"skipped": int(number == 3), "skip_reason": "gradient is not finite"})
        loop.say("loss 1.0")

    loop.run(100, step)
    lines = [line for line in (tmp_path / "lines").read_text().splitlines() if "skipped" in line]
    assert len(lines) == 1 and "step 3/100: loss 1.0, ETA" in lines[0] and lines[0].endswith("(update skipped: gradient is not finite)")
