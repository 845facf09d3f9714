"""Files of rows: every kind is read alike, streamed or by row number; damage is counted where it stands; the report."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import os
import random
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlsys.exclusion import named_rows
from rlsys.readers import DataError, RecordFile, Report, read
from rlsys.readers.files import FIRST_LOOK, MESSAGES
from rlsys.readers.json_files import STRIDE
from rlsys.readers.sources import open_source, whole_rows
from rlsys.records import Record

USER = {"role": "user", "content": "Q?"}
OWN = {"id": "x", "source": "s", "context": [USER], "responses": ["one", "two"], "rewards": [0.5, -2]}


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, format: str, **options):
    report = Report()
    return list(read(path, format, report=report, **options)), report


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


def test_every_kind_of_file_holds_the_same_records(tmp_path):
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
def test_rows_fetched_in_any_order_with_any_foresight_are_those_of_the_file(tmp_path, suffix, group):
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
            assert set(source._kept) <= set(upcoming)


def test_the_index_of_lines_is_right_at_its_marks_and_between(tmp_path):
    lines = [json.dumps({"text": "é" * (i % 7), "i": i}) for i in range(3 * STRIDE + 5)]
    (tmp_path / "f.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n \r\n".join(lines).encode())
    source = open_source(tmp_path / "f.jsonl")
    assert source.fetch(range(len(lines))) == [(1 + 2 * i, json.loads(line)) for i, line in enumerate(lines)]
    assert source.fetch([STRIDE, STRIDE - 1, len(lines) - 1, 0]) == [
        (1 + 2 * i, json.loads(lines[i])) for i in (STRIDE, STRIDE - 1, len(lines) - 1, 0)
    ]


def test_rows_by_number_are_checked_when_they_are_fetched(tmp_path):
    lines = [json.dumps(OWN | {"id": f"é{i}"}, ensure_ascii=False) for i in range(6)]
    lines[1] = "{broken"
    lines[3] = json.dumps(OWN | {"rewards": [1, 1]})
    (tmp_path / "f.jsonl").write_text("\ufeff" + "\n\n".join(lines))
    file = RecordFile(tmp_path / "f.jsonl", "rlsys")
    assert [[record.id for record in found] for found in file.fetch(range(6))] == [["é0"], [], ["é2"], [], ["é4"], ["é5"]]
    assert (file.report.malformed_count, file.report.no_unique_best, file.report.malformed[0][0]) == (1, 1, 3)
    with pytest.raises(DataError, match="row 3"):
        RecordFile(tmp_path / "f.jsonl", "rlsys", strict=True)


def test_the_report_counts_a_row_once_and_when_it_is_met(tmp_path):
    count = FIRST_LOOK + 100
    rows = [OWN | {"id": str(i)} for i in range(count)]
    rows[count - 1], rows[count - 2] = {}, OWN | {"rewards": [1, 1]}
    file = RecordFile(write(tmp_path / "f.jsonl", rows), "rlsys")
    assert (file.report.rows_in_file, file.report.rows, file.report.records) == (count, FIRST_LOOK, FIRST_LOOK)
    for _ in range(3):
        assert file.fetch([count - 1, 0, count - 2, count - 1, count - 3])[0] == []
    report = file.report
    assert (report.rows, report.records, report.malformed_count, report.no_unique_best) == (FIRST_LOOK + 3, FIRST_LOOK + 1, 1, 1)
    assert report.responses == {2: FIRST_LOOK + 1} and [row for row, _ in report.malformed] == [count]
    for _ in range(2):
        file.fetch(range(count))
    _, streamed = load(tmp_path / "f.jsonl", "rlsys")
    assert report == replace(streamed, rows_in_file=count)


def test_strict_checks_every_row_at_the_start_repeated_ids_included(tmp_path):
    rows = [OWN | {"id": str(i)} for i in range(FIRST_LOOK + 10)]
    path = write(tmp_path / "f.jsonl", rows)
    file = RecordFile(path, "rlsys", strict=True)
    assert file.report.records == len(rows) and [len(found) for found in file.fetch([0, 5, 0])] == [1, 1, 1]
    write(path, [*rows, rows[3]])
    with pytest.raises(DataError, match=f"row {len(rows) + 1}: .*'3' again"):
        RecordFile(path, "rlsys", strict=True)
    assert RecordFile(path, "rlsys").fetch([len(rows)]) == [[Record.from_json(rows[3])]]


def test_a_file_without_a_usable_row_is_refused_with_its_first_fault(tmp_path):
    path = write(tmp_path / "f.jsonl", [{"prompt": "Q?"}] * (FIRST_LOOK + 5))
    with pytest.raises(DataError, match=f"none of the {FIRST_LOOK + 5:,} rows is usable as rlsys.*row 1: responses") as error:
        RecordFile(path, "rlsys")
    assert error.value.file == str(path)
    # One is enough, wherever it stands.
    file = RecordFile(write(path, [{}] * (FIRST_LOOK + 5) + [OWN]), "rlsys")
    assert file.report.records == 1 and file.report.malformed_count == FIRST_LOOK + 5


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


def test_parquet_of_one_large_row_group_is_never_whole_in_memory(tmp_path):
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


def test_all_malformed_rows_are_counted_but_few_messages_kept(tmp_path):
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


def test_an_unknown_format_names_the_nearest_and_all_known():
    with pytest.raises(DataError, match="Did you mean helpsteer2.*trl_preference.*pandalm"):
        read("anything.jsonl", "helpsteer_2")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("f.csv", b"a,b", "holds no rows"),
        ("f.csv", b'a,b\n1,"2\n3,4\n', "closing quotation mark"),
        ("f.csv", b"a,a\n1,2\n", "columns of different names, found 'a'"),
        ("f.md", b"# Rows", "neither its name nor its content"),
        ("f.jsonl", b"PK\x03\x04...", "a zip archive"),
        ("f.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("f.arrow", b"not Arrow", "damaged"),
        ("f.jsonl", b"", "the file is empty"),
        ("f.jsonl", b"\n \n", "holds no rows"),
        ("f.json", b"[]", "holds no rows"),
        ("f.json", b"{}", 'expected a list of objects or {"data"'),
        ("f.json", b"3", "expected a list"),
        ("f.json", b'{"train": [{}], "test": [{}]}', "FILE:train"),
        ("f.json", b"[\xff]", "expected JSON in UTF-8"),
        ("f.json", b"[" * 100_000, "expected JSON"),
        ("f.jsonl", "{}".encode("utf-16"), "UTF-16"),
        ("f.parquet", b"PAR1 but not really", "not a readable Parquet file"),
        ("f.jsonl.gz", b"\x1f\x8b not gzip", "damaged"),
        ("f.parquet", gzip.compress(b"PAR1"), "unpack it"),
        ("f.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:30], "damaged"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path / name, "rlsys")
    assert name in str(error.value)


def test_missing_files_and_folders_say_so(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read(tmp_path / "none.jsonl", "rlsys")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "folder.json", "rlsys")
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        list(read(tmp_path / "f.parquet", "rlsys"))


@pytest.mark.parametrize("change", [lambda path: write(path, [OWN]), Path.unlink])
def test_a_file_that_changes_while_it_is_open_is_noticed(tmp_path, change):
    path = write(tmp_path / "f.jsonl", [OWN, OWN | {"id": "y"}])
    file = RecordFile(path, "rlsys")
    change(path)
    with pytest.raises(DataError, match="has changed"):
        file.fetch([1])


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, pa.Codec("zstd").compress])
def test_smaller_files_are_read_as_data_files_are(tmp_path, pack):
    text = '\ufeff{"id": "a\u2028b"}\r\n\n  \n{"id": "c", "easy": false}\n{"id": "d"}'
    (tmp_path / "easy.jsonl").write_bytes(bytes(pack(text.encode())))
    assert list(whole_rows(tmp_path / "easy.jsonl")) == [(1, {"id": "a\u2028b"}), (4, {"id": "c", "easy": False}), (5, {"id": "d"})]
    assert named_rows(tmp_path / "easy.jsonl") == {"a\u2028b": {None}, "d": {None}}


def test_a_faulty_row_of_a_smaller_file_is_named(tmp_path):
    (tmp_path / "f.jsonl").write_text('{"id": 1}\n\n[1]\n')
    with pytest.raises(DataError, match="f.jsonl, row 3: row: expected an object"):
        list(whole_rows(tmp_path / "f.jsonl"))
    (tmp_path / "f.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="holds no rows"):
        list(whole_rows(tmp_path / "f.jsonl"))
    assert list(whole_rows(tmp_path / "f.jsonl", lines=True)) == []


def test_a_pipe_is_read_once_and_as_often_as_asked(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=(tmp_path / "pipe").write_text, args=('{"a": 1}\n{"a": 2}\n',)).start()
    source = open_source(tmp_path / "pipe")
    assert list(source.scan()) == source.fetch([0, 1]) == [(1, {"a": 1}), (2, {"a": 2})]
