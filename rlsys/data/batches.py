"""From records to what the rollout actors sample and what the reward actor judges by; and the rows of the cold start."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa

from rlsys.data.accounts import EXCLUDED, TOO_LONG, RowCounts
from rlsys.data.mixtures import Mixture
from rlsys.data.readers import DataError, strict_rows
from rlsys.data.records import Record
from rlsys.data.trajectories import GROUPS, LEARNER, REQUESTS, RowKey
from rlsys.prompts.chat import Chat, ChatError
from rlsys.prompts.rendering import Prompter, seed_for, shuffled, worked_text
from rlsys.rewards.rules import judge


@dataclass(frozen=True)
class PromptItem:
    """A record as it will be shown: rendered once, for the length check, the engine and the trajectory table alike."""

    record: Record
    order: list[int]
    """order[p]: index of the response shown at place p."""
    prompt: str
    tokens: list[int]


def render_prompts(prompter: Prompter, records: Sequence[Record], keys: Sequence[tuple[object, ...]]) -> list[PromptItem]:
    """Render each record with its responses in the order that its key gives."""
    orders = [shuffled(record.n, *key) for record, key in zip(records, keys, strict=True)]
    prompts = [prompter.render(record, order) for record, order in zip(records, orders)]
    # All at once: the tokenizer then uses all cores, and no Python runs meanwhile.
    tokens = prompter.tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
    return [PromptItem(*each) for each in zip(records, orders, prompts, tokens)]


@dataclass
class Feed:
    """Draws records of a mixture; rows that are excluded, or whose prompt is too long, are counted in its accounts and set aside.

    The mixture's state is all the state there is: what was drawn depends on the seed alone.
    """

    source: Mixture
    prompter: Prompter
    max_prompt_tokens: int
    excluded: Set[RowKey] = frozenset()
    """(source, id) of rows that are left out."""

    def take(self, count: int, seed: int) -> list[PromptItem]:
        """The next `count` usable rows; the order of a row's responses depends on (seed, epoch, id).

        Raises:
            DataError: a whole epoch of a source went by without a row that fits.
        """

        def fitting(found: Sequence[tuple[int, Record]], account: RowCounts) -> list[PromptItem]:
            left = [(epoch, record) for epoch, record in found if record.key not in self.excluded]
            account.aside[EXCLUDED] += len(found) - len(left)
            return _fitting(
                render_prompts(self.prompter, [record for _, record in left], [(seed, epoch, record.id) for epoch, record in left]),
                self.max_prompt_tokens,
                account,
            )

        return self.source.take(count, fitting)


def _fitting(drawn: Sequence[PromptItem], max_prompt_tokens: int, account: RowCounts) -> list[PromptItem]:
    """Those whose prompt is not too long; the others are counted."""
    fitting = [each for each in drawn if len(each.tokens) <= max_prompt_tokens]
    account.aside[TOO_LONG] += len(drawn) - len(fitting)
    return fitting


def heldout_rows(source: Mixture, prompter: Prompter, limit: int, max_prompt_tokens: int) -> list[PromptItem]:
    """The first `limit` rows that fit, of several sources in turn. The accounts say what became of all rows that were read.

    The order of responses depends on the row's id alone: the same at every stage and in every run, so that differences are paired.

    Raises:
        DataError: none fits.
    """
    kept: list[PromptItem] = []
    usable = source.scan()
    while found := list(islice(usable, limit - len(kept))):
        drawn = render_prompts(prompter, [record for _, record in found], [("heldout", record.id) for _, record in found])
        for (part, _), each in zip(found, drawn, strict=True):
            fits = _fitting([each], max_prompt_tokens, part.account)
            part.account.used += len(fits)
            kept += fits
    if not kept:
        told = "; ".join(f"{part.name}: {part.account}" for part in source.parts)
        raise DataError(f"data.heldout: no row is left to evaluate on ({told}). prompt.max_tokens is {max_prompt_tokens}.")
    return kept


def group_batch(drawn: Sequence[PromptItem], first_group: int = 0) -> pa.RecordBatch:
    """GROUPS rows of what was drawn, numbered from `first_group`."""
    columns = {
        "group": range(first_group, first_group + len(drawn)),
        "prompt_id": [each.record.id for each in drawn],
        "source": [each.record.source for each in drawn],
        "family": [each.record.family for each in drawn],
        "order": [each.order for each in drawn],
        "rewards": [each.record.rewards for each in drawn],
        "prompt": [each.prompt for each in drawn],
        "prompt_tokens": [each.tokens for each in drawn],
    }
    return pa.record_batch(columns, schema=GROUPS)


def requests_for(groups: pa.RecordBatch, samples: int, *key: object) -> pa.RecordBatch:
    """REQUESTS for `samples` samples of each group; every seed derives from (*key, prompt id, sample)."""
    seeds = [[seed_for(*key, prompt_id, sample) for sample in range(samples)] for prompt_id in groups["prompt_id"].to_pylist()]
    return pa.record_batch({"group": groups["group"], "prompt_tokens": groups["prompt_tokens"], "seeds": seeds}, schema=REQUESTS)


def cold_start_rows(drawn: Sequence[PromptItem], prompter: Prompter) -> tuple[list[dict[str, object]], dict[str, int]]:
    """LEARNER rows of the teacher's trajectories, rejected unless correct (Eq. 10), and how many were kept and dropped.

    Raises:
        ValueError: a record has no worked judgement to learn from.
    """
    rows: list[dict[str, object]] = []
    for i, each in enumerate(drawn):
        record = each.record
        if record.worked is None:
            raise ValueError(
                f"record {record.id} ({record.source}) carries no worked judgement: the cold start needs generated tasks "
                "(data.train: tasks:train) or sft.data; set sft.rows=0 to go without."
            )
        text = worked_text(record, each.order, prompter.principles)
        if judge(text, record.rewards, each.order, replace(prompter.score_format, thought="")).correct:
            rows.append(learner_row(i, each.tokens, prompter.chat, text))
    return rows, {"kept": len(rows), "dropped": len(drawn) - len(rows)}


def learner_row(group: int, prompt_tokens: Sequence[int], chat: Chat, text: str) -> dict[str, object]:
    """One supervised row: the completion is no thought, and ends with the token that ends an assistant's turn."""
    tokens = [*chat.encode(chat.answer(text)), chat.end]
    return {
        "group": group,
        "prompt_tokens": list(prompt_tokens),
        "tokens": tokens,
        "rollout_logprobs": [0.0] * len(tokens),
        "advantage": 1.0,
    }


def learner_batch(rows: Sequence[dict[str, object]]) -> pa.RecordBatch:
    """LEARNER record batch of `rows`."""
    return pa.RecordBatch.from_pylist(list(rows), schema=LEARNER)


def prompt_completion_rows(path: Path, limit: int, chat: Chat) -> list[dict[str, object]]:
    """LEARNER rows of a file of {"prompt": text, "completion": text}, the first `limit` of them.

    Raises:
        DataError: a row is not of that form; the message names file and row.
    """
    rows: list[dict[str, object]] = []
    for number, row in strict_rows(path):
        if len(rows) == limit:
            break
        prompt, completion = row.get("prompt"), row.get("completion")
        if not (isinstance(prompt, str) and isinstance(completion, str) and completion):
            expected = '{"prompt": text, "completion": text}, the completion not empty'
            raise DataError(f"expected {expected}, found {', '.join(row) or 'no keys'}.", file=str(path), row=number)
        try:
            tokens = chat.tokens([{"role": "user", "content": prompt}])
        except ChatError as error:
            raise DataError(str(error), file=str(path), row=number) from error
        rows.append(learner_row(len(rows), tokens, chat, completion))
    return rows
