"""The comparison of two runs, which the fault tests and the soak rely on: it sees every kind of difference."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch.faults.comparison import compare
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
