"""From the answers of a judge to the rows that `rlsys judge` writes."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rlsys.judging import Answer
from rlsys.records import Record
from rlsys.voting import Options, SampleTable, Strategy, decide


def has_truth(record: Record) -> bool:
    """Whether the record says which response is the best one, or whether the only one is right."""
    if record.source == "responses":
        return False
    return record.n == 1 or record.rewards.count(max(record.rewards)) == 1


def verdict_row(answer: Answer, strategy: Strategy, options: Options, seed: int, single: tuple[int, int], text: bool) -> dict[str, Any]:
    """One line of `rlsys judge`.

    {id, source, n, k, totals, best, tied, abstained, parsed, failures, tokens, prompt_tokens, gold, correct, samples}: totals and best in
    the record's own order, null without a verdict; parsed and failures (by reason) count samples; tokens are those generated,
    prompt_tokens those of the different prompts; gold is the best response by the ground truth (of a single response: 0 or 1), null where
    there is none; correct compares the two (of a single response: whether its mean score is nearer to the right end of the range).
    A row that could not be asked has `skipped`, why, and no samples.

    Args:
        single: lowest and highest score of a single response.
        text: keep the texts of the samples.
    """
    record = answer.question.ask.record
    truth = has_truth(record)
    gold = None if not truth else int(record.rewards[0]) if record.n == 1 else record.best
    asked = answer.row(text)
    row: dict[str, Any] = {"id": record.id, "source": record.source, "n": record.n, "k": len(answer.samples)}
    if answer.question.skipped:
        nothing = {"totals": None, "best": None, "gold": gold, "correct": False if truth else None, "samples": []}
        return row | {"skipped": answer.question.skipped} | nothing
    table = SampleTable(strategy.needs)
    table.add({"id": record.id, "samples": answer.samples})
    (decided,) = decide(table, strategy, options, seed=seed)
    right = None if not truth else decided["best"] is not None and decided["best"] == gold
    if truth and record.n == 1:
        right = _single_right(answer, gold, single)
    return row | {
        **{name: decided[name] for name in ("totals", "best", "tied", "abstained", "parsed")},
        "spent": decided["samples"],
        "failures": dict(Counter(sample["failure"] for sample in answer.samples if "failure" in sample)),
        "tokens": asked["tokens"],
        "prompt_tokens": asked["prompt_tokens"],
        "gold": gold,
        "correct": right,
        "samples": asked["samples"],
    }


def _single_right(answer: Answer, gold: int, single: tuple[int, int]) -> bool:
    scores = [sample["scores"][0] for sample in answer.samples if sample["scores"] is not None]
    middle = sum(single) / 2
    mean = sum(scores) / len(scores) if scores else middle
    return mean > middle if gold else mean < middle
