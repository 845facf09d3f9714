"""Hand-made folders for the page of `rlsys report`, and the page that they make."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rlsys.data.trajectories import TRAJECTORIES
from rlsys.evaluation.calibration import summarise
from rlsys.reporting.page import Page, collect, outline, write_page

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


def scalar_run(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, 200)
    labels = (rng.random(200) < 1 / (1 + np.exp(-scores))).astype(float)
    told = summarise(scores, labels, [f"row {i // 2}" for i in range(200)]).to_json()
    write(folder / "config.yaml", "model: {path: models/small}\n")
    write(folder / "report.json", {"objective": "bce", "model": "models/small", "heldout": told, "seconds": {"start": 1.0, "train": 9.0}})
    return folder
