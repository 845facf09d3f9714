"""From records to what the rollout actors sample and what the reward actor judges by; and the rows of the cold start."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from rlsys.chat import Chat, ChatError
from rlsys.datasets import Rows, draw_records
from rlsys.prompts import Prompter, seed_for, shuffled, worked_text
from rlsys.readers import DataError, whole_rows
from rlsys.records import Record
from rlsys.sampler import Sampler
from rlsys.scores import judge
from rlsys.trajectories import GROUPS, LEARNER, REQUESTS


@dataclass(frozen=True)
class Drawn:
    """A record as it will be shown: rendered once, for the length check, the engine and the trajectory table alike."""

    record: Record
    order: list[int]
    """order[p]: index of the response shown at place p."""
    prompt: str
    tokens: list[int]


def draw(prompter: Prompter, records: Sequence[Record], keys: Sequence[tuple[object, ...]]) -> list[Drawn]:
    """Render each record with its responses in the order that its key gives."""
    orders = [shuffled(record.n, *key) for record, key in zip(records, keys, strict=True)]
    prompts = [prompter.render(record, order) for record, order in zip(records, orders)]
    # All at once: the tokenizer then uses all cores, and no Python runs meanwhile.
    tokens = prompter.tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
    return [Drawn(*each) for each in zip(records, orders, prompts, tokens)]


@dataclass
class Feed:
    """Draws records in the sampler's order; rows whose prompt is too long are counted and set aside.

    `position` of the sampler is all the state there is: what was drawn depends on the seed alone.
    """

    rows: Rows
    sampler: Sampler
    prompter: Prompter
    max_prompt_tokens: int
    excluded: Set[str] = frozenset()
    """Ids of rows that are left out."""
    too_long: int = 0

    def take(self, count: int, seed: int) -> list[Drawn]:
        """The next `count` usable rows; the order of a row's responses depends on (seed, epoch, id).

        Raises:
            ValueError: a whole epoch went by without enough rows that fit.
        """
        taken: list[Drawn] = []
        looked_at = 0
        while len(taken) < count:
            if looked_at > len(self.rows) + count:
                raise ValueError(
                    f"no row is left whose prompt fits in prompt.max_tokens={self.max_prompt_tokens} ({self.too_long} were too long; "
                    f"data.exclude leaves out {len(self.excluded):,}); raise the one, or shorten the other."
                )
            found = draw_records(self.rows, self.sampler, count - len(taken))
            looked_at += len(found)
            found = [(epoch, record) for epoch, record in found if record.id not in self.excluded]
            for drawn in draw(self.prompter, [record for _, record in found], [(seed, epoch, record.id) for epoch, record in found]):
                if len(drawn.tokens) > self.max_prompt_tokens:
                    self.too_long += 1
                else:
                    taken.append(drawn)
        return taken


def excluded_ids(path: Path | None) -> Set[str]:
    """The ids in a file of {id, easy?} whose row is not said to be hard (`easy` false); none without a file.

    Raises:
        DataError: a row is not of that form; the message names file and row.
    """
    if path is None:
        return frozenset()
    ids = set()
    for number, row in whole_rows(path):
        if "id" not in row:
            raise DataError(f'expected {{"id": text, "easy": true or false}}, found {", ".join(row)}.', file=str(path), row=number)
        if row.get("easy", True):
            ids.add(str(row["id"]))
    return ids


def heldout_rows(rows: Rows, prompter: Prompter, limit: int, max_prompt_tokens: int) -> tuple[list[Drawn], list[str]]:
    """The first `limit` rows that fit, and the ids of those that did not.

    The order of responses depends on the row's id alone: the same at every stage and in every run, so that differences are paired.
    """
    kept: list[Drawn] = []
    too_long: list[str] = []
    usable = iter(rows)
    while records := list(islice(usable, limit - len(kept))):
        for drawn in draw(prompter, records, [("heldout", record.id) for record in records]):
            if len(drawn.tokens) > max_prompt_tokens:
                too_long.append(drawn.record.id)
            else:
                kept.append(drawn)
    return kept, too_long


def group_batch(drawn: Sequence[Drawn], first_group: int = 0) -> pa.RecordBatch:
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


def cold_start_rows(drawn: Sequence[Drawn], prompter: Prompter) -> tuple[list[dict[str, object]], dict[str, int]]:
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
        if judge(text, record.rewards, each.order).correct:
            rows.append(learner_row(i, each.tokens, prompter.chat, text))
    return rows, {"kept": len(rows), "dropped": len(drawn) - len(rows)}


def learner_row(group: int, prompt_tokens: Sequence[int], chat: Chat, text: str) -> dict[str, object]:
    """One supervised row: the completion ends with the token that ends an assistant's turn."""
    tokens = [*chat.encode(text), chat.end]
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
    for number, row in whole_rows(path):
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
