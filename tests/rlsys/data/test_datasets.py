"""Sampling records: in sampler order, skipping rows set aside, identical after a restart, and always terminating."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlsys.config.sources import Data
from rlsys.data.datasets import PREFETCH_ROWS, TaskRows, open_rows, sample_records
from rlsys.data.readers import DataError, RecordFile
from rlsys.data.sampler import Sampler
from rlsys.data.tasks import CHECKED, generate
from rlsys.data.writers import write_jsonl, write_parquet

ROW = {"source": "s", "context": [{"role": "user", "content": "Q?"}], "responses": ["one", "two"], "rewards": [1.0, 0.0]}


def write(path: Path, rows: list[dict], row_group_size: int = 50) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(count: int, *ties: int) -> list[dict]:
    return [ROW | {"id": str(i), "rewards": [1.0, 1.0] if i in ties else [1.0, 0.0]} for i in range(count)]


def ids(drawn) -> list[str]:
    return [record.id for _, record in drawn]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_each_usable_row_is_sampled_once_per_epoch_in_sampler_order(tmp_path, suffix):
    ties = set(range(0, 400, 3))
    rows = open_rows(write(tmp_path / f"f.{suffix}", numbered(400, *ties)), Data(), 0)
    order = Sampler(400, 3).next(3 * 400)
    expected = [(place // 400, str(index)) for place, index in enumerate(order) if index not in ties]
    drawn = sample_records(rows, Sampler(len(rows), 3), len(expected))
    assert [(epoch, record.id) for epoch, record in drawn] == expected


def test_batch_sizes_and_restarts_do_not_change_the_order(tmp_path):
    path = write(tmp_path / "f.parquet", numbered(300, *range(0, 300, 7)))
    whole = sample_records(open_rows(path, Data(), 0), Sampler(300, 1), 700)
    parts, state = [], Sampler(300, 1).state_dict()
    for count in (1, 99, 0, 250, 32, 318):
        rows, sampler = open_rows(path, Data(), 0), Sampler(300, 1)
        sampler.load_state_dict(state)
        parts += sample_records(rows, sampler, count)
        state = json.loads(json.dumps(sampler.state_dict()))
    assert parts == whole


def test_row_of_several_records_yields_one_per_epoch_in_turn(tmp_path):
    row = {"prompt": "Q?", "subset": "Ties", "rejected": ["no"]}
    path = write(tmp_path / "f.jsonl", [row | {"id": "one", "chosen": ["yes"]}, row | {"id": "three", "chosen": ["a", "b", "c"]}])
    drawn = sample_records(open_rows(path, Data(format="rewardbench2"), 0), Sampler(2, 0), 12)
    assert Counter(ids(drawn)) == {"one": 6, "three/0": 2, "three/1": 2, "three/2": 2}
    assert all(Counter(epoch for epoch, _ in drawn)[epoch] == 2 for epoch in range(6))


def test_prefetch_cache_is_bounded(tmp_path):
    rows = open_rows(write(tmp_path / "f.parquet", numbered(3 * PREFETCH_ROWS), row_group_size=10_000), Data(), 0)
    sampler = Sampler(len(rows), 0)
    for _ in range(40):
        sample_records(rows, sampler, 400)
        assert len(rows._source._cache) <= PREFETCH_ROWS


def test_single_usable_row_in_a_thousand_is_found(tmp_path):
    rows = open_rows(write(tmp_path / "f.jsonl", numbered(1000, *range(1, 1000))), Data(), 0)
    assert ids(sample_records(rows, Sampler(1000, 0), 3)) == ["0"] * 3


@pytest.mark.parametrize("strict", [False, True])
def test_file_without_usable_rows_fails_when_opened(tmp_path, strict):
    path = write(tmp_path / "f.jsonl", numbered(50, *range(50)))
    with pytest.raises(DataError, match="none of the 50 rows is usable"):
        open_rows(path, Data(strict=strict), 0)


def test_generated_tasks_implement_rows():
    rows = TaskRows("tasks:heldout", Data(), 0)
    sampler = Sampler(len(rows), 0)
    drawn = sample_records(rows, sampler, 5)
    assert [record for _, record in drawn] == [rows[i] for i in Sampler(len(rows), 0).next(5)]
    first = [record for record, _ in zip(rows, range(3), strict=False)]
    assert first == [rows[i] for i in range(3)]


def test_writing_tasks_are_the_checked_families_of_the_same_rows():
    rows = open_rows(Path("writing:heldout"), Data(), 0)
    found = [rows[number] for number in range(3 * len(CHECKED))]
    assert {record.family for record in found} == set(CHECKED) and all(record.checks for record in found)
    few = Data(families=("word_count", "first_word"))
    assert open_rows(Path("writing:train"), few, 3)[5] == open_rows(Path("tasks:train"), few, 3)[5]
    with pytest.raises(ValueError, match="writing:train has no copy; expected some of word_count"):
        open_rows(Path("writing:train"), Data(families=("word_count", "copy")), 0)
    with pytest.raises(ValueError, match="writing:test .* expected one of writing:train, writing:heldout"):
        open_rows(Path("writing:test"), Data(), 0)


@pytest.mark.parametrize("write, name", [(write_jsonl, "rows.jsonl"), (write_parquet, "rows.parquet")])
def test_checks_survive_files(tmp_path, write, name):
    records = list(generate("train", 40, 0))
    write((record.to_json() for record in records), tmp_path / name)
    assert list(RecordFile(tmp_path / name, "rlsys")) == records
