"""`rlsys data`: checks of real files, and generated files read back by their reader."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from commands import rlsys

from rlsys.data.readers import READERS, read

ROOT = Path(__file__).resolve().parents[2]

data = partial(rlsys, "data")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    good = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    rows = [good, {"prompt": "2 + 2?", "chosen": "4"}, good | {"prompt": "1 + 3?"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_check_counts_rows_and_names_the_bad_one(pairs: Path) -> None:
    result = data("check", pairs, "--format", "trl_preference")
    assert result.returncode == 0, result.stderr
    assert "row 2" in result.stdout and "rejected" in result.stdout
    report = json.loads(data("check", pairs, "--format", "trl_preference", "--json").stdout)
    assert (report["rows"], report["records"], report["malformed_count"]) == (3, 2, 1)
    assert [entry["row"] for entry in report["malformed"]] == [2]


def test_check_fails_for_malformed_rows_if_strict_and_when_nothing_is_usable(pairs: Path) -> None:
    assert data("check", pairs, "--format", "trl_preference", "--strict").returncode == 1
    assert data("check", pairs, "--format", "trl_preference", "--strict", "--limit", 1).returncode == 0
    wrong = data("check", pairs, "--format", "helpsteer3", "--json")
    assert wrong.returncode == 1 and json.loads(wrong.stdout)["records"] == 0


def test_check_help_lists_every_format() -> None:
    words = set(data("check", "--help").stdout.replace(",", " ").replace(".", " ").split())
    assert set(READERS) <= words


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_generated_files_are_reproducible_and_read_back(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}.{suffix}" for name in ("first", "second", "other")]
    for file, seed, options in zip(files, (5, 5, 6), ([], ["--json"], ["--json"])):
        result = data("generate", "--count", 60, "--seed", seed, "--output", file, *options)
        assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    records = [list(read(file, "rlsys", strict=True)) for file in files]
    assert records[0] == records[1] != records[2]
    assert records[0][0].worked is not None
    assert document["families"] == Counter(record.family for record in records[2])
    assert document["responses"] == {str(n): count for n, count in sorted(Counter(record.n for record in records[2]).items())}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(file.name for file in files)


def test_generate_respects_families_and_sizes(tmp_path: Path) -> None:
    from rlsys.data.tasks import FAMILIES

    wanted = sorted(FAMILIES)[:2]
    options = [word for name in wanted for word in ("--family", name)]
    assert data("generate", "--count", 20, *options, "--responses", 2, "--output", tmp_path / "a.jsonl").returncode == 0
    records = list(read(tmp_path / "a.jsonl", "rlsys", strict=True))
    assert len(records) == 20
    assert {record.family for record in records} == set(wanted) and {record.n for record in records} == {2}


@pytest.mark.parametrize(
    ("options", "expected"),
    [(["--family", "no-such"], "no-such"), (["--split", "dev"], "heldout"), (["--output", "tasks.csv"], ".parquet")],
)
def test_generate_errors_name_alternatives(tmp_path: Path, options: list[str], expected: str) -> None:
    result = data("generate", "--output", tmp_path / "a.jsonl", *options)
    assert result.returncode == 2
    assert expected in result.stderr and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
