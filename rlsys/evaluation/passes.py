"""What an evaluation asks of a judge: k samples of each item, a greedy one, and of pairs that one in the other order too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlsys.evaluation.benchmarks import Benchmark, Item
from rlsys.judging.requests import JudgeRequest, JudgeResult, judge_request
from rlsys.prompts.rendering import shuffled

Row = dict[str, Any]


@dataclass(frozen=True)
class EvalPass:
    """One pass over items of a benchmark, and one file."""

    name: str
    """samples, greedy or swapped."""
    items: tuple[Item, ...]
    ask: Callable[[Item], JudgeRequest]
    temperature: float
    text: bool
    """Whether the texts are kept."""
    settings: dict[str, Any]
    """JSON object of what the rows depend on, besides model and prompt."""

    def row(self, item: Item, answer: JudgeResult) -> Row:
        """`JudgeResult.row` under the item's id, as several items may share a record."""
        return answer.row(self.text) | {"id": item.id}


def eval_passes(benchmark: Benchmark, k: int, temperature: float, seed: int, text: bool = False, swap: bool = True) -> list[EvalPass]:
    """The passes over a benchmark.

    Args:
        k: samples of each item, their orders shuffled afresh where the benchmark fixes none.
        temperature, seed: of these samples.
        text: keep their texts; those of greedy samples are always kept.
        swap: ask about pairs in the other order, too, unless the benchmark itself does.
    """

    def sampled(item: Item) -> JudgeRequest:
        return judge_request(item.record, k, "eval", seed, item.id, order=item.order)

    drawn = {"k": k, "temperature": temperature, "seed": seed, "text": text}
    found = [
        EvalPass("samples", benchmark.items, sampled, temperature, text, drawn | _asked(benchmark.items)),
        EvalPass("greedy", benchmark.items, greedy, 0.0, True, _asked(benchmark.items)),
    ]
    pairs = tuple(item for item in benchmark.items if item.record.n == 2 and item.order is None)
    if swap and pairs:
        found.append(EvalPass("swapped", pairs, swapped, 0.0, True, _asked(pairs)))
    return found


def greedy(item: Item) -> JudgeRequest:
    """One sample in the benchmark's order or, where there is none, in one that the record's id decides, as held-out rows have it."""
    return judge_request(item.record, 1, "greedy", item.id, order=greedy_order(item))


def swapped(item: Item) -> JudgeRequest:
    """`greedy` in the other order."""
    return judge_request(item.record, 1, "greedy", item.id, order=greedy_order(item)[::-1])


def greedy_order(item: Item) -> Sequence[int]:
    return item.order or shuffled(item.record.n, "heldout", item.record.id)


def _asked(items: Sequence[Item]) -> dict[str, Any]:
    """How many items, and a fingerprint of all that the judge is shown of them."""
    digest = hashlib.blake2b(digest_size=8)
    for item in items:
        digest.update(json.dumps([item.id, item.order, item.record.context, item.record.responses]).encode())
    return {"items": len(items), "content": digest.hexdigest()}
