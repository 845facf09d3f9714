"""Hand-made folders for the page of `rlsys report`, and the page that they make."""

from __future__ import annotations

import json
import math
import random
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rlsys.data.records import Record
from rlsys.data.trajectories import REWARD_COLUMNS, TRAJECTORIES
from rlsys.documents.runs import RunSummary
from rlsys.evaluation.calibration import summarise
from rlsys.evaluation.heldout import baselines, paired
from rlsys.evaluation.heldout import summarise as summarise_heldout
from rlsys.prompts.rendering import UserTurns
from rlsys.reporting.page import Page, collect, outline, write_page
from rlsys.reporting.page.render import page_document

HOSTILE = (
    "</pre></script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\"> "
    "{{ 7 * 7 }} $\\frac{1}$ | `code` [link](javascript:alert(1)) \x1b[31mred\x1b[0m \u202eback"
)


@contextmanager
def in_place(path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path


def build(folders: list[Path], output: Path, title: str = "a page") -> dict:
    """The document of the page of `folders`."""
    return write_page(Page(title, outline(collect(folders))), output, in_place)


def told(*folders: Path) -> dict:
    """The same document, without drawing anything."""
    page = Page("a page", outline(collect(folders)))
    return json.loads(json.dumps(page_document(page, {id(plot): name for name, plot in page.plots()}, [])))


def plots(document: dict) -> dict[str, dict]:
    return {plot["title"]: plot for section in document["sections"] for plot in section["plots"]}


def tables(document: dict) -> dict[str, dict]:
    return {table["title"]: table for section in document["sections"] for table in section["tables"]}


# --- hand-made folders ----------------------------------------------------------------------------------------------


def write(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def figures(value: float, half: float = 0.04, groups: bool = True) -> dict:
    estimate = {"value": value, "ci95": [value - half, value + half], "n": 100}
    return {"overall": estimate, "groups": {"easy": estimate, "hard": estimate} if groups else {}, "others": {"agreement": 0.75}}


def benchmark(start: float, metric: str = "accuracy", **changes) -> dict:
    def point(gain: float, k: int) -> dict:
        return figures(start + gain * math.log2(2 * k)) | {"samples_per_item": k, "tokens_per_item": 100.0 * k, "coverage": 1.0}

    strategies = {name: {str(k): point(gain, k) for k in (1, 2, 4)} for name, gain in (("vote", 0.02), ("meta", 0.03))}
    example = {"id": "e1", "query": "Two plus two?", "responses": ["four", "five"], "gold": 0, "best": 0, "correct": True}
    shown = {"text": "Scores: \\boxed{2, 9}", "order": [1, 0], "scores": [2, 9]}
    return {
        "path": "x.jsonl",
        "units": 100,
        "items": 100,
        "metric": metric,
        "skipped": 0,
        "baselines": {"chance": {"value": 0.5}, "first": {"value": 0.52}, "longer": None},
        "greedy": figures(start),
        "strategies": strategies,
        "position": {"first": 0.55, "first_expected": 0.5, "places": [0.55, 0.45], "n": 100, "other_order": 0.8, "same_order": None},
        "length": {"longest_wins": 0.6, "longest_expected": 0.5, "longest_is_best": 0.52, "correlation": 0.1, "n": 100},
        "parse_failures": {"samples": 400, "failed": 4, "cut_off": 2, "reasons": {"no_box": 3, "wrong_count": 1}},
        "tokens": {"total": 40000, "per_row": 400.0, "per_sample": 100.0},
        "examples": [example | shown],
    } | changes


def evaluation(**benchmarks: dict) -> dict:
    head = {"model": "runs/rl", "meta_rm": "runs/meta", "k": [1, 2, 4], "draws": 10, "temperature": 0.5, "seed": 0, "seconds": 12.5}
    return head | {"benchmarks": benchmarks or {"alpha": benchmark(0.6), "beta": benchmark(0.7), "auc": benchmark(0.8, "roc_auc")}}


def ladder() -> dict:
    rungs = [
        {
            "name": "base",
            "title": "base model",
            "value": 0.4,
            "ci95": [0.3, 0.5],
            "seed": 0,
            "minus_previous": None,
            "tokens_per_item": 60.0,
        },
        {
            "name": "rl",
            "title": "after RL",
            "value": 0.7,
            "ci95": [0.6, 0.8],
            "seed": 0,
            "minus_previous": {"mean": 0.3, "ci95": [0.2, 0.4]},
        },
        {
            "name": "vote@8",
            "title": "vote",
            "value": 0.71,
            "ci95": [0.6, 0.8],
            "seed": 0,
            "minus_previous": {"mean": 0.01, "ci95": [-0.1, 0.1]},
        },
        {"name": "no_hint", "title": "no hints", "value": 0.6, "ci95": [0.5, 0.7], "seed": 0, "minus_previous": None, "ablation": True},
    ]
    return {"benchmark": "tasks", "n": 400, "rungs": rungs, "notes": ["vote@8 does not separate."]}


def trajectory(number: int, family: str, correct: bool, failure: str | None = None, **changes) -> dict:
    # Shown in the order 1, 0: the response at place 0 is the record's second.
    scores = None if failure else ([9, 2] if correct else [2, 9])
    row = dict.fromkeys(TRAJECTORIES.names) | {"step": 0, "group": number, "sample": 0, "prompt_id": f"row-{number}", "family": family}
    row |= {"order": [1, 0], "ground_truth": [1.0, 0.0], "prompt": f"prompt {number}"}
    row |= {"text": f"critique {number}", "scores": scores, "parse_failure": failure}
    return row | {"correct": correct, "reward": 1.0 if correct else -1.0, "advantage": 0.0, "token_count": 50} | changes


def training_run(folder: Path, steps: int = 3, **changes) -> Path:
    """A run under way: two evaluations of four rows each, no summary yet."""
    write(folder / "config.yaml", yaml.safe_dump({"model": {"path": "models/small"}}))
    rows = [
        {"step": step, "reward": step / 10, "kl": step / 100, "samples": 20, "parse_failure_share": 0.1, "parse_failures/no_box": 2}
        | {"seconds/train": 2.0, "seconds/wait_for_samples": 3.0}
        for step in range(1, steps + 1)
    ]
    write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99, "rew')
    (folder / "trajectories").mkdir()
    for stage, right in (("base", 1), ("step_000002", 3)):
        held = [trajectory(i, "abcd"[i % 2], i < right, None if i < 3 else "no_box", **changes) for i in range(4)]
        pq.write_table(pa.Table.from_pylist(held, TRAJECTORIES), folder / "trajectories" / f"heldout_{stage}.parquet")
    return folder


STAGES = {"base": 0.0, "cold_start": 0.5, "rl": 0.8}
"""Chance of a correct judgement by stage of `judge_run`; a base model's do not parse."""


def judge_run(folder: Path, rows: int = 60, samples: int = 1, hostile: str = "", complete: bool = True) -> Path:
    """A run of a judge, with prompts of the template `compact`: rows of 1, 2 and 4 responses, in random orders, judged at random.

    Args:
        samples: per row.
        hostile: text that is in every query, response and judgement, too.
    """
    write(folder / "config.yaml", yaml.safe_dump({"model": {"path": "models/small"}, "prompt": {"template": "compact"}}))
    steps = [
        {"step": step, "reward": 0.1 * step, "kl": 0.01, "entropy": 0.5 - 0.1 * step, "tokens_per_sample": 70.0 + step} for step in (1, 2)
    ]
    more = {"truncated": 2, "samples": 40, "groups_equal_share": 0.25, "generated_tokens_per_s": 500.0}
    write(folder / "metrics.jsonl", "".join(json.dumps(step | more) + "\n" for step in steps))
    (folder / "trajectories").mkdir()
    turns, rng = UserTurns("compact"), random.Random(0)
    records, orders = [], []
    for number in range(rows):
        n = rng.choice([1, 2, 4])
        best = rng.randrange(n)
        truth = tuple(float(rng.random() < 0.5) if n == 1 else float(i == best) for i in range(n))
        query = ({"role": "user", "content": f"query {number} {hostile}"},)
        records.append(
            Record(f"row-{number}", "made", query, tuple(f"response {i} {hostile}" for i in range(n)), truth, family="ab"[number % 2])
        )
        orders.append(rng.sample(range(n), n))
    tables = {}
    for stage, right in STAGES.items():
        held = []
        for number, (record, order) in enumerate(zip(records, orders, strict=True)):
            for sample in range(samples):
                scores = None if stage == "base" or rng.random() < 0.05 else [rng.choice([1, 2, 9]) for _ in range(record.n)]
                held.append(
                    trajectory(number, str(record.family), scores is not None and rng.random() < right, None if scores else "no_box")
                    | {"sample": sample, "source": record.source, "order": order, "ground_truth": record.rewards, "scores": scores}
                    | {"prompt": f"<|im_start|>user\n{turns.user_turn(record, order)}<|im_end|>\n", "text": f"{stage} {number} {hostile}"}
                )
        tables[stage] = pa.Table.from_pylist(held, TRAJECTORIES)
        pq.write_table(tables[stage], folder / "trajectories" / f"heldout_{stage}.parquet")
    if complete:
        pairs = {
            f"{after}_minus_{before}": paired(tables[after], tables[before])
            for after, before in (("cold_start", "base"), ("rl", "cold_start"))
        }
        summary = RunSummary(
            heldout={stage: summarise_heldout(table) for stage, table in tables.items()},
            baselines=baselines(records),
            paired=pairs,
            seconds={"start": 30.0, "train": 90.0},
            rl_steps=2,
        )
        write(folder / "summary.json", summary.to_json())
    return folder


def policy_run(folder: Path, text: str = "an answer", steps: int = 20) -> Path:
    """A policy whose judge's score rises, and gold with it only at first."""
    write(folder / "config.yaml", yaml.safe_dump({"model": {"path": "models/small"}}))
    rows = [
        {"step": step, "reward": 4 + step / 10, "judge_score": 4 + step / 10, "gold": 0.2 + min(step, 20 - step) / 100, "bt": step / 50}
        | {"kl": step / 1000, "judge_agreement": 0.7, "seconds/train": 6.0}
        for step in range(1, steps + 1)
    ]
    write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    (folder / "trajectories").mkdir()
    unknown = dict.fromkeys(("order", "ground_truth", "scores", "judge_score", "bt"))
    for stage, right in (("base", 2), ("rl", 7)):
        held = []
        for number in range(10):
            prompt = f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nquery {number}<|im_end|>\n<|im_start|>assistant\n"
            row = trajectory(number, "ab"[number % 2], number < right, text=text, prompt=prompt, source="made", gold=number < right)
            held.append(row | unknown)
        pq.write_table(
            pa.Table.from_pylist(held, pa.schema([*TRAJECTORIES, *REWARD_COLUMNS])), folder / "trajectories" / f"heldout_{stage}.parquet"
        )
    return folder


def scalar_run(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, 200)
    labels = (rng.random(200) < 1 / (1 + np.exp(-scores))).astype(float)
    told = summarise(scores, labels, [f"row {i // 2}" for i in range(200)]).to_json()
    write(folder / "config.yaml", "model: {path: models/small}\n")
    write(folder / "report.json", {"objective": "bce", "model": "models/small", "heldout": told, "seconds": {"start": 1.0, "train": 9.0}})
    return folder
