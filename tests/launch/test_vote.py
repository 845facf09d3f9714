"""`rlsys vote`, end to end."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from commands import rlsys, rlsys_here, run_rlsys

import launch.commands.vote

ROOT = Path(__file__).resolve().parents[2]

# A case study of arXiv 2504.02495: three boxes as shown, the last two with the responses in reverse.
PAPER = [
    {"id": "case", "order": [0, 1], "scores": [8, 8], "meta_reward": -15.7781},
    {"id": "case", "order": [1, 0], "scores": [9, 5], "meta_reward": 1.3126},
    {"id": "case", "order": [1, 0], "scores": [10, 7], "meta_reward": 1.6739},
]


vote = partial(rlsys, "vote")


def written(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(("options", "totals"), [([], [20, 27]), (["--strategy", "meta", "--k", 3, "--k-meta", 2], [12, 19])])
def test_the_papers_case_study(tmp_path: Path, options: list, totals: list[float]) -> None:
    result = vote(written(tmp_path / "samples.jsonl", PAPER), *options)
    assert result.returncode == 0, result.stderr
    (row,) = lines(result.stdout)
    assert (row["id"], row["totals"], row["best"], row["samples"]) == ("case", totals, 1, 3)
    assert "ties at the top" in result.stderr


def test_rows_of_judge_and_the_summary_as_json(tmp_path: Path) -> None:
    samples = [{key: value for key, value in sample.items() if key != "id"} | {"tokens": 50} for sample in PAPER]
    failed = {"order": [1, 2, 0], "scores": None, "failure": "no_box", "tokens": 7}
    rows = [{"id": 7, "samples": samples, "text": "left alone"}, "", {"id": 8, "samples": [failed]}]
    path = written(tmp_path / "judged.jsonl", rows)
    result = vote(path, "--json")
    document = json.loads(result.stdout)
    assert [row["totals"] for row in document["rows"]] == [[20, 27], None]
    assert document["summary"] == {
        "strategy": "vote",
        "account": {"rows": 2, "used": 2, "set_aside": {}},
        "available": 4,
        "ids": 2,
        "samples": 4,
        "parsed": 3,
        "tokens": 157,
        "nothing_parsed": 1,
        "abstained": 0,
        "tied": 0,
    }
    assert vote(path, "--output", tmp_path / "votes.jsonl").stdout == ""
    assert lines((tmp_path / "votes.jsonl").read_text()) == document["rows"]


def test_rows_that_judge_set_aside_are_counted(tmp_path: Path) -> None:
    samples = [{key: value for key, value in sample.items() if key != "id"} for sample in PAPER]
    aside = [("malformed", 2), ("no unique best", 1), ("too long", 1)]
    rows: list = [{"id": "asked", "samples": samples}]
    rows += [{"id": f"{why} {i}", "skipped": "why", "set_aside": why, "samples": []} for why, count in aside for i in range(count)]
    rows.append({"id": "of before there were reasons", "skipped": "its prompt has 9 tokens, more than 8", "samples": []})
    path = written(tmp_path / "judged.jsonl", rows)
    found = json.loads(vote(path, "--json").stdout)["summary"]["account"]
    assert found == {"rows": 6, "used": 1, "set_aside": {"malformed": 2, "no unique best": 1, "too long": 2}}
    told = re.sub(r"[\s│]+", " ", vote(path).stderr)
    assert "rows in the file 6" in told and "set aside by `rlsys judge`: malformed 2" in told
    nothing = vote(written(path, rows[1:3]))
    assert nothing.returncode == 2 and "set all of its rows aside (2 rows: 0 used; set aside: 2 malformed)" in nothing.stderr


def test_options_reach_the_strategy(tmp_path: Path) -> None:
    path = written(tmp_path / "samples.jsonl", [{"id": "a", "order": [0, 1], "scores": [9, 2], "certainty": c} for c in range(1, 21)])

    def row(*options: object) -> dict:
        return lines(rlsys_here("vote", path, *options).stdout)[0]

    assert row("-s", "adaptive", "--round-size", 1)["samples"] == 6
    assert row("-s", "adaptive", "--round-size", 1, "--error-rate", 0.001)["samples"] > 6
    assert row("-s", "borda", "--power", 2, "--k", 2)["totals"] == [1 + 4, 0]
    assert row("-s", "abstain", "--margin", 7)["best"] == 0
    assert row("-s", "abstain", "--margin", 7.5)["best"] is None


def test_the_seed_breaks_ties_and_nothing_else(tmp_path: Path) -> None:
    ties = [{"id": f"{number}", "order": [0, 1], "scores": [5, 5]} for number in range(50)]
    path = written(tmp_path / "ties.jsonl", [*ties, *PAPER])
    one, again, other = (lines(rlsys_here("vote", path, "--seed", seed).stdout) for seed in (1, 1, 2))
    assert one == again
    assert [row["best"] for row in one[:50]] != [row["best"] for row in other[:50]]
    assert one[50] == other[50]


def test_custom_strategy(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from rlsys.judging.voting import strategy\n\n"
        "@strategy('highest', source='mine')\ndef highest(samples, options):\n    return samples.scores.max(axis=-2)\n"
    )
    path = written(tmp_path / "samples.jsonl", PAPER)
    assert lines(vote(path, "--strategy", f"{tmp_path / 'mine.py'}:highest").stdout)[0]["totals"] == [8, 10]


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (None, [], ["samples.jsonl: there is no such file"]),
        ([], [], ["samples.jsonl: the file is empty"]),
        ([PAPER[0], "{"], [], ["samples.jsonl, row 2: expected JSON"]),
        ([PAPER[0], "[]"], [], ["samples.jsonl, row 2: row: expected an object, found list"]),
        ([PAPER[0], PAPER[1] | {"order": [1, 1]}], [], ["samples.jsonl, row 2: order: expected each of 0 .. 1 once"]),
        (
            [PAPER[0], "", PAPER[1] | {"order": [0, 1, 2]}],
            [],
            ["row 3: order: 3 responses, but earlier samples of id 'case' have 2"],
        ),
        ([PAPER[0] | {"scores": [True, 1]}], [], ["row 1: scores[0]: expected a finite number, found boolean True"]),
        (['{"id": "a", "order": [0, 1], "scores": [1, NaN]}'], [], ["row 1: scores[1]: expected a finite number"]),
        ([PAPER[0] | {"meta_reward": None}], ["-s", "meta"], ["row 1: meta_reward: the strategy needs a number"]),
        (PAPER, ["-s", "rpc"], ["row 1: logprob: the strategy needs a number"]),
        (PAPER, ["--k", 4], ["samples.jsonl: id 'case': 3 samples, fewer than k = 4"]),
        (PAPER, ["-s", "meta", "--k-meta", 4], ["samples.jsonl: k_meta = 4: expected at most k = 3"]),
        (PAPER, ["-s", "meta", "--k-meta", 0], ["k_meta = 0: expected at least 1"]),
        (PAPER, ["-s", "median"], ["median: no such strategy; expected one of vote"]),
        (PAPER, ["-s", "absent.py:median"], ["absent.py: no such file"]),
    ],
)
def test_errors_name_the_row(tmp_path: Path, rows: list | None, options: list, expected: list[str]) -> None:
    path = tmp_path / "samples.jsonl"
    if rows is not None:
        written(path, rows)
    result = rlsys_here("vote", path, *options, "--output", tmp_path / "votes.jsonl")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    for words in expected:
        assert words in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ([] if rows is None else ["samples.jsonl"])


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_bytes(b"\xff\xfe\x00")
    result = vote(tmp_path / "samples.jsonl")
    assert result.returncode == 2 and "UTF-16" in result.stderr


def test_help_and_docs_name_every_strategy() -> None:
    listed = re.search(r"Strategies: (.*?)\.", launch.commands.vote.vote.__doc__)[1].split(", ")
    section = (ROOT / "docs" / "voting.md").read_text().partition("## Strategies")[2].partition("\n## ")[0]
    described = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    built_in = "from rlsys.judging.voting import STRATEGIES; print(*STRATEGIES)"  # in a process of its own: other tests may add theirs
    names = subprocess.run([sys.executable, "-c", built_in], cwd=ROOT, capture_output=True, text=True, timeout=600).stdout.split()
    assert listed and sorted(listed) == sorted(described) == sorted(names)


def test_many_samples_in_any_order(tmp_path: Path) -> None:
    """20,000 shuffled samples of 2,500 ids: totals equal those of a dictionary of lists."""
    rng = random.Random(0)
    rows = []
    for number in range(20_000):
        order = rng.sample(range(2 + number % 2500 % 3), k=2 + number % 2500 % 3)
        rows.append({"id": f"row {number % 2500}", "order": order, "scores": [rng.randint(1, 10) for _ in order]})
    rng.shuffle(rows)
    expected: dict[str, list[int]] = {}
    for row in rows:
        totals = expected.setdefault(row["id"], [0] * len(row["order"]))
        for place, response in enumerate(row["order"]):
            totals[response] += row["scores"][place]
    found = lines(run_rlsys("vote", written(tmp_path / "samples.jsonl", rows)).stdout)
    assert [(row["id"], row["totals"]) for row in found] == list(expected.items())
    assert all(row["totals"][row["best"]] == max(row["totals"]) for row in found)
