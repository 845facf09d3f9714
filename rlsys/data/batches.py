"""Batches of the RL loop: sampled records become prompt items, then requests for the rollout actors; supervised rows for warm-up.

The data types of the chain, with one worked example (two responses, shown in swapped order):

    Record       a query, its responses and their ground-truth rewards        rlsys.data.records
    PromptItem   the record rendered as a prompt, with the response order     this module
    GROUPS       prompt items as Arrow rows, for the reward actor             rlsys.data.trajectories
    REQUESTS     prompt tokens and one seed per sample, for the engines       rlsys.data.trajectories
    SAMPLES      generated tokens, one row per (group, sample)                rlsys.data.trajectories
    LEARNER      one training row per sample that has an advantage            rlsys.data.trajectories

Each type's docstring continues the same example: record "r1" with responses ("Oslo", "Bergen") and rewards (1.0, 0.0).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypedDict

import pyarrow as pa

from rlsys.data.accounts import EXCLUDED, TOO_LONG, RowCounts
from rlsys.data.mixtures import Mixture
from rlsys.data.readers import DataError, strict_rows
from rlsys.data.records import Record
from rlsys.data.trajectories import GROUPS, LEARNER, REQUESTS, RowKey
from rlsys.prompts.chat import Chat, ChatError
from rlsys.prompts.rendering import Prompter, seed_for, shuffled, worked_text
from rlsys.rewards.rules import judge

SeedPart = str | int | float | bool | None
"""A component of the key that a permutation or a sampling seed is derived from."""


@dataclass(frozen=True)
class PromptItem:
    """A record rendered as a prompt, once, for the length check, the engine and the trajectory table.

    Example: the record "r1" with responses ("Oslo", "Bergen"), shown in swapped order:

        PromptItem(record, order=[1, 0], prompt="... Response 1: Bergen ... Response 2: Oslo ...", prompt_tokens=[151644, 872, ...])

    A sample that ends in \\boxed{2, 9} then scores Bergen 2 and Oslo 9; in the record's own order, (9, 2).
    """

    record: Record
    order: list[int]
    """order[p] is the index in `record.responses` of the response shown at position p."""
    prompt: str
    """The full text after the chat template, up to where the assistant's turn begins."""
    prompt_tokens: list[int]
    """Token ids of `prompt`."""


class LearnerRow(TypedDict):
    """One row of `rlsys.data.trajectories.LEARNER`, as a dict.

    Example, a supervised row: {"group": 0, "prompt_tokens": [151644, 872], "tokens": [3838, 151645], "rollout_logprobs": [0.0, 0.0],
    "advantage": 1.0}.
    """

    group: int
    prompt_tokens: list[int]
    tokens: list[int]
    rollout_logprobs: list[float]
    advantage: float


def render_prompts(prompter: Prompter, records: Sequence[Record], keys: Sequence[tuple[SeedPart, ...]]) -> list[PromptItem]:
    """Render each record, with its responses shuffled by its key."""
    orders = [shuffled(record.n, *key) for record, key in zip(records, keys, strict=True)]
    prompts = [prompter.render(record, order) for record, order in zip(records, orders)]
    # One call for all prompts: the tokenizer then runs on all cores, outside the GIL.
    tokens = prompter.tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
    return [PromptItem(*fields) for fields in zip(records, orders, prompts, tokens)]


@dataclass
class Feed:
    """Samples prompt items from a mixture; excluded rows and rows with an overlong prompt are skipped and counted.

    The mixture's state is the only state: the items depend on the seed and the mixture's position.
    """

    source: Mixture
    prompter: Prompter
    max_prompt_tokens: int
    excluded: Set[RowKey] = frozenset()
    """(source, id) of the rows to skip."""

    def take(self, count: int, seed: int) -> list[PromptItem]:
        """Return the next `count` usable items; the response order of each depends on (seed, epoch, id).

        Raises:
            DataError: a whole epoch of a source yielded no usable row.
        """

        def usable_items(found: Sequence[tuple[int, Record]], account: RowCounts) -> list[PromptItem]:
            included = [(epoch, record) for epoch, record in found if record.key not in self.excluded]
            account.aside[EXCLUDED] += len(found) - len(included)
            keys: list[tuple[SeedPart, ...]] = [(seed, epoch, record.id) for epoch, record in included]
            items = render_prompts(self.prompter, [record for _, record in included], keys)
            return _within_limit(items, self.max_prompt_tokens, account)

        return self.source.take(count, usable_items)


def _within_limit(items: Sequence[PromptItem], max_prompt_tokens: int, account: RowCounts) -> list[PromptItem]:
    """Return the items whose prompt is at most `max_prompt_tokens` long, and count the others."""
    kept = [item for item in items if len(item.prompt_tokens) <= max_prompt_tokens]
    account.aside[TOO_LONG] += len(items) - len(kept)
    return kept


def heldout_rows(source: Mixture, prompter: Prompter, limit: int, max_prompt_tokens: int) -> list[PromptItem]:
    """Return the first `limit` items within the length limit, alternating between sources; every row read is counted.

    The response order depends on the row's id only: it is the same at every stage and in every run, so that comparisons are paired.

    Raises:
        DataError: no row is within the limit.
    """
    kept: list[PromptItem] = []
    records = source.scan()
    while found := list(islice(records, limit - len(kept))):
        items = render_prompts(prompter, [record for _, record in found], [("heldout", record.id) for _, record in found])
        for (part, _), item in zip(found, items, strict=True):
            usable = _within_limit([item], max_prompt_tokens, part.account)
            part.account.used += len(usable)
            kept += usable
    if not kept:
        counts = "; ".join(f"{part.name}: {part.account}" for part in source.parts)
        raise DataError(f"data.heldout: no row is left to evaluate on ({counts}). prompt.max_tokens is {max_prompt_tokens}.")
    return kept


def group_batch(items: Sequence[PromptItem], first_group: int = 0) -> pa.RecordBatch:
    """Return the GROUPS rows of `items`, numbered from `first_group`."""
    columns = {
        "group": range(first_group, first_group + len(items)),
        "prompt_id": [item.record.id for item in items],
        "source": [item.record.source for item in items],
        "family": [item.record.family for item in items],
        "order": [item.order for item in items],
        "rewards": [item.record.rewards for item in items],
        "prompt": [item.prompt for item in items],
        "prompt_tokens": [item.prompt_tokens for item in items],
    }
    return pa.record_batch(columns, schema=GROUPS)


def requests_for(groups: pa.RecordBatch, samples: int, *key: SeedPart) -> pa.RecordBatch:
    """Return REQUESTS for `samples` samples of each group; each seed derives from (*key, prompt id, sample number)."""
    seeds = [[seed_for(*key, prompt_id, sample) for sample in range(samples)] for prompt_id in groups["prompt_id"].to_pylist()]
    return pa.record_batch({"group": groups["group"], "prompt_tokens": groups["prompt_tokens"], "seeds": seeds}, schema=REQUESTS)


def cold_start_rows(items: Sequence[PromptItem], prompter: Prompter) -> tuple[list[LearnerRow], dict[str, int]]:
    """Return LEARNER rows of the teacher's correct trajectories (Eq. 10), and {kept, dropped}.

    Raises:
        ValueError: a record has no teacher judgement.
    """
    rows: list[LearnerRow] = []
    for i, item in enumerate(items):
        record = item.record
        if record.worked is None:
            raise ValueError(
                f"record {record.id} ({record.source}) has no teacher judgement: the cold start needs generated tasks "
                "(data.train: tasks:train) or sft.data; set sft.rows=0 to skip it."
            )
        text = worked_text(record, item.order, prompter.principles)
        if judge(text, record.rewards, item.order, replace(prompter.score_format, thought="")).correct:
            rows.append(learner_row(i, item.prompt_tokens, prompter.chat, text))
    return rows, {"kept": len(rows), "dropped": len(items) - len(rows)}


def learner_row(group: int, prompt_tokens: Sequence[int], chat: Chat, text: str) -> LearnerRow:
    """Return one supervised row: the completion has no thinking section and ends with the assistant's end-of-turn token."""
    tokens = [*chat.encode(chat.answer(text)), chat.end]
    return {
        "group": group,
        "prompt_tokens": list(prompt_tokens),
        "tokens": tokens,
        "rollout_logprobs": [0.0] * len(tokens),
        "advantage": 1.0,
    }


def learner_batch(rows: Sequence[LearnerRow]) -> pa.RecordBatch:
    """Return `rows` as a LEARNER record batch."""
    return pa.RecordBatch.from_pylist(list(rows), schema=LEARNER)


def prompt_completion_rows(path: Path, limit: int, chat: Chat) -> list[LearnerRow]:
    """Return LEARNER rows of the first `limit` rows of a file of {"prompt": text, "completion": text}; later rows are not read.

    Raises:
        DataError: a row has another form; the message names file and row.
    """
    rows: list[LearnerRow] = []
    for number, row in islice(strict_rows(path), limit):
        prompt, completion = row.get("prompt"), row.get("completion")
        if not (isinstance(prompt, str) and isinstance(completion, str) and completion):
            expected = '{"prompt": text, "completion": text} with a non-empty completion'
            raise DataError(f"expected {expected}, found {', '.join(row) or 'no keys'}.", file=str(path), row=number)
        try:
            tokens = chat.tokens([{"role": "user", "content": prompt}])
        except ChatError as error:
            raise DataError(str(error), file=str(path), row=number) from error
        rows.append(learner_row(len(rows), tokens, chat, completion))
    return rows
