"""What the fault tests and the soak rely on: a run is resumed until it is complete, and every kind of difference is seen."""

import json
import random
import signal
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch.faults.comparison import compare
from launch.faults.disturbed import disturb
from launch.faults.injection import Fault
from launch.faults.runs import ResumedRun
from launch.faults.soak import tables, totals
from rlsys.io.metrics import MetricsLog


def write_run(folder, steps=3, rows=4, text="{}", **metrics):
    """Write what a run of `steps` steps would, with `rows` samples in each."""
    (folder / "trajectories").mkdir(parents=True)
    log = MetricsLog(folder)
    for step in range(1, steps + 1):
        samples = [
            {
                "group": i // 2,
                "sample": i % 2,
                "prompt_id": f"p{step}-{i // 2}",
                "order": [1, 0],
                "text": text.format(i),
                "reward": float("nan"),
            }
            for i in range(rows)
        ]
        pq.write_table(pa.Table.from_pylist(samples), folder / f"trajectories/step_{step:06d}.parquet")
        log.write(step, {"reward": 0.5, "seconds/step": hash(folder) % 7, **metrics})
    log.close()
    checkpoint = folder / f"checkpoints/step_{steps:06d}"
    checkpoint.mkdir(parents=True)
    files = {"model/model.safetensors": "a1", "optimizer/rank_0.pt": "b2", "model/README.md": str(folder)}
    (checkpoint / "state.json").write_text(json.dumps({"step": steps, "files": files}))
    return folder


@pytest.fixture
def reference(tmp_path):
    return write_run(tmp_path / "reference")


def test_equal_runs_differ_in_nothing(tmp_path, reference):
    assert compare(write_run(tmp_path / "run"), reference).equal


def test_lost_and_doubled_samples_are_counted(tmp_path, reference):
    fewer = compare(write_run(tmp_path / "fewer", rows=3), reference)
    assert (fewer.lost, fewer.doubled) == (3, 0) and not fewer.equal
    more = compare(write_run(tmp_path / "more", rows=5), reference)
    assert (more.lost, more.doubled) == (0, 3)
    shorter = compare(write_run(tmp_path / "shorter", steps=2), reference)
    assert shorter.lost == 4 and "step_000003.parquet: number of rows" in shorter.different


def test_other_texts_metrics_and_weights_are_named(tmp_path, reference):
    assert compare(write_run(tmp_path / "texts", text="other {}"), reference).different[0] == "step_000001.parquet: text"
    assert compare(write_run(tmp_path / "metrics", kl=1e-9), reference).different == ["metrics.jsonl: kl"]
    run = write_run(tmp_path / "weights")
    state = run / "checkpoints/step_000003/state.json"
    state.write_text(state.read_text().replace("b2", "b3"))
    assert compare(run, reference).different == ["step_000003: optimizer/rank_0.pt"]


def test_nothing_at_all_is_no_equal_run(tmp_path, reference):
    found = compare(tmp_path / "nothing", reference)
    assert found.lost == 12 and not found.equal


STAND_IN = """
import json, os, sys, time
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
folder = Path(sys.argv[-1].removeprefix("run.dir="))
(folder / "trajectories").mkdir(parents=True, exist_ok=True)
for step in range(1 + len(list(folder.glob("trajectories/step_*"))), 21):
    time.sleep(0.2)
    lost = sys.argv[1] == "loses" and (folder / "resumed").exists()
    rows = pa.table({"group": [0], "sample": [0], "prompt_id": [f"{step}"], "order": [[0]]}).slice(0, 0 if lost else 1)
    table = folder / f"trajectories/.{step}"
    pq.write_table(rows, table)
    (folder / "resumed").touch()
    os.replace(table, folder / f"trajectories/step_{step:06d}.parquet")
if sys.argv[1] == "leaves":
    Path(os.environ["TMPDIR"], "left").write_text("12345")
(folder / "checkpoints/step_000020").mkdir(parents=True)
(folder / "checkpoints/step_000020/state.json").write_text(json.dumps({"files": {"model/model.safetensors": "a"}}))
(folder / "summary.json").write_text("{}")
"""
"""A command that resumes after its last step, as `rlsys train` does; it may lose rows once it was started again, or leave a file."""


class AtOnce(random.Random):
    """Every fault comes right after one more step."""

    def random(self):
        return 0.5

    def uniform(self, low, high):
        return low


def disturbed(folder, behaviour, faults=(), reference=None):
    run = ResumedRun(folder / behaviour, [], folder, behaviour, (sys.executable, "-c", STAND_IN))
    return disturb(run, faults, lambda text: None, AtOnce(), reference)


def test_a_disturbed_run_is_resumed_until_it_is_complete_and_judged(tmp_path):
    reference = disturbed(tmp_path, "undisturbed")
    assert reference.complete and reference.starts == 1 and reference.good
    faults = [Fault("driver", number) for number in (signal.SIGKILL, signal.SIGTERM)]
    outcome = disturbed(tmp_path, "exact", faults, tmp_path / "undisturbed")
    assert (outcome.complete, outcome.starts, outcome.comparison.equal) == (True, 3, True)
    assert [(fault.fault, fault.status, fault.expected) for fault in outcome.faults] == [
        ("driver SIGKILL", -9, True),
        ("driver SIGTERM", -15, True),
    ]
    assert outcome.good, outcome
    loses = disturbed(tmp_path, "loses", faults[:1], tmp_path / "undisturbed")
    assert loses.complete and loses.comparison.lost > 0 and not loses.good
    leaves = disturbed(tmp_path, "leaves", [], tmp_path / "undisturbed")
    assert leaves.comparison.equal and list(leaves.left.temporary.values()) == [5] and not leaves.good
    found = totals([outcome, loses, leaves])
    lost = loses.comparison.lost
    names = ("runs", "complete", "equal to the bit", "samples lost", "bytes left")
    assert [found[name] for name in names] == [3, 3, 2, lost, 5]
    assert found["faults by kind"]["driver SIGKILL"]["resumed by the same command"] == 2
    assert all(table.row_count for table in tables(found))
