"""`rlsys bench data`: time per batch and memory for a large file of rows, compared with a small file.

Each file is measured in a new process (`python -m launch.bench.data`), with the code that a run samples its rows with.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import psutil
import typer

from launch.bench.memory import peak_bytes, resident_bytes
from launch.console import UserError, report, to_stderr
from launch.options import AsJson
from rlsys.system.terminal import Table, as_text

SMALL_ROWS = 10_000
BLOCK_ROWS = 20_000
"""Rows that are generated; larger files repeat them under new ids, as generating all rows would take minutes."""
TIE_EVERY = 1000
"""One row in this many has no unique best response, so that some rows are set aside."""
SEED = 0
FORMATS = ("parquet", "jsonl")


class DataBenchFailed(RuntimeError):
    """The measuring process failed, timed out, or sampled other rows than expected."""


@dataclass(frozen=True)
class SamplingTask:
    """Input of a measuring process."""

    path: str
    rows: int
    batch: int
    batches: int
    """Batches after the first."""
    check_rows: int


def data(
    rows: Annotated[int, typer.Option(min=TIE_EVERY, help="Rows of the large file.")] = 10_000_000,
    format: Annotated[str, typer.Option(help="File format: parquet or jsonl.")] = "parquet",
    row_group: Annotated[int, typer.Option(min=1, help="Rows per Parquet row group.")] = 1_000_000,
    batch: Annotated[int, typer.Option(min=1, help="Rows per batch.")] = 32,
    batches: Annotated[int, typer.Option(min=2, help="Batches after the first.")] = 512,
    check_rows: Annotated[int, typer.Option(min=1, help="Rows to check, as `rlsys data check` does.")] = 200_000,
    folder: Annotated[
        Path | None, typer.Option(help="Folder for the files, which are removed afterwards. Default: the temporary folder.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Time limit per file, in seconds.")] = 600,
    as_json: AsJson = False,
) -> None:
    """Sample batches in the random order of a run from a large and a small file, and print time and memory.

    Example: rlsys bench data --rows 10000000
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: expected {' or '.join(FORMATS)}.")

    def both_files() -> dict[str, Any]:
        screen = to_stderr()
        results: dict[str, Any] = {}
        with temporary_folder(folder) as place:
            for size, count in {"small": min(SMALL_ROWS, rows), "large": rows}.items():
                path = place / f"{size}.{format}"
                with screen.status(as_text(f"writing {count:,} rows …")):
                    began = time.perf_counter()
                    make_file(path, count, row_group)
                    file_info = {"bytes": path.stat().st_size, "make_s": time.perf_counter() - began}
                with screen.status(as_text(f"sampling {1 + batches} batches of {batch} from {count:,} rows …")):
                    results[size] = file_info | measured(SamplingTask(str(path), count, batch, batches, check_rows), timeout)
                path.unlink()
        return {"work": {"format": format, "row_group": row_group, "batch": batch, "batches": batches}, "files": results}

    report(as_json, both_files, render)


@contextmanager
def temporary_folder(parent: Path | None) -> Iterator[Path]:
    """Yield a temporary folder that is removed at the end, and also on SIGTERM.

    The signal handler removes the folder and ends the process itself: an exception raised in it while a `__del__` runs would only be
    printed, and the process would continue.
    """
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-data-", dir=parent) as name:

        def end(number: int, _: FrameType | None) -> None:
            for child in psutil.Process().children():
                child.kill()
                child.wait()
            shutil.rmtree(name, ignore_errors=True)
            os._exit(128 + number)

        previous = signal.signal(signal.SIGTERM, end)
        try:
            yield Path(name)
        finally:
            signal.signal(signal.SIGTERM, previous)


# --- the file --------------------------------------------------------------------------------------------------------


def make_file(path: Path, rows: int, row_group: int) -> None:
    """Write `rows` generated tasks, repeated after `BLOCK_ROWS`; row i has the id `row-i`.

    Raises:
        UserError: there is not enough disk space.
    """
    from rlsys.data.tasks import generate

    block = [record.to_json() for record in generate("train", min(rows, BLOCK_ROWS), SEED, responses=(2, 4))]
    for row in block[TIE_EVERY - 1 :: TIE_EVERY]:
        row["rewards"] = [0.0] * len(row["rewards"])
    need, free = rows * sum(len(json.dumps(row)) for row in block) // len(block), shutil.disk_usage(path.parent).free
    if need > free:
        raise UserError(f"{path.parent} has {free / 1e9:.1f} GB free, {rows:,} rows may need {need / 1e9:.1f}; choose another --folder.")
    (_write_parquet if path.suffix == ".parquet" else _write_jsonl)(path, block, rows, row_group)


def _write_parquet(path: Path, block: list[dict[str, Any]], rows: int, row_group: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rlsys.data.writers import record_table

    table = record_table(block)
    # Dictionary encoding would shrink the repeated block to almost nothing.
    with pq.ParquetWriter(path, table.schema, use_dictionary=False) as writer:
        for start in range(0, rows, row_group):
            numbers = range(start, min(start + row_group, rows))
            first, length = start % len(table), len(numbers)
            group = pa.concat_tables([table] * (1 + (first + length) // len(table))).slice(first, length)
            writer.write_table(group.set_column(0, "id", pa.array([f"row-{i}" for i in numbers])), row_group_size=row_group)


def _write_jsonl(path: Path, block: list[dict[str, Any]], rows: int, row_group: int) -> None:
    ends = [json.dumps({key: value for key, value in row.items() if key != "id"})[1:] + "\n" for row in block]
    with path.open("w") as file:
        file.writelines(f'{{"id": "row-{i}", {ends[i % len(ends)]}' for i in range(rows))


# --- a measuring process ---------------------------------------------------------------------------------------------


def measured(task: SamplingTask, timeout_s: float) -> dict[str, Any]:
    """Run `measure` in a new process and return its result.

    Raises:
        DataBenchFailed: the process failed, or did not end within `timeout_s` seconds.
    """
    command = [sys.executable, "-m", "launch.bench.data", json.dumps(asdict(task))]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise DataBenchFailed(f"{task.path}: not measured within {timeout_s:.0f} s; raise --timeout.") from None
    if result.returncode != 0:
        raise DataBenchFailed(f"{task.path}: measuring failed with exit status {result.returncode}:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout)


def measure(task: SamplingTask) -> dict[str, Any]:
    """Open the file, sample, check some rows, and read the file once without processing. Times in seconds, memory in bytes."""
    from rlsys.config.sources import Data
    from rlsys.data import readers  # noqa: F401  # so that the memory at the start includes its import
    from rlsys.data.datasets import open_rows, sample_records
    from rlsys.data.sampler import Sampler

    path = Path(task.path)
    memory = {"start": resident_bytes()}
    seconds: list[float] = []
    sampled: list[str] = []

    began = time.perf_counter()
    rows = open_rows(path, Data.model_validate({"format": "rlsys"}), SEED)
    opened = time.perf_counter() - began
    memory["open"] = resident_bytes()

    sampler = Sampler(len(rows), SEED)
    for number in range(1 + task.batches):
        began = time.perf_counter()
        records = sample_records(rows, sampler, task.batch)
        seconds.append(time.perf_counter() - began)
        sampled += [record.id for _, record in records]
        if number in (0, task.batches // 2, task.batches):
            memory[f"batch {number + 1}"] = resident_bytes()
    memory["peak"] = peak_bytes()

    consumed = sampler.epoch * sampler.size + sampler.position
    order = Sampler(task.rows, SEED).next(consumed)
    if sampled != [f"row-{i}" for i in order if (i % BLOCK_ROWS) % TIE_EVERY != TIE_EVERY - 1]:
        raise DataBenchFailed(f"{path}: the sampled rows are not in the order of the seed.")

    plain = _plain_pass(path)
    return {
        "rows": len(rows),
        "seconds": {
            "open": opened,
            "first batch": seconds[0],
            "later batches, median": statistics.median(seconds[1:]),
            "later batches, mean": statistics.fmean(seconds[1:]),
            "later batches, longest": max(seconds[1:]),
            "one plain pass": plain,
        },
        "open_and_first_batch_in_plain_passes": (opened + seconds[0]) / plain,
        "memory": memory,
        "drawn": len(sampled),
        "set_aside": consumed - len(sampled),
        "check": _check(path, task.check_rows),
    }


def _plain_pass(path: Path) -> float:
    """Measure the seconds to read the whole file without processing: a lower bound for anything that reads all rows."""
    began = time.perf_counter()
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        for _ in pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16).iter_batches(use_threads=False):
            pass
    else:
        with path.open("rb") as file:
            for _ in file:
                pass
    return time.perf_counter() - began


def _check(path: Path, limit: int) -> dict[str, float]:
    """Read and check the first `limit` rows, as `rlsys data check` does."""
    from rlsys.data.readers import Report, read

    report = Report()
    began = time.perf_counter()
    for _ in read(path, "rlsys", report=report):
        if report.rows >= limit:
            break
    return {"rows": report.rows, "rows_per_s": report.rows / (time.perf_counter() - began)}


# --- figures ---------------------------------------------------------------------------------------------------------


def render(document: dict[str, Any]) -> Table:
    """Render the document as a table, one column per file."""
    work, files = document["work"], list(document["files"].values())
    groups = f", row groups of {work['row_group']:,}" if work["format"] == "parquet" else ""
    table = Table(title=f"Batches of {work['batch']} sampled at random from {work['format']}{groups}")
    table.add_column("", no_wrap=True)
    for file in files:
        table.add_column(f"{file['rows']:,} rows\n{file['bytes'] / 1e6:,.0f} MB", justify="right")
    for name in files[0]["seconds"]:
        table.add_row(f"seconds: {name}", *(f"{file['seconds'][name]:.4f}" for file in files))
    table.add_row("open and first batch, in plain passes", *(f"{file['open_and_first_batch_in_plain_passes']:.2f}" for file in files))
    table.add_section()
    for name in files[0]["memory"]:
        table.add_row(f"memory, MB: {name}", *(f"{file['memory'][name] / 1e6:,.0f}" for file in files))
    table.add_section()
    table.add_row("rows sampled, rows set aside", *(f"{file['drawn']:,}, {file['set_aside']:,}" for file in files))
    table.add_row("rows checked per second", *(f"{file['check']['rows_per_s']:,.0f}" for file in files))
    return table


if __name__ == "__main__":
    print(json.dumps(measure(SamplingTask(**json.loads(sys.argv[1])))))
