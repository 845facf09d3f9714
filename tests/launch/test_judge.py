"""`rlsys judge` and `rlsys filter` on a real engine, compared with direct computations from their output."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import kill_rlsys_when, rlsys_here, run_rlsys
from random_scorer import build_random_scorer
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from launch.commands.judge import judge, render
from launch.commands.rft import filter_rows
from launch.console import exit_status
from rlsys.data.batches import Feed
from rlsys.data.datasets import open_rows
from rlsys.data.exclusion import read_exclusion
from rlsys.data.mixtures import open_mixture
from rlsys.data.readers import DataError, read
from rlsys.judging.summary import summarise_rows
from rlsys.prompts.rendering import Prompter
from rlsys.rewards.extraction import extract

ROOT = Path(__file__).resolve().parents[2]
K = 3
SMALL = "rollout.kv_cache_gib=0.25"


run = partial(run_rlsys, timeout_s=1200)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_table_says_how_many_failures_were_cut_off() -> None:
    sample = {"scores": None, "truncated": True}
    row = {"k": 3, "best": None, "totals": None, "correct": None, "failures": {"no_box": 2}, "samples": [sample, {"scores": None}, sample]}
    summary = summarise_rows([row | {"parsed": 0, "tokens": 9, "prompt_tokens": 3}])
    assert summary["cut_off"] == 2
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(summary))
    assert re.search(r"cut off at rollout.max_tokens\s+│ 2 ", console.export_text())


@pytest.fixture(scope="module")
def pairs(straight_run, tmp_path_factory) -> Path:
    """Twelve rows of one and of two responses; then one that is too long."""
    config, _ = straight_run
    path = tmp_path_factory.mktemp("judge") / "pairs.jsonl"
    rows = open_rows(Path("tasks:heldout"), config.data, 0)
    records = [rows[i].to_json() for i in range(12)]
    long = records[1] | {"id": "long", "responses": ["word " * 3000, "b"], "rewards": [1.0, 0.0], "worked": None}
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, long]))
    return path


@pytest.fixture(scope="module")
def scorer(straight_run, tmp_path_factory) -> Path:
    """A meta reward model: the trained one with a random head."""
    return build_random_scorer(straight_run[0].run.dir / "checkpoints" / "step_000003" / "model", tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="module")
def judge_options(straight_run, pairs) -> dict:
    return {"model": str(straight_run[0].run.dir), "input": pairs, "format": "rlsys", "k": K, "temperature": 1.0, "text": True}


@pytest.fixture(scope="module")
def judge_arguments(judge_options) -> list:
    """The same as a person writes it."""
    named = [word for name, value in judge_options.items() if name != "text" for word in (f"--{name}", value)]
    return ["judge", *named, "--text", SMALL]


@pytest.fixture(scope="module")
def judged(judge_arguments, pairs) -> tuple[Path, dict]:
    output = pairs.parent / "judged.jsonl"
    ended = run(*judge_arguments, "--output", output, "--json")
    assert ended.returncode == 0, ended.stderr
    return output, json.loads(ended.stdout)


def test_every_row_has_its_samples_and_they_add_up(judged, pairs):
    output, summary = judged
    rows, inputs = rows_of(output), rows_of(pairs)
    assert [row["id"] for row in rows] == [row["id"] for row in inputs]
    assert rows[-1]["samples"] == [] and "tokens" in rows[-1]["skipped"] and rows[-1]["best"] is None
    right = 0
    for row, given in zip(rows[:-1], inputs):
        n = len(given["responses"])
        totals, parsed, failures = [0] * n, 0, Counter()
        assert len(row["samples"]) == K
        for sample in row["samples"]:
            scores, failure = extract(sample["text"], n, *((0, 1) if n == 1 else (1, 10)))
            if scores is not None and sample.get("truncated"):
                scores, failure = None, "truncated"
            assert (sample["scores"], sample.get("failure")) == (None if scores is None else list(scores), failure)
            assert sorted(sample["order"]) == list(range(n)) and sample["logprob"] < 0
            parsed += failure is None
            failures.update([failure] if failure else [])
            for place, original in enumerate(sample["order"]):
                totals[original] += scores[place] if scores else 0
        assert row["totals"] == (totals if parsed else None) and row["failures"] == failures
        if n == 2:
            best = given["rewards"].index(max(given["rewards"]))
            assert row["gold"] == best
            if parsed and totals[0] != totals[1]:
                assert row["best"] == totals.index(max(totals)) and row["correct"] == (row["best"] == best)
        right += row["correct"]
    assert summary["rows"] == len(rows) and summary["samples"] == K * 12 and summary["correct"] == right and summary["skipped"] == 1
    assert summary["parsed"] > 0, "a cold-started model writes scores"


def test_orders_are_shuffled_afresh_and_a_vote_over_the_file_agrees(judged, tmp_path):
    rows = rows_of(judged[0])
    orders = {tuple(sample["order"]) for row in rows if row["n"] == 2 for sample in row["samples"]}
    assert orders == {(0, 1), (1, 0)}
    ended = rlsys_here("vote", judged[0], "--strategy", "vote", "--output", tmp_path / "votes.jsonl")
    assert ended.returncode == 0, ended.stderr
    votes = {row["id"]: row for row in rows_of(tmp_path / "votes.jsonl")}
    assert votes.keys() == {row["id"] for row in rows if row["samples"]}
    assert all(votes[row["id"]]["best"] == row["best"] and votes[row["id"]]["totals"] == row["totals"] for row in rows if row["samples"])


def test_adaptive_draws_until_the_winner_is_clear_and_comes_to_what_all_samples_come_to(judged, judge_options, tmp_path):
    judge(**judge_options, settings=[SMALL], strategy="adaptive", error_rate=0.9, output=tmp_path / "adaptive.jsonl")
    ended = rlsys_here("vote", judged[0], "--strategy", "adaptive", "--error-rate", 0.9, "--output", tmp_path / "votes.jsonl")
    assert ended.returncode == 0, ended.stderr
    rows, everything = rows_of(tmp_path / "adaptive.jsonl"), {row["id"]: row for row in rows_of(judged[0])}
    assert [row["id"] for row in rows] == list(everything)
    votes = {row["id"]: row for row in rows_of(tmp_path / "votes.jsonl")}
    for row in rows[:-1]:
        for ours, theirs in zip(row["samples"], everything[row["id"]]["samples"]):
            # Other samples ran beside it, which is seen in the last digits of sums.
            assert ours.pop("logprob") == pytest.approx(theirs["logprob"], abs=1e-3)
            assert ours == {name: value for name, value in theirs.items() if name != "logprob"}
        if row["n"] == 1:
            assert len(row["samples"]) == K
        else:
            vote = votes[row["id"]]
            assert len(row["samples"]) == row["spent"] == vote["samples"]
            assert all(row[name] == vote[name] for name in ("totals", "best", "tied", "parsed"))
    assert "tokens" in rows[-1]["skipped"]
    for row in rows[:-1]:
        if row["n"] == 2:  # at this error rate, one vote ahead after a round of two samples is clear
            lead = 0
            for sample in everything[row["id"]]["samples"][:2]:
                shown = sample["scores"] or [0, 0]
                first, second = shown if sample["order"] == [0, 1] else reversed(shown)
                lead += (first > second) - (first < second)
            assert len(row["samples"]) == (2 if lead else K)


@pytest.fixture(scope="module")
def unlabelled(judge_options, scorer, tmp_path_factory) -> tuple[Path, Path]:
    """Rows of responses without a ground truth, and the verdicts of a synthesis each, whose samples have a meta reward."""
    folder = tmp_path_factory.mktemp("unlabelled")
    given = [{"id": str(i), "prompt": f"Say word {i}.", "responses": [f"word {i}", "no", "maybe"][: 1 + i % 3]} for i in range(6)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    options = judge_options | {"input": folder / "in.jsonl", "format": "responses", "output": folder / "out.jsonl", "temperature": 0.5}
    judge(**options, strategy="synthesis", meta_rm=str(scorer), limit=5, settings=[SMALL, "prompt.max_tokens=3000"])
    return folder / "in.jsonl", folder / "out.jsonl"


def test_a_synthesis_has_read_the_others_and_replaces_their_vote(unlabelled):
    rows = rows_of(unlabelled[1])
    assert [row["n"] for row in rows] == [1, 2, 3, 1, 2] and all(row["gold"] is None and row["correct"] is None for row in rows)
    for row in rows:
        assert len(row["samples"]) == K and len({tuple(sample["order"]) for sample in row["samples"]}) == 1
        *others, last = row["samples"]
        assert row["prompt_tokens"] > sum(sample["tokens"] for sample in others), "the last prompt holds what the others wrote"
        expected = None if last["scores"] is None else [score for _, score in sorted(zip(last["order"], last["scores"]))]
        assert row["totals"] == expected


def test_samples_are_scored_by_the_meta_model_beside_the_engine(unlabelled, scorer):
    model = AutoModelForSequenceClassification.from_pretrained(scorer).eval()
    tokenizer = AutoTokenizer.from_pretrained(scorer)
    prompter = Prompter(tokenizer, "compact")
    compared = 0
    for row, record in zip(rows_of(unlabelled[1]), read(unlabelled[0], "responses", truth=False)):
        *others, last = row["samples"]
        assert isinstance(last["meta_reward"], float)
        for sample in others:
            text = tokenizer.encode(sample["text"], add_special_tokens=False)
            if len(text) not in (sample["tokens"], sample["tokens"] - 1):
                continue  # The engine wrote it in other tokens, which the text does not tell. One more: the end.
            with torch.no_grad():
                wanted = model(torch.tensor([prompter.tokens(record, sample["order"]) + text])).logits.item()
            assert sample["meta_reward"] == pytest.approx(wanted, abs=0.02)
            compared += 1
    assert compared >= 4


def test_killed_and_started_again_it_goes_on_after_the_last_row(judged, judge_arguments, judge_options, tmp_path):
    output, part = tmp_path / "judged.jsonl", tmp_path / "judged.jsonl.part"
    # One sequence at a time, so that there is a middle to be killed in.
    slow = "rollout.max_num_seqs=1"
    begun = lambda: part.exists() and part.read_text().count("\n") >= 2  # noqa: E731
    kill_rlsys_when(begun, tmp_path / "log", *judge_arguments, slow, "--output", output)
    before = part.read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    assert not output.exists()
    part.write_bytes(whole + b'{"id": "half a li')
    with pytest.raises(DataError, match="seed"):
        judge(**judge_options, output=output, settings=[SMALL], seed=1)
    assert part.exists()
    judge(**judge_options, output=output, settings=[SMALL])
    assert output.read_bytes().startswith(whole) and not part.exists()
    straight, resumed = rows_of(judged[0]), rows_of(output)
    assert [row["id"] for row in resumed] == [row["id"] for row in straight]
    samples = [(a, b) for one, other in zip(straight, resumed) for a, b in zip(one["samples"], other["samples"], strict=True)]
    assert all(a["order"] == b["order"] for a, b in samples)
    # An engine's rounding depends on which requests share a batch.
    assert sum(a["text"] == b["text"] for a, b in samples) > 0.5 * len(samples)


def test_rows_that_are_right_every_time_are_marked_and_left_out(straight_run, tiny, tmp_path):
    run_dir = straight_run[0].run.dir
    config, easy_rows = ROOT / "launch/configs/tiny.yaml", tmp_path / "easy.jsonl"
    overrides = [f"model.path={run_dir}", "data.responses=[1, 2]"]
    filter_rows(config, easy_rows, overrides, samples=1, rows=24)
    # The command finds nothing left to do.
    ended = run("filter", config, *overrides, "--rows", 24, "--samples", 1, "--output", easy_rows)
    assert ended.returncode == 0 and "24 rows" in ended.stdout, ended.stderr
    rows = rows_of(tmp_path / "easy.jsonl")
    assert len(rows) == 24 and all(row["easy"] == (row["right"] == row["samples"] == 1) for row in rows)
    easy = {row["id"] for row in rows if row["easy"]}
    assert 0 < len(easy) < 24
    settings = tiny(tmp_path / "run", run_dir)
    source = open_mixture(settings.data, "train", settings.seed)
    prompter = Prompter(AutoTokenizer.from_pretrained(run_dir / "checkpoints/step_000003/model"), "compact")

    def drawn(count, path):
        excluded = read_exclusion(path, source)
        return [one.record.id for one in Feed(source.fresh(), prompter, 400, excluded.rows).take(count, 0)]

    everything, left = drawn(40, None), drawn(20, tmp_path / "easy.jsonl")
    assert easy <= set(everything) and left == [one for one in everything if one not in easy][:20]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"strategy": "meta"}, "--meta-rm"),
        ({"strategy": "nonsense"}, "no such strategy"),
        ({"format": "nonsense"}, "unknown format"),
        ({"settings": ["rollout.nonsense=1"]}, "unknown key"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(judge_options, tmp_path, changed, told):
    with pytest.raises(ValueError, match=told) as raised:
        judge(**judge_options | {"output": tmp_path / "out.jsonl"} | changed)
    assert exit_status(raised.value) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_cannot_be_done(judge_arguments, scorer, tmp_path):
    options = ["--strategy", "adaptive", "--error-rate", 0.9, "--meta-rm", scorer, "--limit", 4, "--seed", 1]
    ended = run(*judge_arguments, *options, "--output", tmp_path / "out.jsonl", "--input", "nowhere.jsonl")
    assert ended.returncode == 2 and "nowhere.jsonl" in ended.stderr, ended.stderr
    assert list(tmp_path.iterdir()) == []
