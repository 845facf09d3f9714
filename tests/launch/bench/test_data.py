"""`rlsys bench data`: the rows of the file are drawn, in their order, and nothing is left behind. How fast is no matter for a test."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import rlsys_here

from launch.bench.data import BLOCK_ROWS, TIE_EVERY, SamplingTask, make_file, measured
from rlsys.data.readers import Report, read

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 600


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_figures_add_up_and_the_files_are_gone(bench, tmp_path: Path, format: str) -> None:
    options = ("--rows", 12_000, "--row-group", 5000, "--batch", 50, "--batches", 6, "--check-rows", 1500)
    document = bench("data", *options, "--format", format, "--folder", tmp_path)
    assert document["work"] == {"format": format, "row_group": 5000, "batch": 50, "batches": 6}
    assert [file["rows"] for file in document["files"].values()] == [10_000, 12_000]
    for file in document["files"].values():
        assert file["drawn"] == 350 and 0 <= file["set_aside"] < 10 and file["bytes"] > 0
        seconds, memory = file["seconds"], file["memory"]
        assert min(seconds.values()) > 0
        assert seconds["later batches, median"] <= seconds["later batches, longest"]
        passes = (seconds["open"] + seconds["first batch"]) / seconds["one plain pass"]
        assert file["open_and_first_batch_in_plain_passes"] == pytest.approx(passes)
        assert list(memory) == ["start", "open", "batch 1", "batch 4", "batch 7", "peak"]
        assert max(memory.values()) == memory["peak"]
        assert file["check"]["rows"] == 1500
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_long_file_repeats_its_rows_under_new_ids(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"f.{suffix}", BLOCK_ROWS + 3000
    make_file(path, rows, 7000)
    report = Report()
    records = {record.id: record for record in read(path, "rlsys", strict=True, report=report)}
    assert (report.rows, report.no_unique_best) == (rows, rows // TIE_EVERY) and len(records) == rows - rows // TIE_EVERY
    assert records[f"row-{BLOCK_ROWS + 5}"].responses == records["row-5"].responses != records["row-6"].responses
    assert f"row-{TIE_EVERY - 1}" not in records


def test_a_file_that_is_not_what_was_said_fails_with_its_reason(tmp_path: Path) -> None:
    make_file(tmp_path / "f.jsonl", 2000, 1)
    with pytest.raises(RuntimeError, match="not in the order of the seed"):
        measured(SamplingTask(str(tmp_path / "f.jsonl"), 3000, 10, 3, 10), 100)


def terminated(*command: str, folder: Path) -> int:
    """The exit status of a command to which SIGTERM is sent as soon as there is a file in `folder`'s folder."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + WAIT_S
        while not list(folder.glob("*/*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(folder.glob("*/*")) and process.poll() is None
        process.terminate()
        return process.wait(WAIT_S)
    finally:
        process.kill()


def test_a_job_that_is_terminated_takes_its_files_along(tmp_path: Path) -> None:
    # Small row groups: no signal is seen while pyarrow writes one.
    options = ["--rows", "10000000", "--row-group", "10000", "--folder", str(tmp_path)]
    assert terminated("-m", "launch.cli", "bench", "data", *options, folder=tmp_path) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


IN_DEL = """
import subprocess, sys, time
from pathlib import Path
from launch.bench.data import temporary_folder

class Slow:
    def __del__(self):
        Path(sys.argv[2]).write_text(str(child.pid))
        (place / "file").touch()
        time.sleep(3600)

with temporary_folder(Path(sys.argv[1])) as place:
    child = subprocess.Popen(["sleep", "3600"])
    Slow()
time.sleep(3600)
"""


def test_a_job_ends_even_while_something_is_finalised(tmp_path: Path) -> None:
    """An exception would be lost there. What the job has started ends with it."""
    (folder := tmp_path / "files").mkdir()
    assert terminated("-c", IN_DEL, str(folder), str(tmp_path / "pid"), folder=folder) == 128 + signal.SIGTERM
    assert list(folder.iterdir()) == []
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(("options", "expected"), [(["--format", "csv"], "jsonl"), (["--rows", 10**12], "free")])
def test_what_cannot_be_done_is_reported_and_leaves_nothing(tmp_path: Path, options: list[object], expected: str) -> None:
    result = rlsys_here("bench", "data", "--folder", tmp_path, *options)
    assert result.returncode == 2
    assert expected in result.stderr and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
