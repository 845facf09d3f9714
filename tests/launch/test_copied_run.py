"""A run whose folder is lost continues from its copy in an object store, with the same bits."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from commands import kill_rlsys_when
from safetensors.torch import load_file

from actors.loops.rl import train
from rlsys.config.files import load_config, save_config
from rlsys.io.progress import read_progress
from rlsys.io.remote_copy import RemoteCopy

SETTINGS = (
    "sft.rows=0", "rl.equal_groups=train", "checkpoint.every=1", "rl.steps=3", "learner.ranks=2", "learner.zero_stage=3",
    # One sample at a time, as an engine's rounding depends on which samples share a batch.
    "rollout.max_num_seqs=1", "rollout.max_tokens=96",
)  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.nightly
def test_killed_and_deleted_a_zero_3_run_continues_from_its_copy_with_the_same_bits(straight_run, tiny, quiet, s3_store, tmp_path):
    cold_started = straight_run[0].run.dir / "checkpoints/cold_start/model"
    straight = tiny(tmp_path / "straight", cold_started, *SETTINGS)
    train(straight, quiet)
    config = tiny(tmp_path / "lost", cold_started, *SETTINGS, f"run.copy_to={s3_store}/lost")
    save_config(config, tmp_path / "config.yaml")

    def copied() -> bool:
        time.sleep(0.5)
        return "checkpoints/step_000001/state.json" in RemoteCopy(f"{s3_store}/lost", tmp_path / "nothing").names

    kill_rlsys_when(copied, tmp_path / "first.log", "train", tmp_path / "config.yaml")
    shutil.rmtree(config.run.dir)
    train(load_config(tmp_path / "config.yaml"), quiet)
    folders = straight.run.dir, config.run.dir
    assert [read_progress(folder).restarts for folder in folders] == [0, 1]
    for step in (1, 2, 3):
        one, other = (pq.read_table(folder / f"trajectories/step_{step:06d}.parquet") for folder in folders)
        assert one == other, step
    one, other, base = (weights(folder) for folder in (*(folder / "checkpoints/step_000003/model" for folder in folders), cold_started))
    assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()
    assert not all(torch.equal(one[name], base[name]) for name in one)
