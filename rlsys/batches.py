"""From records to what the rollout actors sample and what the reward actor judges by; and the rows of the cold start."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from rlsys.datasets import Rows
from rlsys.prompts import Prompter, seed_for, shuffled, worked_text
from rlsys.readers import DataError
from rlsys.records import Record
from rlsys.sampler import Sampler
from rlsys.scores import judge
from rlsys.trajectories import GROUPS, LEARNER, REQUESTS


@dataclass
class Feed:
    """Draws records in the sampler's order; rows whose prompt is too long are counted and set aside.

    `position` of the sampler is all the state there is: what was drawn depends on the seed alone.
    """

    rows: Rows
    sampler: Sampler
    prompter: Prompter
    max_prompt_tokens: int
    too_long: list[str] = field(default_factory=list)

    def take(self, count: int, seed: int) -> list[tuple[Record, list[int], list[int]]]:
        """The next `count` usable rows as (record, order in which its responses are shown, prompt tokens).

        Raises:
            ValueError: a whole epoch went by without enough rows that fit.
        """
        taken: list[tuple[Record, list[int], list[int]]] = []
        looked_at = 0
        while len(taken) < count:
            if looked_at > len(self.rows) + count:
                raise ValueError(
                    f"no row's prompt fits in prompt.max_tokens={self.max_prompt_tokens} ({len(self.too_long)} were too long); raise it."
                )
            places = []
            for _ in range(count - len(taken)):
                epoch = self.sampler.state_dict()["epoch"]
                places.append((epoch, self.sampler.next(1)[0]))
            looked_at += len(places)
            records = self.rows.take([index for _, index in places])
            for (epoch, _), record in zip(places, records, strict=True):
                order = shuffled(record.n, seed, epoch, record.id)
                tokens = self.prompter.tokens(record, order)
                if len(tokens) > self.max_prompt_tokens:
                    self.too_long.append(record.id)
                else:
                    taken.append((record, order, tokens))
        return taken


def heldout_rows(rows: Rows, prompter: Prompter, limit: int, max_prompt_tokens: int) -> tuple[list[Record], list[str]]:
    """The first `limit` rows that fit, and the ids of those that did not."""
    kept: list[Record] = []
    too_long: list[str] = []
    for index in range(len(rows)):
        if len(kept) == limit:
            break
        record = rows[index]
        fits = len(prompter.tokens(record, list(range(record.n)))) <= max_prompt_tokens
        (kept if fits else too_long).append(record if fits else record.id)
    return kept, too_long


def group_batch(prompter: Prompter, drawn: Iterable[tuple[Record, Sequence[int], Sequence[int]]], first_group: int = 0) -> pa.RecordBatch:
    """GROUPS rows of drawn (record, order, prompt tokens), numbered from `first_group`."""
    rows = [
        {
            "group": first_group + i,
            "prompt_id": record.id,
            "family": record.family,
            "order": list(order),
            "rewards": list(record.rewards),
            "prompt": prompter.render(record, list(order)),
            "prompt_tokens": list(tokens),
        }
        for i, (record, order, tokens) in enumerate(drawn)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=GROUPS)


def requests_for(groups: pa.RecordBatch, samples: int, *key: object) -> pa.RecordBatch:
    """REQUESTS for `samples` samples of each group; every seed derives from (*key, prompt id, sample)."""
    seeds = [[seed_for(*key, prompt_id, sample) for sample in range(samples)] for prompt_id in groups["prompt_id"].to_pylist()]
    return pa.record_batch({"group": groups["group"], "prompt_tokens": groups["prompt_tokens"], "seeds": seeds}, schema=REQUESTS)


def cold_start_rows(
    drawn: Sequence[tuple[Record, Sequence[int], Sequence[int]]], tokenizer, first_group: int = 0
) -> tuple[list[dict[str, object]], dict[str, int]]:
    """LEARNER rows of the teacher's trajectories, rejected unless correct (Eq. 10), and how many were kept and dropped.

    Raises:
        ValueError: a record has no worked judgement to learn from.
    """
    rows: list[dict[str, object]] = []
    dropped = 0
    for i, (record, order, prompt_tokens) in enumerate(drawn):
        if record.worked is None:
            raise ValueError(
                f"record {record.id} ({record.source}) carries no worked judgement: the cold start needs generated tasks "
                "(data.train: tasks:train) or sft.data; set sft.rows=0 to go without."
            )
        text = worked_text(record, list(order))
        if not judge(text, record.rewards, list(order)).correct:
            dropped += 1
            continue
        rows.append(learner_row(first_group + i, prompt_tokens, tokenizer, text))
    return rows, {"kept": len(rows), "dropped": dropped}


def learner_row(group: int, prompt_tokens: Sequence[int], tokenizer, text: str) -> dict[str, object]:
    """One supervised row: the completion ends with the token that ends an assistant's turn."""
    tokens = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
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


def prompt_completion_rows(path: Path, limit: int, tokenizer) -> list[dict[str, object]]:
    """LEARNER rows of a JSONL file of {"prompt": text, "completion": text}, the first `limit` of them.

    Raises:
        DataError: a row is not of that form; the message names file and row.
    """
    rows: list[dict[str, object]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if len(rows) == limit:
                break
            try:
                row = json.loads(line)
                prompt, completion = row["prompt"], row["completion"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(f'{path}, row {number}: expected {{"prompt": text, "completion": text}} ({error!r}).') from error
            if not (isinstance(prompt, str) and isinstance(completion, str) and completion):
                raise DataError(f"{path}, row {number}: prompt and completion must be text, the completion not empty.")
            chat = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            rows.append(learner_row(len(rows), tokenizer.encode(text, add_special_tokens=False), tokenizer, completion))
    return rows
