"""The disk fills while a run writes: it says so, keeps what was complete, and goes on once there is space."""

import pytest
from small_disk import mount, small_disk

from actors.cluster.waiting import ActorFailed
from actors.loops.rl import train
from rlsys.io.metrics import MetricsLog


@pytest.fixture
def disk(tmp_path):
    """A file system of 24 MiB: one checkpoint of the tiny model fits, two do not."""
    with small_disk(tmp_path / "disk", "24m") as place:
        yield place


@pytest.mark.nightly
def test_a_full_disk_ends_the_run_and_space_lets_it_go_on(straight_run, tiny, quiet, disk):
    model = straight_run[0].run.dir / "checkpoints/cold_start/model"
    config = tiny(disk / "run", model, "sft.rows=0", "checkpoint.every=1", "rl.steps=4", "run.trackers=[]")
    with pytest.raises((ActorFailed, OSError), match=r"No space left on device.*Free some space") as failure:
        train(config, quiet)
    assert "inline_container" not in str(failure.value)
    checkpoints = sorted(path.name for path in (config.run.dir / "checkpoints").iterdir() if path.is_dir())
    assert checkpoints == ["step_000001"]
    assert mount("-o", "remount,size=200m", disk).returncode == 0
    assert train(config, quiet).rl_steps == 4
    assert [row["step"] for row in MetricsLog.read(config.run.dir)] == [1, 2, 3, 4]
