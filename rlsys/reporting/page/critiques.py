"""Sample critiques of each source: correct ones, wrong ones and parse failures; and the same rows at every stage of a run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from rlsys.documents.evaluation import Example
from rlsys.prompts.reading import chat_turns
from rlsys.reporting.ground_truth import describe_ground_truth
from rlsys.reporting.page.collect import Evaluation, TrainingRun, step_of
from rlsys.reporting.page.content import Comparison, Critique, Section
from rlsys.reporting.page.runs import stage_name

RIGHT, WRONG, FAILED = 3, 2, 1
"""Number of critiques of each kind to show per source."""
Item = TypeVar("Item")


def section(runs: Sequence[TrainingRun], evaluations: Sequence[Evaluation]) -> Section:
    """Return the section with a few critiques of each source, from as many families or benchmarks as possible."""
    last = [(run, list(run.tables.values())[-1]) for run in runs if run.tables]
    chosen = [critique for run, rows in last for critique in choose([(row["family"], _of_row(run, row)) for row in rows])]
    for evaluation in evaluations:
        benchmarks = evaluation.report.benchmarks.items()
        examples = [
            (name, _of_example(f"{evaluation.name}, {name}", example)) for name, benchmark in benchmarks for example in benchmark.examples
        ]
        chosen += choose(examples)
    lead = "Chosen by outcome and family, not by content. Responses are numbered as they were shown."
    title = "Sample answers" if chosen and all(one.answers for one in chosen) else "Sample critiques"
    return Section(title, lead if chosen else "", critiques=chosen)


def choose(critiques: Sequence[tuple[str | None, Critique]]) -> list[Critique]:
    """Choose from (family, critique) pairs: RIGHT correct, WRONG wrong and FAILED parse failures, spread over families."""
    failed = [one for one in critiques if one[1].scores is None and not one[1].answers]
    right = [one for one in critiques if one[1].right]
    wrong = [one for one in critiques if (one[1].scores is not None or one[1].answers) and not one[1].right]
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


CHANGES = ((False, True, 2), (True, False, 1), (True, True, 1), (False, False, 1))
"""(right before, right at the end, rows to show per run)."""


def side_by_side(runs: Sequence[TrainingRun]) -> Section:
    """Return the section with a few held-out rows of each run, each at all stages."""
    chosen = [comparison for run in runs for comparison in _comparisons(run)]
    lead = "The same held-out rows at every stage, chosen by whether the last stage changed the outcome, and by family, not by content."
    return Section("The same row at every stage", lead if chosen else "", comparisons=chosen)


def _comparisons(run: TrainingRun) -> list[Comparison]:
    stages = {stage: _first_samples(rows) for stage, rows in run.tables.items() if step_of(stage) is None}
    if len(stages) < 2:
        return []
    *_, before, after = stages.values()
    common = [key for key in after if all(key in samples for samples in stages.values())]
    chosen: list[Any] = []
    for was, became, count in CHANGES:
        keys = [key for key in common if (bool(before[key]["correct"]), bool(after[key]["correct"])) == (was, became)]
        chosen += spread(keys, count, lambda key: after[key]["family"])
    named = {stage_name(stage): samples for stage, samples in stages.items()}
    rows = ({stage: _of_row(run, samples[key]) for stage, samples in named.items()} for key in chosen)
    return [Comparison(run.name, str(key[1]), row) for key, row in zip(chosen, rows)]


def _first_samples(rows: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the first sample of each row, by source, id and order, as only rows shown in the same order can stand side by side."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        found.setdefault((row.get("source"), row["prompt_id"], tuple(row["order"] or ())), row)
    return found


def _of_row(run: TrainingRun, row: dict[str, Any]) -> Critique:
    """Convert a trajectory row; its scores are reordered from the record's order to the prompt's."""
    order, truth = row["order"], row["ground_truth"]
    scores = row["scores"] and [row["scores"][response] for response in order]
    gold = order.index(truth.index(max(truth))) if truth and len(order) > 1 else None
    shown = run.reader.read(row["prompt"], len(order)) if run.reader and order else None
    turns = shown.turns if shown else [turn for turn in chat_turns(row["prompt"]) if turn[0] != "system"] if run.is_policy else []
    return Critique(
        source=run.name,
        id=row["prompt_id"],
        correct=row["correct"],
        failure=row["parse_failure"],
        turns=turns,
        responses=shown.responses if shown else [],
        prompt=row["prompt"],
        text=row["text"],
        scores=scores,
        gold=gold,
        truth=describe_ground_truth(truth, order) if truth else "",
        answers=run.is_policy,
    )


def _of_example(source: str, example: Example) -> Critique:
    order = example.order or list(range(len(example.responses)))
    gold = order.index(int(example.gold)) if len(order) > 1 and example.gold in order else None
    return Critique(
        source=source,
        id=str(example.id),
        correct=example.correct,
        failure=None,
        turns=[("user", example.query)],
        responses=[example.responses[response] for response in order],
        prompt="",
        text=example.text or "",
        scores=example.scores,
        gold=gold,
        truth="" if gold is None else f"[{gold + 1}] is the best response",
    )
