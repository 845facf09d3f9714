"""A run goes on with the data that it began with, or is refused."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlsys.config.files import load_config
from rlsys.config.schema import ConfigError
from rlsys.io.checksums import BLOCK_BYTES, BLOCKS, fingerprint
from rlsys.io.fingerprints import fingerprints
from rlsys.io.run_folder import RunFolder

ROW = '{"id": "%s", "prompt": "q", "responses": ["a", "b"], "rewards": [1, 0]}\n'


@pytest.fixture
def settings(tmp_path):
    """Settings of a run with data of every kind that has a fingerprint."""
    shards = tmp_path / "shards"
    shards.mkdir()
    for name in ("train.jsonl", "teacher.jsonl", "shards/a.jsonl", "shards/b.jsonl"):
        (tmp_path / name).write_text(ROW % name)
    (tmp_path / "own.jinja").write_text("{{ prompt }}")
    return [
        f"run.dir={tmp_path / 'run'}",
        f"data.train=[{tmp_path / 'train.jsonl'}, {shards}]",
        "data.heldout=tasks:heldout",
        f"sft.data={tmp_path / 'teacher.jsonl'}",
        f"prompt.template={tmp_path / 'own.jinja'}",
    ]


def begin(settings):
    """Let a run with these settings complete its cold start."""
    with RunFolder(load_config(None, settings)) as folder:
        folder.write_json("cold_start.json", {})


@pytest.mark.parametrize("name", ["train.jsonl", "teacher.jsonl", "shards/b.jsonl", "own.jinja"])
def test_a_data_file_that_changed_is_refused_and_named(tmp_path, settings, name):
    begin(settings)
    (tmp_path / name).write_text(ROW % "another")
    with pytest.raises(ConfigError, match=rf"{tmp_path / name} has changed since the run in .* began.*data.may_change=true"):
        RunFolder(load_config(None, settings))
    RunFolder(load_config(None, [*settings, "data.may_change=true"])).close()
    RunFolder(load_config(None, settings)).close()  # goes on with what it was told to accept


def test_missing_and_new_files_are_named(tmp_path, settings):
    begin(settings)
    (tmp_path / "shards/b.jsonl").rename(tmp_path / "shards/c.jsonl")
    with pytest.raises(ConfigError, match=r"shards/b.jsonl is missing; .*shards/c.jsonl is new since"):
        RunFolder(load_config(None, settings))


def test_a_copy_with_other_times_is_the_same(tmp_path, settings):
    begin(settings)
    config = load_config(None, settings)
    before = fingerprints(config)
    shutil.copyfile(tmp_path / "train.jsonl", tmp_path / "copy")
    os.replace(tmp_path / "copy", tmp_path / "train.jsonl")
    os.utime(tmp_path / "teacher.jsonl", (0, 0))
    with RunFolder(config) as folder:
        assert not folder.was_reset and folder.cold_start_state() is not None and fingerprints(config) == before


def test_without_completed_work_the_data_may_change(tmp_path, settings):
    with RunFolder(load_config(None, settings)) as folder:
        folder.heldout_path("base").write_text("of other rows")
    with RunFolder(load_config(None, settings)) as folder:
        assert not folder.was_reset and folder.heldout_path("base").exists()
    (tmp_path / "train.jsonl").write_text(ROW % "another")
    with RunFolder(load_config(None, settings)) as folder:
        assert folder.was_reset and not folder.heldout_path("base").exists()
    begin(settings)
    RunFolder(load_config(None, settings)).close()


def test_what_the_run_writes_itself_is_no_data_of_it(tmp_path, settings):
    config = load_config(None, [*settings, f"meta_rm.data=[{tmp_path}/run/trajectories/*.parquet]"])
    before = fingerprints(config)
    begin(settings)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "run/trajectories/step_000001.parquet")
    assert fingerprints(config) == before


def test_large_files_are_read_in_parts(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(4 * BLOCKS * BLOCK_BYTES)  # takes no space
    before = fingerprint(path)
    assert before.startswith("sha256 of 64 blocks:")
    for place in (0, 4 * BLOCKS * BLOCK_BYTES - 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        assert fingerprint(path) != before
        before = fingerprint(path)
    with path.open("ab") as file:
        file.write(b"x")
    assert fingerprint(path) != before


def test_generated_rows_and_datasets_of_the_hub_have_no_fingerprint():
    config = load_config(None, ["data.train=[tasks:train, owner/name:train]", "data.heldout=owner/name"])
    assert fingerprints(config) == {}
