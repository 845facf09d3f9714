"""Adapters for rows with many response pairs: RM-Bench's style matrix, IF-RewardBench's preference graph, EvalBiasBench."""

from __future__ import annotations

from rlsys.data.readers.fields import Row, as_integer, as_object, as_text, integer, items, required, row_id, text, wrong
from rlsys.data.readers.formats import FIRST, SECOND
from rlsys.data.readers.messages import conversation
from rlsys.data.records import Record
from rlsys.evaluation.benchmarks.formats import BOTH, Draft, FileLocation, one, singles

STYLES = 3
"""RM-Bench: concise, detailed, detailed with Markdown."""
RMBENCH_DOMAINS = {name: name for name in ("chat", "code", "math", "safety")}


def rmbench(row: Row, location: FileLocation, alone: bool = False) -> Draft:
    """Adapt RM-Bench: three correct and three incorrect responses in three styles, as nine pairs (correct first) or, `alone`, one by one.

    The domain is in the row or, for files of a single domain, in the file's name; safety-refuse and safety-response are both safety.
    """
    domain = location.named(RMBENCH_DOMAINS)
    if row.get("domain") is not None:
        named = text(row, "domain")
        domain = next((name for name in RMBENCH_DOMAINS if named.startswith(name)), None)
    if domain is None:
        raise wrong("domain", f"{', '.join(RMBENCH_DOMAINS)} or a file named after one of them", row.get("domain"))
    chosen, rejected = (
        [as_text(value, f"{key}[{style}]", blank=True) for style, value in enumerate(items(row, key))] for key in ("chosen", "rejected")
    )
    for key, responses in (("chosen", chosen), ("rejected", rejected)):
        if len(responses) != STYLES:
            raise wrong(key, f"a list of {STYLES}, one response a style", row[key])
    name, context = row_id(row, "id"), conversation(row, "prompt")
    whole = Record(name, "rmbench", context, (*chosen, *rejected), (1.0,) * STYLES + (0.0,) * STYLES, family=domain)
    if alone:
        return Draft(name, domain, domain, tuple((record, None) for record in singles(whole)))
    pairs = [(good, bad) for good in enumerate(chosen) for bad in enumerate(rejected)]
    records = (Record(f"{name}/{i}{j}", "rmbench", context, (good, bad), FIRST, family=domain) for (i, good), (j, bad) in pairs)
    return Draft(name, domain, domain, tuple((record, None) for record in records))


def evalbiasbench(row: Row, location: FileLocation) -> Draft:
    """Adapt EvalBiasBench: instruction, response1, response2, label 1|2, by bias; each pair in both orders."""
    bias = text(row, "group" if row.get("group") is not None else "bias")
    rewards = FIRST if integer(row, "label", 1, 2) == 1 else SECOND
    responses = text(row, "response1", blank=True), text(row, "response2", blank=True)
    record = Record(row_id(row, "id"), "evalbiasbench", conversation(row, "instruction"), responses, rewards, family=bias)
    return one(record, bias, orders=BOTH)


def ifrewardbench(row: Row, location: FileLocation) -> Draft:
    """Adapt IF-RewardBench: messages, responses [{response}], preference_graph [{chosen, rejected: {response_id}}], instruction_type.

    All responses are judged in one input; a response's reward is the number of responses the graph ranks below it.
    """
    kind = text(row, "instruction_type")
    responses = []
    for position, entry in enumerate(items(row, "responses")):
        where = f"responses[{position}]"
        responses.append(text(as_object(entry, where), "response", f"{where}.", blank=True))
    better = []
    for position, entry in enumerate(items(row, "preference_graph")):
        where, ends = f"preference_graph[{position}]", []
        for side in ("chosen", "rejected"):
            node = as_object(required(as_object(entry, where), side, "an object with a response_id", f"{where}."), f"{where}.{side}")
            ends.append(as_integer(node.get("response_id"), f"{where}.{side}.response_id", 0, len(responses) - 1))
        better.append((ends[0], ends[1]))
    rewards = tuple(float(sum(winner == response for winner, _ in better)) for response in range(len(responses)))
    record = Record(row_id(row, "id"), "ifrewardbench", conversation(row, "messages"), tuple(responses), rewards, family=kind)
    return Draft(record.id, kind, kind, ((record, None),), pairs=tuple(better))
