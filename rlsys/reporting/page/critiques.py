"""Sample critiques of each source: correct ones, wrong ones and parse failures."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from rlsys.documents.evaluation import Example
from rlsys.reporting.ground_truth import describe_ground_truth
from rlsys.reporting.page.collect import Evaluation, TrainingRun
from rlsys.reporting.page.content import Critique, Section

RIGHT, WRONG, FAILED = 3, 2, 1
"""Number of critiques of each kind to show per source."""
Item = TypeVar("Item")


def section(runs: Sequence[TrainingRun], evaluations: Sequence[Evaluation]) -> Section:
    """Return the section with a few critiques of each source, from as many families or benchmarks as possible."""
    chosen = [critique for run in runs for critique in choose([(row["family"], _of_row(run, row)) for row in run.samples])]
    for evaluation in evaluations:
        benchmarks = evaluation.report.benchmarks.items()
        examples = [
            (name, _of_example(f"{evaluation.name}, {name}", example)) for name, benchmark in benchmarks for example in benchmark.examples
        ]
        chosen += choose(examples)
    lead = "Chosen by outcome and family, not by content. Scores are listed in the order in which the responses were shown."
    return Section("Sample critiques", lead if chosen else "", critiques=chosen)


def choose(critiques: Sequence[tuple[str | None, Critique]]) -> list[Critique]:
    """Choose from (family, critique) pairs: RIGHT correct, WRONG wrong and FAILED parse failures, spread over families."""
    failed = [one for one in critiques if one[1].scores is None]
    right = [one for one in critiques if one[1].scores is not None and one[1].correct]
    wrong = [one for one in critiques if one[1].scores is not None and not one[1].correct]
    kinds = ((right, RIGHT), (wrong, WRONG), (failed, FAILED))
    return [critique for kind, count in kinds for _, critique in spread(kind, count, lambda one: one[0])]


def spread(items: Sequence[Item], count: int, key: Callable[[Item], Hashable]) -> list[Item]:
    """Return `count` of `items`, taking one of each key before a second one of any key."""
    seen: dict[Hashable, int] = {}
    turns = []
    for place, item in enumerate(items):
        turn = seen[key(item)] = seen.get(key(item), -1) + 1
        turns.append((turn, place))
    return [items[place] for _, place in sorted(turns)[:count]]


def _of_row(run: TrainingRun, row: dict[str, Any]) -> Critique:
    """Convert a trajectory row; its scores are reordered from the record's order to the prompt's."""
    order, truth = row["order"], row["ground_truth"]
    scores = row["scores"] and [row["scores"][response] for response in order]
    gold = order.index(truth.index(max(truth))) if truth and len(order) > 1 else None
    words = describe_ground_truth(truth, order) if truth else ""
    return Critique(run.name, row["prompt_id"], row["correct"], row["parse_failure"], row["prompt"], row["text"], scores, gold, words)


def _of_example(source: str, example: Example) -> Critique:
    order = example.order or list(range(len(example.responses)))
    shown = [f"[{place}]\n{example.responses[response]}" for place, response in enumerate(order, 1)]
    gold = order.index(int(example.gold)) if len(order) > 1 and example.gold in order else None
    prompt = "\n\n".join([example.query, *shown])
    words = "" if gold is None else f"[{gold + 1}] is the best response"
    return Critique(source, str(example.id), example.correct, None, prompt, example.text or "", example.scores, gold, words)
