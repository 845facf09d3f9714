"""From the answers of a judge to the rows that `rlsys judge` writes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from rlsys.data.accounts import TOO_LONG
from rlsys.data.readers import DataError, SetAside
from rlsys.data.records import Record
from rlsys.judging.requests import Answer
from rlsys.judging.voting import Options, SampleTable, Strategy, decide, mean
from rlsys.rewards.rules import single_is_correct

Row = dict[str, Any]


def verdict_row(answer: Answer, strategy: Strategy, options: Options, seed: int, single: tuple[int, int], text: bool) -> dict[str, Any]:
    """One line of `rlsys judge`.

    {id, source, n, k, totals, best, tied, abstained, parsed, failures, tokens, prompt_tokens, gold, correct, samples}: totals and best in
    the record's own order, null without a verdict; parsed and failures (by reason) count samples; tokens are those generated,
    prompt_tokens those of the different prompts; gold is the best response by the ground truth (of a single response: 0 or 1), null where
    there is none; correct compares the two (of a single response: whether the mean of the scores that the strategy counts, or of all where
    it counts winners, is nearer to the right end of the range).
    A row that could not be asked has no samples; `skipped` says why in words, `set_aside` in short.

    Args:
        single: lowest and highest score of a single response.
        text: keep the texts of the samples.
    """
    record = answer.question.ask.record
    truth = record.has_truth
    gold = None if not truth else int(record.rewards[0]) if record.n == 1 else record.best
    asked = answer.row(text)
    row: dict[str, Any] = {"id": record.id, "source": record.source, "n": record.n, "k": len(answer.samples)}
    if answer.question.skipped:
        nothing = {"totals": None, "best": None, "gold": gold, "correct": False if truth else None, "samples": []}
        return row | {"skipped": answer.question.skipped, "set_aside": TOO_LONG} | nothing
    table = SampleTable(strategy.needs)
    table.add({"id": record.id, "samples": answer.samples})
    (decided,) = decide(table, strategy, options, seed=seed)
    right = None if not truth else decided["best"] is not None and decided["best"] == gold
    if truth and record.n == 1:
        right = _single_right(table, strategy, options, gold, single)
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


def set_aside_row(row: SetAside) -> dict[str, Any]:
    """The line of `rlsys judge` for a row that nothing could be asked about: as `verdict_row`, and `row`, its number in the file."""
    nothing = {"n": 0, "k": 0, "totals": None, "best": None, "gold": None, "correct": None, "samples": []}
    return {"id": row.id, "source": None, "row": row.row, "skipped": f"{row.reason}: {row.message}", "set_aside": row.reason, **nothing}


def in_place(items: Iterable[Record | SetAside], verdicts: Callable[[Iterator[Record]], Iterator[Row]]) -> Iterator[Row]:
    """A line for each of `items`, in their order: `verdicts` gives those of the records, in theirs.

    `verdicts` is not called where there is no record. It may take records ahead of the lines that it gives.
    """
    items = iter(items)
    for first in items:
        if isinstance(first, Record):
            break
        yield set_aside_row(first)
    else:
        return
    waiting: deque[Record | SetAside] = deque()

    def records() -> Iterator[Record]:
        for item in chain([first], items):
            waiting.append(item)
            if isinstance(item, Record):
                yield item

    for verdict in verdicts(records()):
        while isinstance(waiting[0], SetAside):
            yield set_aside_row(waiting.popleft())
        waiting.popleft()
        yield verdict
    yield from map(set_aside_row, waiting)


def as_before(items: Iterable[Record | SetAside], lines: Iterable[Row]) -> Iterator[Record | SetAside]:
    """`items`, the first of which must be those of `lines`, which were written of them in an earlier start.

    Raises:
        DataError: they are others.
    """
    items = iter(items)
    for number, line in enumerate(lines, 1):
        item = next(items, None)
        if item is None or item.id != line["id"] or isinstance(item, Record) and item.source != line.get("source", item.source):
            found = "nothing" if item is None else repr(item.id)
            raise DataError(f"line {number} of the output is about {line['id']!r}, found {found}: the input has changed; use --again.")
        yield item
    yield from items


def outcome(line: Row) -> str:
    """What became of the row that a line is about: "verdict", "nothing parsed", "abstained", or why it was set aside."""
    if "skipped" in line:
        return line.get("set_aside", TOO_LONG)
    return "verdict" if line["best"] is not None else "abstained" if line["totals"] is not None else "nothing parsed"


def _single_right(table: SampleTable, strategy: Strategy, options: Options, gold: int, single: tuple[int, int]) -> bool:
    ((_, samples),) = table.groups()
    ((score,),) = (strategy if strategy.counts == "scores" else mean)(samples, options).levels
    return bool(score == score and single_is_correct(score, gold, single))
