"""Data files: every kind yields the same rows, streamed or by number; damaged rows are counted and located; the report."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import os
import random
import re
import sys
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import load, write

from rlsys.data.exclusion import excluded_ids
from rlsys.data.readers import DataError, RecordFile, read
from rlsys.data.readers.files import FIRST_ROWS, MESSAGES
from rlsys.data.readers.json_files import STRIDE
from rlsys.data.readers.sources import open_source, strict_rows
from rlsys.data.records import Record

USER = {"role": "user", "content": "Q?"}
OWN = {"id": "x", "source": "s", "context": [USER], "responses": ["one", "two"], "rewards": [0.5, -2]}


def test_error_hints_at_rows_under_an_unknown_key(tmp_path):
    row = {"input": "Q?", "output_1": "one", "output_2": "two", "label": 1}
    path = tmp_path / "f.json"
    path.write_text(json.dumps({"version": 1, "instances": [row, row]}))
    hint = f"If the rows are under 'instances', read {path}:instances."
    with pytest.raises(DataError, match=re.escape(hint)):
        RecordFile(path, "llmbar")
    assert load(path, "llmbar")[1].malformed[0][1].endswith(hint)
    assert len(load(f"{path}:instances", "llmbar")[0]) == 2
    # No hint for a list of rows, nor for a valid single row with a list of objects in it.
    path.write_text(json.dumps([{"instances": [row]}]))
    assert "instances," not in load(path, "llmbar")[1].malformed[0][1] and "read " not in load(path, "llmbar")[1].malformed[0][1]


def test_damaged_lines_are_counted_by_their_line_number(tmp_path):
    good = json.dumps({"input": "Q?", "output_1": "é", "output_2": "two", "label": 1}, ensure_ascii=False).encode()
    lines = [
        b"\xef\xbb\xbf" + good,
        b"",
        b"{",
        b"[1]",
        b"\xff" + good,
        b"[" * 100_000,
        b"9" * 10_000,
        b"null",
        good + b"\r",
        good[:-4] + b"\xff}",
    ]
    (tmp_path / "f.jsonl").write_bytes(b"\n".join(lines))
    records, report = load(tmp_path / "f.jsonl", "llmbar")
    assert [record.id for record in records] == ["f:1", "f:9"]
    assert records[0].responses == ("é", "two")
    assert [row for row, _ in report.malformed] == [3, 4, 5, 6, 7, 8, 10]
    assert report.rows == 9  # a blank line is no row
    assert "position 2 of the line" in report.malformed[0][1] and "0xff at position 1 " in report.malformed[2][1]


def test_concatenated_files_are_read(tmp_path):
    line = b"\xef\xbb\xbf" + json.dumps({**OWN, "id": None}).encode() + b"\n"
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_bytes(2 * line)
        assert len(load(tmp_path / name, "rlsys")[0]) == 2
    (tmp_path / "a.csv").write_bytes(2 * b"\xef\xbb\xbfprompt,chosen,rejected\nq,a,b\n")
    records, report = load(tmp_path / "a.csv", "trl_preference")
    assert len(records) == 2 and report.malformed_count == 1 and "the header again" in report.malformed[0][1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_object_with_a_duplicate_key_is_malformed(tmp_path, name):
    lines = ['{"prompt": "q", "chosen": "a", "chosen": "b", "rejected": "c"}', '{"prompt": "q", "chosen": "a", "rejected": "b"}']
    (tmp_path / name).write_text("\n".join([*lines, '{"prompt": "q", "chosen": "a", "rejected": "b", "more": {"x": 1, "x": 2}}']))
    records, report = load(tmp_path / name, "trl_preference")
    assert len(records) == 2 and [row for row, _ in report.malformed] == [1] and "'chosen' more than once" in report.malformed[0][1]


def test_every_file_kind_yields_the_same_records(tmp_path):
    shared = {"scores": [True, False, False], "sampled_conflict_pairs": [[0, 2], [1, 0]]}
    shared |= {"response_1": "one", "response_2": "two", "response_3": "three"}
    rows = [shared | {"question_id": f"q{i}", "prompt": f"Q{i}?"} for i in range(30)]
    rows[7]["scores"] = [True, True, True]  # no unique best
    rows[11]["winner"] = "not a key of this format"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "f.jsonl").write_text(text)
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "f.json").write_text(json.dumps(rows))
    (tmp_path / "wrapped.json").write_text(json.dumps({"data": rows}))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet", row_group_size=7)

    expected, _ = load(tmp_path / "f.jsonl", "ppe_best_of_k")
    assert len(expected) == 58
    of_row = [[record for record in expected if record.id in (f"q{i}/0", f"q{i}/1")] for i in range(30)]
    for path in tmp_path.iterdir():
        records, report = load(path, "ppe_best_of_k")
        assert records == expected and (report.rows, report.no_unique_best) == (30, 2)
        file = RecordFile(path, "ppe_best_of_k")
        assert len(file) == 30 and list(file) == expected
        assert file.fetch(range(29, -1, -1)) == of_row[::-1]
        assert file.fetch([5, 20, 7, 5, 0]) == [of_row[i] for i in (5, 20, 7, 5, 0)]
        assert file.report == replace(report, rows_in_file=30)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("group", [1, 10, 64, 1000])
def test_fetch_in_any_order_with_any_prefetch_equals_scan(tmp_path, suffix, group):
    rows, dice = [{"number": i} for i in range(500)], random.Random(group)
    path = tmp_path / f"f.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    else:
        path.write_text("".join(json.dumps(row) + "\n" * (1 + i % 3) for i, row in enumerate(rows)))  # with blank lines
    source = open_source(path)
    whole = list(source.scan())
    assert len(source) == 500 and [row for _, row in whole] == rows
    for _ in range(100):
        indices, upcoming = (dice.choices(range(500), k=dice.randrange(1, 200)) for _ in range(2))
        assert source.fetch(indices, upcoming) == [whole[i] for i in indices]
        if suffix == "parquet":
            assert set(source._cache) <= set(upcoming)


def test_line_index_is_correct_at_and_between_offsets(tmp_path):
    lines = [json.dumps({"text": "é" * (i % 7), "i": i}) for i in range(3 * STRIDE + 5)]
    (tmp_path / "f.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n \r\n".join(lines).encode())
    source = open_source(tmp_path / "f.jsonl")
    assert source.fetch(range(len(lines))) == [(1 + 2 * i, json.loads(line)) for i, line in enumerate(lines)]
    assert source.fetch([STRIDE, STRIDE - 1, len(lines) - 1, 0]) == [
        (1 + 2 * i, json.loads(lines[i])) for i in (STRIDE, STRIDE - 1, len(lines) - 1, 0)
    ]


def test_rows_are_checked_when_fetched(tmp_path):
    lines = [json.dumps(OWN | {"id": f"é{i}"}, ensure_ascii=False) for i in range(6)]
    lines[1] = "{broken"
    lines[3] = json.dumps(OWN | {"rewards": [1, 1]})
    (tmp_path / "f.jsonl").write_text("\ufeff" + "\n\n".join(lines))
    file = RecordFile(tmp_path / "f.jsonl", "rlsys")
    assert [[record.id for record in found] for found in file.fetch(range(6))] == [["é0"], [], ["é2"], [], ["é4"], ["é5"]]
    assert (file.report.malformed_count, file.report.no_unique_best, file.report.malformed[0][0]) == (1, 1, 3)
    with pytest.raises(DataError, match="row 3"):
        RecordFile(tmp_path / "f.jsonl", "rlsys", strict=True)


def test_report_counts_a_row_once_when_first_read(tmp_path):
    count = FIRST_ROWS + 100
    rows = [OWN | {"id": str(i)} for i in range(count)]
    rows[count - 1], rows[count - 2] = {}, OWN | {"rewards": [1, 1]}
    file = RecordFile(write(tmp_path / "f.jsonl", rows), "rlsys")
    assert (file.report.rows_in_file, file.report.rows, file.report.records) == (count, FIRST_ROWS, FIRST_ROWS)
    for _ in range(3):
        assert file.fetch([count - 1, 0, count - 2, count - 1, count - 3])[0] == []
    report = file.report
    assert (report.rows, report.records, report.malformed_count, report.no_unique_best) == (
        FIRST_ROWS + 3,
        FIRST_ROWS + 1,
        1,
        1,
    )
    assert report.responses == {2: FIRST_ROWS + 1} and [row for row, _ in report.malformed] == [count]
    for _ in range(2):
        file.fetch(range(count))
    _, streamed = load(tmp_path / "f.jsonl", "rlsys")
    assert report == replace(streamed, rows_in_file=count)


def test_strict_checks_every_row_when_opening_including_duplicate_ids(tmp_path):
    rows = [OWN | {"id": str(i)} for i in range(FIRST_ROWS + 10)]
    path = write(tmp_path / "f.jsonl", rows)
    file = RecordFile(path, "rlsys", strict=True)
    assert file.report.records == len(rows) and [len(found) for found in file.fetch([0, 5, 0])] == [1, 1, 1]
    write(path, [*rows, rows[3]])
    with pytest.raises(DataError, match=f"row {len(rows) + 1}: .*'3' again"):
        RecordFile(path, "rlsys", strict=True)
    assert RecordFile(path, "rlsys").fetch([len(rows)]) == [[Record.from_json(rows[3])]]


def test_file_without_usable_rows_reports_the_first_error(tmp_path):
    path = write(tmp_path / "f.jsonl", [{"prompt": "Q?"}] * (FIRST_ROWS + 5))
    with pytest.raises(DataError, match=f"none of the {FIRST_ROWS + 5:,} rows is usable as rlsys.*row 1: responses") as error:
        RecordFile(path, "rlsys")
    assert error.value.file == str(path)
    # One usable row is enough, wherever it is.
    file = RecordFile(write(path, [{}] * (FIRST_ROWS + 5) + [OWN]), "rlsys")
    assert file.report.records == 1 and file.report.malformed_count == FIRST_ROWS + 5


def test_parquet_with_nested_messages_and_nulls(tmp_path):
    one, two = ([USER, {"role": "assistant", "content": text}] for text in ("one", "two"))
    rows = [{"chosen": one, "rejected": two, "source": "magpie"}, {"chosen": None, "rejected": two, "source": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
    records, report = load(tmp_path / "f.parquet", "skywork")
    assert records == [Record("f:1", "skywork", (USER,), ("one", "two"), (1.0, 0.0), family="magpie")]
    assert report.malformed[0][0] == 2 and "chosen: expected a list of messages, found nothing" in report.malformed[0][1]


def test_parquet_text_that_is_not_utf8_is_one_malformed_row(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"Q?", b"\xff\xfe", b"Q?"], pa.binary()).buffers())
    table = pa.table({"input": broken, "output_1": ["one"] * 3, "output_2": ["two"] * 3, "label": [1] * 3})
    pq.write_table(table, tmp_path / "f.parquet")
    records, report = load(tmp_path / "f.parquet", "llmbar")
    assert [record.id for record in records] == ["f:1", "f:3"] and report.malformed[0][0] == 2
    assert [len(found) for found in RecordFile(tmp_path / "f.parquet", "llmbar").fetch([2, 1, 0])] == [1, 0, 1]


def test_large_parquet_row_group_is_not_held_in_memory(tmp_path):
    rows, text = 30_000, "x" * 3000
    schema = pa.schema({"input": pa.string(), "output_1": pa.string(), "output_2": pa.string(), "label": pa.int64()})
    numbers = [f"{i} {text}" for i in range(rows)]
    table = pa.table({"input": numbers, "output_1": numbers, "output_2": ["no"] * rows, "label": [1] * rows}, schema)
    pq.write_table(table, tmp_path / "f.parquet", row_group_size=rows, use_dictionary=False)
    del table, numbers
    held = 2 * len(text) * rows  # bytes of text in the file
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    first = list(itertools.islice(read(tmp_path / "f.parquet", "llmbar"), 3))
    assert [record.id for record in first] == ["f:1", "f:2", "f:3"]
    file = RecordFile(tmp_path / "f.parquet", "llmbar")
    order = random.Random(0).sample(range(rows), 3000)
    for start in range(0, 2000, 500):
        found = file.fetch(order[start : start + 500], order[start + 500 : start + 1500])
        assert [record.context[0]["content"] for (record,) in found] == [f"{i} {text}" for i in order[start : start + 500]]
    peak = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - arrow
    tracemalloc.stop()
    assert len(file) == rows
    assert peak < held / 4


def test_all_malformed_rows_are_counted_with_few_messages_kept(tmp_path):
    _, report = load(write(tmp_path / "f.jsonl", [{"a": 1}] * 1000), "llmbar")
    assert report.malformed_count == 1000 and len(report.malformed) == MESSAGES
    assert "and 980 more" in report.summary()


def test_report_is_json(tmp_path):
    rows = [OWN, OWN | {"id": "y", "rewards": [1, 1]}, {}]
    _, report = load(write(tmp_path / "f.jsonl", rows), "rlsys")
    found = json.loads(json.dumps(report.to_json()))
    assert {key: found[key] for key in ("rows", "records", "no_unique_best", "malformed_count", "format", "responses")} == {
        "rows": 3,
        "records": 1,
        "no_unique_best": 1,
        "malformed_count": 1,
        "format": "rlsys",
        "responses": {"2": 1},
    }
    assert found["malformed"][0]["row"] == 3 and "responses" in found["malformed"][0]["message"]
    assert "3 rows, 1 records" in report.summary()


def test_unknown_format_suggests_the_closest_and_lists_all():
    with pytest.raises(DataError, match="Did you mean helpsteer2.*trl_preference.*pandalm"):
        read("anything.jsonl", "helpsteer_2")


@pytest.mark.parametrize(
    "name, meant",
    [
        ("HH-RLHF", "hh_rlhf"), ("trl", "trl_preference or trl_unpaired"), ("helpsteer", "helpsteer2 or helpsteer3"),
        ("helpsteer-3", "helpsteer3"), ("reward_bench", "rewardbench"), ("MT-bench", "arena"), ("dpo", "trl_preference"),
    ],
)  # fmt: skip
def test_format_is_suggested_for_another_spelling_or_part_of_its_name(name, meant):
    with pytest.raises(DataError, match=f"Did you mean {meant}\\?"):
        read("absent.jsonl", name)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("f.csv", b"a,b", "has no rows"),
        ("f.csv", b'a,b\n1,"2\n3,4\n', "closing quotation mark"),
        ("f.csv", b"a,a\n1,2\n", "columns of different names, found 'a'"),
        ("f.md", b"# Rows", "neither the name nor the content"),
        ("f.jsonl", b"PK\x03\x04...", "a zip archive"),
        ("f.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("f.arrow", b"not Arrow", "damaged"),
        ("f.jsonl", b"", "the file is empty"),
        ("f.jsonl", b"\n \n", "has no rows"),
        ("f.json", b"[]", "has no rows"),
        ("f.json", b"{}", 'expected a list of objects or {"data"'),
        ("f.json", b"3", "expected a list"),
        ("f.json", b'{"train": [{}], "test": [{}]}', "FILE:train"),
        ("f.json", b"[\xff]", "expected JSON in UTF-8"),
        ("f.json", b"[" * 100_000, "expected JSON"),
        ("f.jsonl", "{}".encode("utf-16"), "UTF-16"),
        ("f.parquet", b"PAR1 but not really", "not a readable Parquet file"),
        ("f.jsonl.gz", b"\x1f\x8b not gzip", "damaged"),
        ("f.parquet", gzip.compress(b"PAR1", mtime=0), "decompress it"),
        ("f.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:30], "damaged"),
    ],
)
def test_unreadable_files_report_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path / name, "rlsys")
    assert name in str(error.value)


def test_bare_carriage_returns_are_read_or_reported(tmp_path):
    rows = "\r".join(json.dumps(OWN | {"id": name}) for name in "ab") + "\r"
    for name in ("f.json", "no_suffix"):
        (tmp_path / name).write_text(rows)
        assert [record.id for record in read(tmp_path / name, "rlsys")] == ["a", "b"]
    (tmp_path / "f.csv").write_text("prompt,chosen,rejected\rq,a,b\rq,a,c\r")
    assert len(load(tmp_path / "f.csv", "trl_preference")[0]) == 2
    (tmp_path / "f.jsonl").write_text(rows)
    records, report = load(tmp_path / "f.jsonl", "rlsys")
    assert not records and "bare carriage return" in report.malformed[0][1]


def test_missing_files_and_folders_are_errors(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read(tmp_path / "none.jsonl", "rlsys")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match="has no data file"):
        read(tmp_path / "folder.json", "rlsys")
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match="has no rows"):
        list(read(tmp_path / "f.parquet", "rlsys"))


@pytest.mark.parametrize("change", [lambda path: write(path, [OWN]), Path.unlink])
def test_change_of_an_open_file_is_detected(tmp_path, change):
    path = write(tmp_path / "f.jsonl", [OWN, OWN | {"id": "y"}])
    file = RecordFile(path, "rlsys")
    change(path)
    with pytest.raises(DataError, match="has changed"):
        file.fetch([1])


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, pa.Codec("zstd").compress])
def test_smaller_files_are_read_like_data_files(tmp_path, pack):
    text = '\ufeff{"id": "a\u2028b"}\r\n\n  \n{"id": "c", "easy": false}\n{"id": "d"}'
    (tmp_path / "easy.jsonl").write_bytes(bytes(pack(text.encode())))
    assert list(strict_rows(tmp_path / "easy.jsonl")) == [(1, {"id": "a\u2028b"}), (4, {"id": "c", "easy": False}), (5, {"id": "d"})]
    assert excluded_ids(tmp_path / "easy.jsonl") == {"a\u2028b": {None}, "d": {None}}


def test_faulty_row_of_a_smaller_file_is_located(tmp_path):
    (tmp_path / "f.jsonl").write_text('{"id": 1}\n\n[1]\n')
    with pytest.raises(DataError, match="f.jsonl, row 3: row: expected an object"):
        list(strict_rows(tmp_path / "f.jsonl"))
    (tmp_path / "f.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="has no rows"):
        list(strict_rows(tmp_path / "f.jsonl"))
    assert list(strict_rows(tmp_path / "f.jsonl", lines=True)) == []


def test_pipe_is_read_once_and_can_be_scanned_repeatedly(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=(tmp_path / "pipe").write_text, args=('{"a": 1}\n{"a": 2}\n',)).start()
    source = open_source(tmp_path / "pipe")
    assert list(source.scan()) == source.fetch([0, 1]) == [(1, {"a": 1}), (2, {"a": 2})]


# Many files as one, and files of other kinds.

PAIR = {"prompt": "Q?", "chosen": "one", "rejected": "two"}


def pairs(*numbers: int) -> list[dict]:
    return [PAIR | {"prompt": f"Q{number}?"} for number in numbers]


def numbers(records) -> list[int]:
    return [int(record.context[0]["content"][1:-1]) for record in records]


def parquet(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(dict.fromkeys(PAIR, pa.string()))), path)
    return path


@pytest.fixture
def shards(tmp_path):
    """A folder of shards, with the other files usually found there."""
    folder = tmp_path / "shards"
    for number in range(3):
        parquet(folder / f"data/train-0000{number}-of-00003.parquet", pairs(*range(4 * number, 4 * number + 4)) if number != 1 else [])
    for name in ("_SUCCESS", ".hidden.parquet", "_metadata", "data/._train.parquet", ".cache/x.jsonl", "dataset_infos.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not rows")
    (folder / "README.md").write_text("# About")
    (folder / "data/empty.parquet").write_bytes(b"")
    return folder


def test_folder_of_shards_is_read_as_one_file(shards):
    records, report = load(shards, "trl_preference", strict=True)
    assert numbers(records) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert [record.id for record in records] == [f"shards:{i}" for i in range(1, 9)]
    assert [Path(name).name for name in report.passed_over] == ["README.md", "empty.parquet"]
    file = RecordFile(shards, "trl_preference")
    assert len(file) == 8 and list(file) == records
    assert [one for (one,) in file.fetch([7, 0, 4, 0], [5, 1])] == [records[i] for i in (7, 0, 4, 0)]
    assert [one for (one,) in file.fetch([5, 1])] == [records[5], records[1]]
    parquet(shards / "data/train-00002-of-00003.parquet", pairs(1))
    with pytest.raises(DataError, match="has changed"):
        file.fetch([0])


def test_patterns_and_their_order(shards):
    records, _ = load(shards / "data" / "train-*.parquet", "trl_preference")
    assert numbers(records) == [0, 1, 2, 3, 8, 9, 10, 11]
    records, _ = load(shards / "**" / "*2-of-*.parquet", "trl_preference")
    assert numbers(records) == [8, 9, 10, 11]
    with pytest.raises(DataError, match="no such file"):
        load(shards / "*.csv", "trl_preference")


def test_other_matches_of_a_pattern_are_listed_and_dangling_links_are_errors(tmp_path):
    write(tmp_path / "a.jsonl", [PAIR])
    (tmp_path / "b.jsonl").touch()
    (tmp_path / "c.jsonl").mkdir()
    for path in (tmp_path / "*.jsonl", tmp_path / "?.jsonl"):
        assert [Path(name).name for name in load(path, "trl_preference")[1].passed_over] == ["b.jsonl", "c.jsonl"]
    (tmp_path / "d.jsonl").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "*.jsonl"):
        with pytest.raises(DataError, match=r"d\.jsonl: is a link to a file that does not exist"):
            load(path, "trl_preference")


def test_malformed_row_of_a_shard_is_located_in_its_own_file(tmp_path):
    for number, rows in enumerate((["", json.dumps(PAIR), ""], ["", "{", json.dumps(PAIR | {"chosen": 3})], [json.dumps(PAIR)])):
        (tmp_path / f"part-{number}.jsonl").write_text("\n".join(rows))
    records, report = load(tmp_path, "trl_preference")
    second = tmp_path / "part-1.jsonl"
    assert len(records) == 2 and len({record.id for record in records}) == 2
    assert [message.partition(": ")[0] for _, message in report.malformed] == [f"{second}, row 2", f"{second}, row 3"]
    file = RecordFile(tmp_path, "trl_preference")
    assert [found[0].id if found else None for found in file.fetch([3, 2, 1, 0])] == [records[1].id, None, None, records[0].id]
    assert [message for _, message in file.report.malformed] == [message for _, message in report.malformed]


@pytest.mark.parametrize(
    "files, message",
    [
        (["train-00000-of-00002.parquet"], "lacks shard 1 of 00002"),
        (["train.jsonl", "test.jsonl"], r"several splits \(test, train\).*:t"),
        (["pairs.jsonl", "pairs_test.jsonl"], "several splits"),
        (["a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet"], "several splits.*a/train, b/train"),
        (["a.parquet", "a.jsonl"], "JSON Lines and Parquet files: name the ones"),
        (["a.jsonl", "a.jsonl.gz"], "a under several names"),
        (["notes.txt"], "no data file"),
        ([], "no data file"),
    ],
)
def test_ambiguous_folders_are_rejected(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=message):
        read(tmp_path, "trl_preference")


def test_split_is_selected_after_a_colon(tmp_path):
    parquet(tmp_path / "set/data/train-00000-of-00001.parquet", pairs(1))
    parquet(tmp_path / "set/data/test-00000-of-00001.parquet", pairs(2))
    (tmp_path / "f.json").write_text(json.dumps({"train": pairs(1), "test": pairs(2)}))
    for name in ("set", "f.json"):
        for split, number in (("train", 1), ("test", 2)):
            assert numbers(load(tmp_path / f"{name}:{split}", "trl_preference")[0]) == [number]
        with pytest.raises(DataError, match="dev"):
            read(tmp_path / f"{name}:dev", "trl_preference")
    path = write(tmp_path / "f.jsonl", pairs(1))
    with pytest.raises(DataError, match="a file with several splits"):
        read(f"{path}:train", "trl_preference")


def test_saved_datasets_are_read_in_the_order_of_their_state(tmp_path):
    folder = tmp_path / "saved/train"
    folder.mkdir(parents=True)
    for name, rows in (("b.arrow", pairs(1, 2)), ("a.arrow", pairs(3))):
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "b.arrow"}, {"filename": "a.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train"]}')
    for path in (folder, tmp_path / "saved", tmp_path / "saved:train"):
        assert numbers(load(path, "trl_preference")[0]) == [1, 2, 3]
    (folder / "a.arrow").unlink()
    with pytest.raises(DataError, match="no such file"):
        read(folder, "trl_preference")


def test_hub_name_without_the_library_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("owner/name", "owner/name:train", "owner/name:config:train"):
        with pytest.raises(DataError, match="pip install datasets.*hf download --repo-type dataset owner/name"):
            read(name, "trl_preference")
    for name in ("owner/name.jsonl", "a/b/c", "name"):
        with pytest.raises(DataError, match="there is no such file"):
            read(name, "trl_preference")


LINES = "".join(json.dumps(row) + "\n" for row in pairs(1, 2, 3))


@pytest.mark.parametrize(
    "name, content",
    [
        ("f.ndjson", LINES),
        ("f.jsonlines", "\ufeff" + LINES),
        ("f.json", LINES),
        ("f.txt", LINES),
        ("f", LINES),
        ("f.jsonl", json.dumps(pairs(1, 2, 3), indent=1)),
        ("f.jsonl", json.dumps(pairs(1, 2, 3))),
        ("f.json", "\n".join(json.dumps(row, indent=2) for row in pairs(1, 2, 3))),
        ("f.json", json.dumps({"train": pairs(1, 2, 3), "version": 1})),
        ("f.json", json.dumps({"length": pairs(1, 2), "style": pairs(3)})),
        ("f.csv", 'prompt,chosen,rejected\r\nQ1?,one,two\r\n"Q2?","one",two\r\n\r\nQ3?,one,two'),
        ("f.tsv", "prompt\tchosen\trejected\nQ1?\tone\ttwo\nQ2?\tone\ttwo\nQ3?\tone\ttwo\n"),
        ("f.csv", "\ufeffprompt;chosen;rejected\nQ1?;one;two\nQ2?;one;two\nQ3?;one;two\n"),
    ],
)
@pytest.mark.parametrize("pack", [None, gzip.compress, pa.Codec("zstd").compress])
def test_every_layout_yields_the_same_rows(tmp_path, name, content, pack):
    path = tmp_path / (name if pack is None else f"{name}.packed" if name == "f" else name)
    path.write_bytes(content.encode() if pack is None else bytes(pack(content.encode())))
    records, report = load(path, "trl_preference", strict=True)
    assert numbers(records) == [1, 2, 3] and {record.responses for record in records} == {("one", "two")}
    file = RecordFile(path, "trl_preference")
    assert list(file) == records and [one for (one,) in file.fetch([2, 0])] == [records[2], records[0]]


def test_csv_with_unreadable_rows_and_multiline_text(tmp_path):
    content = b'prompt,chosen,rejected\n"Q1?","a\n""b"",",\nQ2?,\xff,two\nQ3?,one\nQ4?,x"y",two\n"Q5?"z,one,two\nQ6?,one,two\n'
    (tmp_path / "f.csv").write_bytes(content)
    records, report = load(tmp_path / "f.csv", "trl_preference")
    assert [record.responses for record in records] == [('a\n"b",', ""), ('x"y"', "two"), ("one", "two")]
    assert [row for row, _ in report.malformed] == [2, 3, 5] and report.rows == 6
    source = open_source(tmp_path / "f.csv")
    assert [str(raw) for _, raw in source.fetch(range(6))] == [str(raw) for _, raw in source.scan()]


NESTED = pa.struct([("text", pa.string()), ("n", pa.int8())])
TYPES = [
    pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.decimal128(9, 2), pa.decimal256(40, 2), pa.string(),
    pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2), pa.date32(), pa.date64(),
    pa.time32("s"), pa.time64("ns"), pa.timestamp("s"), pa.timestamp("ns", "UTC"), pa.timestamp("us", "Nowhere/Land"), pa.duration("ns"),
    pa.month_day_nano_interval(), pa.list_(pa.string()), pa.large_list(pa.string_view()), pa.list_view(pa.int32()),
    pa.large_list_view(pa.int32()), pa.list_(pa.int32(), 2), NESTED, pa.map_(pa.string(), pa.int32()),
    pa.dictionary(pa.int8(), pa.string()), pa.list_(pa.dictionary(pa.int32(), pa.string())),
    pa.run_end_encoded(pa.int32(), pa.string()), pa.uuid(), pa.json_(),
]  # fmt: skip


def values_of(kind: pa.DataType) -> pa.Array:
    """Four values of any type, including a null, built from random bytes."""
    makers = [
        lambda: pa.array([1, None, 0, 1], pa.int64()).cast(kind),
        lambda: pa.array(["ab", None, "cd", "ab"]).cast(kind),
        lambda: pa.array([["a", "b"], None, ["c", "d"], ["e", "f"]]).cast(kind),
        lambda: pa.array([[1, 2], None, [3, 4], [5, 6]], kind),
        lambda: pa.array([{"text": "a", "n": 1}, None, {"text": None, "n": 2}, {}], kind),
        lambda: pa.array([[("a", 1)], None, [], [("a", 1), ("a", 2)]], kind),
        lambda: pa.array([b"0123456789abcdef", None, b"x" * 16, b"y" * 16], kind),
        lambda: pa.array([(1, 2, 3), None, (0, 0, 1), (4, 5, 6)], kind),
        lambda: pa.nulls(4, kind),
    ]
    for make in makers:
        try:
            return make()
        except (pa.ArrowException, TypeError, ValueError):
            continue
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("file", ["f.parquet", "file.arrow", "stream.arrow", "packed.arrow"])
def test_whatever_can_be_scanned_can_be_fetched(tmp_path, kind, file):
    extra = values_of(kind)
    table = pa.table({"extra": extra, **{key: [f"{key}{i}" for i in range(4)] for key in PAIR}})
    path = tmp_path / file
    try:
        if file == "f.parquet":
            pq.write_table(table, path, row_group_size=3)
        else:
            options = pa.ipc.IpcWriteOptions(compression="zstd" if file == "packed.arrow" else None)
            with (pa.ipc.new_file if file == "file.arrow" else pa.ipc.new_stream)(path, table.schema, options=options) as writer:
                writer.write_table(table, 3)
    except pa.ArrowNotImplementedError:
        pytest.skip("pyarrow writes no such column")
    source = open_source(path)
    scanned = list(source.scan())
    assert [row for row, _ in scanned] == [1, 2, 3, 4] and source.last == len(source) == 4
    assert source.fetch([3, 0, 2, 1], [1]) == [scanned[i] for i in (3, 0, 2, 1)]
    records, report = load(path, "trl_preference", strict=True)
    assert [record.responses for record in records] == [(f"chosen{i}", f"rejected{i}") for i in range(4)]
    assert list(itertools.chain(*RecordFile(path, "trl_preference").fetch(range(4)))) == records


def test_unrepresentable_value_is_an_error_only_if_needed(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"Q?", b"\xff\xfe"], pa.binary()).buffers())
    times = pa.array([1, 2], pa.timestamp("ns"))
    pq.write_table(pa.table({"prompt": broken, "chosen": ["one"] * 2, "rejected": ["two"] * 2, "time": times}), tmp_path / "f.parquet")
    records, report = load(tmp_path / "f.parquet", "trl_preference")
    assert len(records) == 1 and "prompt: expected" in report.malformed[0][1] and "cannot be read" in report.malformed[0][1]


def test_text_as_bytes_and_missing_labels(tmp_path):
    columns = {"input": pa.array([b"Q?"] * 4), "output_1": ["one"] * 4, "output_2": ["two"] * 4}
    labels = pa.array([1.0, 2.0, None, float("nan")])
    for kind in (pa.float32(), pa.float64(), pa.decimal128(5, 1)):
        column = labels.filter(pa.array([True, True, True, False])) if pa.types.is_decimal(kind) else labels
        table = pa.table({key: value[: len(column)] for key, value in columns.items()} | {"label": column.cast(kind)})
        pq.write_table(table, tmp_path / "f.parquet")
        records, report = load(tmp_path / "f.parquet", "llmbar")
        assert [record.rewards for record in records] == [(1.0, 0.0), (0.0, 1.0)]
        assert report.malformed_count == len(column) - 2
