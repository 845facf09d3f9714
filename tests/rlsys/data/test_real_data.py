"""Real preference files in their native formats, against counts computed here by parsing each file directly."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from rlsys.data.readers import RecordFile, Report, read

FOLDER = Path(os.environ.get("RLSYS_REAL_DATA", "../shared/data"))
FORMATS = {  # by the beginning of the file's name
    "gsm8k_pairs": "trl_preference",
    "gsm8k_unpaired": "trl_unpaired",
    "hh_": "hh_rlhf",
    "llmbar_": "llmbar",
    "pandalm": "pandalm",
}

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no real data in {FOLDER}; set RLSYS_REAL_DATA to its folder")


def files(*prefixes: str) -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.jsonl") if path.name.startswith(prefixes or tuple(FORMATS)))


def each(*prefixes: str):
    return pytest.mark.parametrize("name", files(*prefixes))


def plain(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def format_of(name: str) -> str:
    return next(format for prefix, format in FORMATS.items() if name.startswith(prefix))


def load(name: str):
    report = Report()
    return list(read(FOLDER / f"{name}.jsonl", format_of(name), report=report)), report


def test_every_format_has_a_file():
    assert {format_of(name) for name in files()} == set(FORMATS.values())


@each()
def test_every_row_is_counted_and_every_record_is_usable(name):
    records, report = load(name)
    assert report.rows == len(plain(name))
    assert report.records == len(records) == report.rows - report.malformed_count - report.no_unique_best
    assert report.malformed_count <= 0.05 * report.rows
    assert len({record.id for record in records}) == len(records)
    for record in records:
        assert record.context[-1]["role"] == "user"
        assert sum(reward == max(record.rewards) for reward in record.rewards) == 1
        assert all(isinstance(response, str) for response in record.responses)  # an empty one is a response


@each()
def test_rows_by_number_equal_streaming(name):
    records, report = load(name)
    file = RecordFile(FOLDER / f"{name}.jsonl", format_of(name))
    assert [record for found in file.fetch(range(len(file))) for record in found] == records == list(file)
    assert file.report == replace(report, rows_in_file=len(file))


@each("gsm8k_pairs")
def test_gsm8k_pairs(name):
    records, _ = load(name)
    for record, row in zip(records, plain(name), strict=True):
        assert record.context == ({"role": "user", "content": row["prompt"]},)
        assert record.responses[record.best] == row["chosen"] and record.responses[1 - record.best] == row["rejected"]


@each("gsm8k_unpaired")
def test_gsm8k_unpaired(name):
    records, _ = load(name)
    assert [(record.responses, record.rewards) for record in records] == [
        ((row["completion"],), (1.0 if row["label"] else 0.0,)) for row in plain(name)
    ]


@each("llmbar_")
def test_llmbar(name):
    records, _ = load(name)
    assert [record.responses[record.best] for record in records] == [row[f"output_{row['label']}"] for row in plain(name)]


@each("pandalm")
def test_pandalm_majority_of_three(name):
    best, ties, malformed = [], 0, 0
    for row in plain(name):
        texts = [row[key] for key in ("instruction", "response1", "response2")]
        votes = [row["annotator1"], row["annotator2"], row["annotator3"]]
        if not all(isinstance(text, str) for text in texts):
            malformed += 1
        elif votes.count(1) < 2 and votes.count(2) < 2:
            ties += 1
        else:
            best.append((str(row["idx"]), row["response1"] if votes.count(1) >= 2 else row["response2"]))
    records, report = load(name)
    assert [(record.id, record.responses[record.best]) for record in records] == best
    assert (report.no_unique_best, report.malformed_count) == (ties, malformed)
    assert ties > 0


@each("hh_")
def test_hh_rlhf_transcripts_can_be_reconstructed(name):
    """A good row's turns reproduce its transcripts up to white space and repeated markers within a turn."""
    records, report = load(name)
    rows = plain(name)
    bad = {row for row, _ in report.malformed}
    sides = ("chosen", "rejected")
    assert len(bad) <= 0.01 * len(rows)
    exact = 0
    for record, row in zip(records, (row for n, row in enumerate(rows, 1) if n not in bad), strict=True):
        for key, response in zip(sides, record.responses, strict=True):
            turns = [*record.context, {"role": "assistant", "content": response}]
            names = {"user": "Human", "assistant": "Assistant"}
            written = "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in turns)
            exact += "".join(written.split()) == "".join(row[key].split())
            assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    assert exact >= 0.99 * 2 * len(records)  # the few others repeat a speaker, which is one turn here
