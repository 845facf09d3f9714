"""The rows that `rlsys judge` writes, from the results of a judge."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from rlsys.data.accounts import TOO_LONG
from rlsys.data.readers import DataError, SetAside
from rlsys.data.records import Record
from rlsys.judging.requests import JudgeResult
from rlsys.judging.voting import Options, SampleTable, Strategy, decide, mean
from rlsys.rewards.rules import single_is_correct

Row = dict[str, Any]


def result_row(result: JudgeResult, strategy: Strategy, options: Options, seed: int, single: tuple[int, int], text: bool) -> Row:
    """Return the output row of `rlsys judge` for one record.

    {id, source, n, k, totals, best, tied, abstained, parsed, spent, failures, tokens, prompt_tokens, gold, correct, samples}

    - totals, best: in the record's own order; null without a verdict
    - parsed, failures (by reason): numbers of samples
    - tokens, prompt_tokens: generated tokens, and tokens of the distinct prompts
    - gold: the best response by the ground truth (0 or 1 for a single response); null without ground truth
    - correct: whether best equals gold. For a single response: whether the mean score is nearer to the correct end of the range; the
      mean is over the samples that the strategy uses, or over all samples if it counts winners

    The row of a skipped request has no samples; `skipped` is the human-readable reason, `set_aside` the short one.

    Args:
        single: lowest and highest score of a single response.
        text: include the texts of the samples.
    """
    record = result.record
    gold = None if not record.has_truth else int(record.rewards[0]) if record.n == 1 else record.best
    sampled = result.row(text)
    row: Row = {"id": record.id, "source": record.source, "n": record.n, "k": len(result.samples)}
    if result.rendered.skipped:
        empty: Row = {"totals": None, "best": None, "gold": gold, "correct": None if gold is None else False, "samples": []}
        return row | {"skipped": result.rendered.skipped, "set_aside": TOO_LONG} | empty
    table = SampleTable(strategy.needs)
    table.add({"id": record.id, "samples": result.samples})
    (verdict,) = decide(table, strategy, options, seed=seed)
    correct = None if gold is None else verdict["best"] is not None and verdict["best"] == gold
    if gold is not None and record.n == 1:
        correct = _single_is_correct(table, strategy, options, gold, single)
    return row | {
        "totals": verdict["totals"],
        "best": verdict["best"],
        "tied": verdict["tied"],
        "abstained": verdict["abstained"],
        "parsed": verdict["parsed"],
        "spent": verdict["samples"],
        "failures": dict(Counter(sample["failure"] for sample in result.samples if "failure" in sample)),
        "tokens": sampled["tokens"],
        "prompt_tokens": sampled["prompt_tokens"],
        "gold": gold,
        "correct": correct,
        "samples": sampled["samples"],
    }


def set_aside_row(row: SetAside) -> Row:
    """Return the output row for an input row that was set aside: the keys of `result_row`, plus `row`, its number in the file."""
    empty: Row = {"n": 0, "k": 0, "totals": None, "best": None, "gold": None, "correct": None, "samples": []}
    return {"id": row.id, "source": None, "row": row.row, "skipped": f"{row.reason}: {row.message}", "set_aside": row.reason, **empty}


def in_input_order(items: Iterable[Record | SetAside], judge: Callable[[Iterator[Record]], Iterator[Row]]) -> Iterator[Row]:
    """Yield an output row for each item, in input order.

    Args:
        judge: yields the rows of the records, in their order. It may read records ahead of the rows that it yields, and is not called if
            there is no record.
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

    for row in judge(records()):
        while isinstance(item := waiting.popleft(), SetAside):
            yield set_aside_row(item)
        yield row
    for item in waiting:
        assert isinstance(item, SetAside), "`judge` yielded fewer rows than records"
        yield set_aside_row(item)


def check_resumed_items(items: Iterable[Record | SetAside], lines: Iterable[Row]) -> Iterator[Record | SetAside]:
    """Yield `items`, checking that the first ones are those of `lines`, the output of an earlier start.

    Raises:
        DataError: an item does not match its line.
    """
    items = iter(items)
    for number, line in enumerate(lines, 1):
        item = next(items, None)
        if item is None or item.id != line["id"] or (isinstance(item, Record) and item.source != line.get("source", item.source)):
            found = "nothing" if item is None else repr(item.id)
            raise DataError(f"line {number} of the output is about {line['id']!r}, found {found}: the input has changed; use --again.")
        yield item
    yield from items


def row_status(line: Row) -> str:
    """Return the status of an output row: "verdict", "nothing parsed", "abstained", or the reason why it was set aside."""
    if "skipped" in line:
        return str(line.get("set_aside", TOO_LONG))
    return "verdict" if line["best"] is not None else "abstained" if line["totals"] is not None else "nothing parsed"


def _single_is_correct(table: SampleTable, strategy: Strategy, options: Options, gold: int, single: tuple[int, int]) -> bool:
    ((_, samples),) = table.groups()
    ((score,),) = (strategy if strategy.counts == "scores" else mean)(samples, options).levels
    return bool(score == score and single_is_correct(score, gold, single))
