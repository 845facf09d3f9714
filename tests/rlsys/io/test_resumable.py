"""Resumable files of rows: content after interruptions, settings and locking."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlsys.data.readers import DataError
from rlsys.io.resumable import ResumableRows

SETTINGS = {"k": 2, "model": "m", "orders": [0, 1]}
ROWS = [{"id": "a", "text": "one\ntwo"}, {"id": "b", "text": "über · 日本 \u2028 \x85"}, {"id": "c", "text": ""}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "rows.jsonl"


def names(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


def write_first_rows(path: Path, count: int) -> None:
    with ResumableRows(path, SETTINGS) as rows:
        for row in ROWS[rows.done : count]:
            rows.write(row)


def test_row_is_on_disk_when_write_returns(path: Path) -> None:
    with ResumableRows(path, SETTINGS) as rows:
        assert (rows.done, rows.complete) == (0, False)
        for number, row in enumerate(ROWS, 1):
            rows.write(row)
            written = rows.part.read_bytes().split(b"\n")
            assert [json.loads(line) for line in written[:-1]] == ROWS[:number] and written[-1] == b""
        assert list(rows.rows()) == ROWS and not path.exists()
        rows.finish()
        assert list(rows.rows()) == ROWS and rows.complete
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == ROWS
    assert names(path) == {"rows.jsonl", "rows.jsonl.settings.json"}


@pytest.mark.parametrize("count", range(len(ROWS) + 1))
def test_resume_continues_after_the_last_row(path: Path, count: int) -> None:
    write_first_rows(path, count)
    assert path.parent.exists() and (names(path) == set()) == (count == 0)
    with ResumableRows(path, SETTINGS) as rows:
        assert rows.done == count and list(rows.rows()) == ROWS[:count]
        for row in ROWS[count:]:
            rows.write(row)
        rows.finish()
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == ROWS


def test_truncation_at_any_byte_keeps_exactly_the_complete_rows(path: Path) -> None:
    write_first_rows(path, len(ROWS))
    part = path.with_name("rows.jsonl.part")
    whole = part.read_bytes()
    for length in range(1, len(whole) + 1):
        part.write_bytes(whole[:length])
        kept = whole[:length].count(b"\n")
        with ResumableRows(path, SETTINGS) as rows:
            assert rows.done == kept
            assert list(rows.rows()) == ROWS[:kept]
            for row in ROWS[kept:]:
                rows.write(row)
            assert rows.part.read_bytes() == whole


def test_rows_of_other_settings_are_rejected_and_left_unchanged(path: Path) -> None:
    write_first_rows(path, 1)
    before = {name: (path.parent / name).read_bytes() for name in names(path)}
    with pytest.raises(DataError, match=r"other settings \(k: 2 before, 3 now; new: None before, True now\).*--again"):
        ResumableRows(path, SETTINGS | {"k": 3, "new": True})
    with pytest.raises(DataError, match=r"\(model: 'm' before, None now\)"):
        ResumableRows(path, {name: value for name, value in SETTINGS.items() if name != "model"})
    assert {name: (path.parent / name).read_bytes() for name in names(path)} == before
    with ResumableRows(path, SETTINGS) as rows:  # no lock is left behind
        assert rows.done == 1


def test_finished_file_is_complete_and_rejects_other_settings(path: Path) -> None:
    with ResumableRows(path, SETTINGS) as rows:
        rows.write(ROWS[0])
        rows.finish()
    written = path.read_bytes()
    for _ in range(2):
        with ResumableRows(path, SETTINGS) as rows:
            assert rows.complete and list(rows.rows()) == ROWS[:1]
        assert path.read_bytes() == written and names(path) == {"rows.jsonl", "rows.jsonl.settings.json"}
    with pytest.raises(DataError, match="other settings"):
        ResumableRows(path, SETTINGS | {"k": 9})
    assert path.read_bytes() == written and names(path) == {"rows.jsonl", "rows.jsonl.settings.json"}


def test_rows_without_saved_settings_are_rejected(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"id": "of somebody else"}\n')
    with pytest.raises(DataError, match="k: None before, 2 now"):
        ResumableRows(path, SETTINGS)
    assert path.read_text() == '{"id": "of somebody else"}\n' and names(path) == {"rows.jsonl"}


@pytest.mark.parametrize("finished", [False, True])
def test_restart_discards_rows_and_accepts_new_settings(path: Path, finished: bool) -> None:
    with ResumableRows(path, SETTINGS) as rows:
        rows.write(ROWS[0])
        if finished:
            rows.finish()
    with ResumableRows(path, SETTINGS | {"k": 5}, restart=True) as rows:
        assert (rows.done, rows.complete, list(rows.rows())) == (0, False, [])
        rows.write(ROWS[2])
        assert json.loads(rows.settings_path.read_text()) == SETTINGS | {"k": 5}
    with ResumableRows(path, SETTINGS | {"k": 5}) as rows:
        assert list(rows.rows()) == ROWS[2:]


def test_settings_may_change_before_the_first_row(path: Path) -> None:
    write_first_rows(path, 0)
    assert names(path) == set()
    with ResumableRows(path, SETTINGS | {"k": 5}) as rows:
        rows.write(ROWS[0])
    assert json.loads(path.with_name("rows.jsonl.settings.json").read_text()) == SETTINGS | {"k": 5}


def test_file_without_rows_can_be_complete(path: Path) -> None:
    with ResumableRows(path, SETTINGS) as rows:
        rows.finish()
        assert list(rows.rows()) == []
    assert names(path) == {"rows.jsonl", "rows.jsonl.settings.json"} and path.read_bytes() == b""
    with ResumableRows(path, SETTINGS) as rows:
        assert rows.complete and list(rows.rows()) == []
    assert names(path) == {"rows.jsonl", "rows.jsonl.settings.json"}


def test_unserialisable_row_raises_and_leaves_no_partial_row(path: Path) -> None:
    with ResumableRows(path, SETTINGS) as rows:
        rows.write(ROWS[0])
        for bad, error in (({"x": float("nan")}, ValueError), ({"x": {1, 2}}, TypeError), ({"x": "\ud800"}, UnicodeEncodeError)):
            with pytest.raises(error):
                rows.write(bad)
        rows.write(ROWS[1])
        assert list(rows.rows()) == ROWS[:2]


def test_file_is_locked_against_other_processes(path: Path) -> None:
    """Another process is rejected while this one holds the lock, and admitted afterwards."""
    code = (
        "import sys; from pathlib import Path; from rlsys.data.readers import DataError; from rlsys.io.resumable import ResumableRows\n"
        "try:\n    rows = ResumableRows(Path(sys.argv[1]), {'k': 2}, restart=True)\n"
        "except DataError as error:\n    sys.exit(str(error))\n"
        "print(rows.done)"
    )

    def other() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(path)]
        return subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)

    with ResumableRows(path, {"k": 2}) as rows:
        rows.write(ROWS[0])
        rejected = other()
        assert rejected.returncode == 1 and "another process is writing it" in rejected.stderr
        assert list(rows.rows()) == ROWS[:1]  # not even --again touches it
    admitted = other()
    assert (admitted.returncode, admitted.stdout) == (0, "0\n"), admitted.stderr
