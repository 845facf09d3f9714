"""The disk fills while a run writes: it says so, keeps what was complete, and goes on once there is space."""

import subprocess

import pytest

from actors.cluster.waiting import ActorFailed
from actors.loops.rl import train
from rlsys.io.metrics import MetricsLog

MIB = 2**20


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB: one checkpoint of the tiny model fits, two do not."""
    place = tmp_path / "disk"
    place.mkdir()
    if (done := mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", place)).returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.nightly
def test_a_full_disk_ends_the_run_and_space_lets_it_go_on(straight_run, tiny, quiet, small_disk):
    model = straight_run[0].run.dir / "checkpoints/cold_start/model"
    config = tiny(small_disk / "run", model, "sft.rows=0", "checkpoint.every=1", "rl.steps=4", "run.trackers=[]")
    with pytest.raises((ActorFailed, OSError), match=r"No space left on device.*Free some space") as failure:
        train(config, quiet)
    assert "inline_container" not in str(failure.value)
    checkpoints = sorted(path.name for path in (config.run.dir / "checkpoints").iterdir() if path.is_dir())
    assert checkpoints == ["step_000001"]
    assert mount("-o", "remount,size=200m", small_disk).returncode == 0
    assert train(config, quiet).rl_steps == 4
    assert [row["step"] for row in MetricsLog.read(config.run.dir)] == [1, 2, 3, 4]
