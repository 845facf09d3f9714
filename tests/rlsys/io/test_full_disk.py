"""A disk that is full, or read-only, while a file of a run is written: the error names the file, and what was complete stays."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_disk import mount, small_disk

from rlsys.config.files import load_config
from rlsys.io.metrics import MetricsLog
from rlsys.io.run_folder import RunFolder, write_parquet
from rlsys.system.environment_errors import describe_environment_error


@pytest.fixture
def disk(tmp_path):
    """A file system of 256 KiB."""
    with small_disk(tmp_path / "disk", "256k") as place:
        yield place


def fill(disk):
    """Leave no space; returns what to remove to have it back."""
    with (disk / "filler").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return disk / "filler"


def config(disk):
    return load_config(None, [f"run.dir={disk / 'run'}", "run.trackers=[]"])


TABLE = pa.table({"text": [os.urandom(1000).hex() for _ in range(20)]})


def write_table(folder):
    write_parquet(TABLE, folder.path / "trajectories/step_000002.parquet")


def write_metrics(folder):
    log = MetricsLog(folder.path, 1)
    try:
        for _ in range(1000):  # what is left of the last page
            log.write(2, {"skip_reason": "x" * 100})
    finally:
        log.close()


def write_json(folder):
    folder.write_json("actors.json", {"x": "y" * 5000})


def write_checkpoint(folder):
    folder.begin_checkpoint(2)
    folder.commit_checkpoint(2, {"step": 2, "x": "y" * 5000}, keep=2)


WRITERS = {
    "trajectories/": write_table,
    "metrics.jsonl": write_metrics,
    "actors.json": write_json,
    "checkpoints/": write_checkpoint,
}
writers = pytest.mark.parametrize("name", WRITERS)


def begin(folder):
    """Complete the first step."""
    (folder.begin_checkpoint(1) / "weights").write_text("1")
    folder.commit_checkpoint(1, {"step": 1}, keep=2)
    write_parquet(TABLE, folder.path / "trajectories/step_000001.parquet")
    log = MetricsLog(folder.path)
    log.write(1, {"reward": 0.5})
    log.close()


def is_whole(folder):
    """The first step is on record, and nothing half-written passes for more."""
    path, state = folder.latest_state(pytest.fail)
    assert (path.name, state) == ("step_000001", {"step": 1})
    assert pq.read_table(folder.path / "trajectories/step_000001.parquet") == TABLE
    assert MetricsLog.read(folder.path)[0] == {"step": 1, "reward": 0.5}
    assert not (folder.path / "trajectories/step_000002.parquet").exists()


@writers
def test_a_full_disk_is_named_and_costs_nothing_that_was_complete(disk, name):
    with RunFolder(config(disk)) as folder:
        begin(folder)
        filler = fill(disk)
        with pytest.raises(OSError) as failure:
            WRITERS[name](folder)
        words = describe_environment_error(failure.value)
        assert name in words and "No space left on device. Free some space" in words
        is_whole(folder)
    filler.unlink()
    with RunFolder(config(disk)) as folder:
        is_whole(folder)
        WRITERS[name](folder)


@writers
def test_a_read_only_disk_is_named_and_costs_nothing_that_was_complete(disk, name):
    with RunFolder(config(disk)) as folder:
        begin(folder)
    assert mount("-o", "remount,ro", disk).returncode == 0
    with pytest.raises(OSError) as failure:
        WRITERS[name](folder)
    assert name in (words := describe_environment_error(failure.value)) and "Choose a location on a writable disk" in words
    is_whole(folder)
    with pytest.raises(OSError, match="Read-only file system.*run"):
        RunFolder(config(disk))
    assert mount("-o", "remount,rw", disk).returncode == 0
    with RunFolder(config(disk)) as folder:
        is_whole(folder)
        WRITERS[name](folder)
