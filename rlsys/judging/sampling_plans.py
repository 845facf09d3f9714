"""Which samples of a row a strategy wants: all at once, in rounds until the winner is clear, or a last one that has read the others."""

from __future__ import annotations

from collections.abc import Callable

from rlsys.data.records import Record
from rlsys.judging.requests import Answer, Ask, ask
from rlsys.judging.voting import Options, SampleTable, Strategy, decided
from rlsys.prompts.rendering import seed_for, shuffled

Plan = Callable[[Record, Answer | None], Ask | None]
"""(record, what it was answered so far) -> what to ask next, or None: no more. A record that cannot be asked is never asked again."""


def plan_for(strategy: Strategy, k: int, options: Options, seed: int) -> Plan:
    """The plan of a strategy; k is the most samples that it draws of a row."""
    plans = {"adaptive": _adaptive, "synthesis": _synthesis}
    return plans.get(strategy.name, _at_once)(k, options, seed)


def _at_once(k: int, options: Options, seed: int) -> Plan:
    return lambda record, answer: None if answer else ask(record, k, "judge", seed)


def _adaptive(k: int, options: Options, seed: int) -> Plan:
    """`options.round_size` samples at a time, the same ones that `_at_once` would draw. Of a single response, without a rival, all k."""

    def next_ask(record: Record, answer: Answer | None) -> Ask | None:
        first = len(answer.samples) if answer else 0
        if first >= k or (answer and record.n > 1 and _is_decided(answer, options)):
            return None
        return ask(record, min(options.round_size, k - first), "judge", seed, first=first)

    return next_ask


def _is_decided(answer: Answer, options: Options) -> bool:
    table = SampleTable()
    table.add({"id": answer.question.ask.record.id, "samples": answer.samples})
    ((_, samples),) = table.groups()
    return bool(decided(samples, options).all())


def _synthesis(k: int, options: Options, seed: int) -> Plan:
    """k - 1 samples in one order of the responses, then one that reads them (generative self-aggregation, arXiv 2503.04104)."""

    def next_ask(record: Record, answer: Answer | None) -> Ask | None:
        order = shuffled(record.n, "judge", seed, record.id)
        if answer is None and k > 1:
            return ask(record, k - 1, "judge", seed, order=order)
        if answer is None or len(answer.samples) < k:
            others = tuple(sample["text"] for sample in answer.samples) if answer else ()
            return Ask(record, [order], [seed_for("judge", seed, record.id, k - 1)], others=others)
        return None

    return next_ask
