"""Each tracker against its real library: what it wrote is read back, after a resume too."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlsys.config.files import load_config
from rlsys.config.schema import ConfigError
from rlsys.io.metrics import MetricsLog
from rlsys.monitoring import trackers

SERVERS = ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "TRACKIO_DIR", "TRACKIO_PROJECT", "TRACKIO_SPACE_ID")
Values = dict[str, list[tuple[int, float]]]
"""Metric -> (step, value), in the order in which they were logged."""


def from_tensorboard(run: Path) -> Values:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def log_records(file: Path) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format (blocks of 32 KiB; a record is one or several chunks), after wandb's own 7 bytes."""
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:  # a block ends in zeros if no header fits
            place += 2**15 - place % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the end of one
            yield record
            record = b""


def from_wandb(run: Path) -> Values:
    from wandb.proto import wandb_internal_pb2

    found: Values = {}
    for file in sorted((run / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in log_records(file):
            record = wandb_internal_pb2.Record.FromString(data)
            if not record.HasField("history"):
                continue
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in row.items():
                if not name.startswith("_"):
                    found.setdefault(name, []).append((row["_step"], value))
    return found


def from_mlflow(run: Path) -> Values:
    with sqlite3.connect(run / "mlflow.db") as database:
        rows = database.execute("select key, step, value from metrics order by timestamp, step").fetchall()
        assert database.execute("select count(*) from runs").fetchone() == (1,)
        assert ("run.trackers", "['mlflow']") in database.execute("select key, value from params").fetchall()
    found: Values = {}
    for name, step, value in rows:
        found.setdefault(name, []).append((step, value))
    return found


def from_trackio(run: Path) -> Values:
    with sqlite3.connect(run / "trackio" / "rlsys.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {name for name, _, _ in rows} == {run.name}
    found: Values = {}
    for _, step, metrics in rows:
        for name, value in json.loads(metrics).items():
            found.setdefault(name, []).append((step, value))
    return found


READERS = {"tensorboard": from_tensorboard, "wandb": from_wandb, "mlflow": from_mlflow, "trackio": from_trackio}
REPLACES = ("tensorboard",)
"""Trackers in which a repeated step replaces the first one."""


@pytest.mark.parametrize("name", READERS)
def test_what_is_written_is_read_back_and_a_resumed_run_continues(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name, reason=f"pip install '{trackers.EXTRA}'")
    for variable in SERVERS:
        monkeypatch.delenv(variable, raising=False)
    if name == "trackio":  # read once per process, at import
        import trackio.sqlite_storage
        import trackio.utils

        for module in (trackio.utils, trackio.sqlite_storage):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "run" / "trackio")
    run = tmp_path / "run"
    run.mkdir()
    config = load_config(None, [f"run.trackers=[{name}]", f"run.dir={run}"])
    for resume_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        log = MetricsLog(run, resume_step, config)
        for step in steps:
            row = {"kl": step / 4, "parse_failures/no_box": step, "skip_reason": "text", "loss": float("nan")}
            log.write(step, row)
        log.close()
    assert [row["step"] for row in MetricsLog.read(run)] == [1, 2, 3, 4]
    found = READERS[name](run)
    expected = [(1, 0.25), (2, 0.5), *([] if name in REPLACES else [(3, 0.75)]), (3, 0.75), (4, 1.0)]
    assert {"kl": expected, "parse_failures/no_box": [(step, 4 * value) for step, value in expected]} == {
        metric: values for metric, values in found.items() if metric in ("kl", "parse_failures/no_box")
    }
    assert not {"skip_reason", "loss"} & found.keys()


def test_every_tracker_of_the_config_exists_and_is_read_back() -> None:
    assert set(trackers.TRACKERS) == set(READERS)
    for name in READERS:
        assert load_config(None, [f"run.trackers=[{name}]"]).run.trackers == [name]


def test_a_library_that_is_not_installed_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trackers.importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name))
    config = load_config(None, ["run.trackers=[tensorboard, wandb]"])
    with pytest.raises(ConfigError, match=r"run\.trackers: wandb is not installed; .*rlsys\[trackers\]"):
        MetricsLog(tmp_path, 0, config)
    assert not (tmp_path / "tensorboard").exists()


def test_names_that_mlflow_refuses_are_changed() -> None:
    assert trackers._mlflow_name("source/a@b (c)/rows") == "source/a_b _c_/rows"
    assert trackers.flat({"a": {"b": 1, "c": {}}, "d": [2]}) == [("a.b", 1), ("a.c", {}), ("d", [2])]
