"""Learner batches from rows that carry their own prompts, as tests write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from rlsys.data.chain import LEARNER_ROWS, PROMPTS, LearnerBatch


def learner_batch(rows: Iterable[dict[str, Any]]) -> LearnerBatch:
    """Return rows {group, prompt_token_ids, token_ids, rollout_logprobs?, advantage}; `sample` counts the rows of a group."""
    prompts: dict[int, list[int]] = {}
    samples: Counter[int] = Counter()
    numbered = []
    for row in rows:
        prompts.setdefault(row["group"], row["prompt_token_ids"])
        numbered.append(row | {"sample": samples[row["group"]]})
        samples[row["group"]] += 1
    shown = [{"group": group, "prompt_token_ids": prompt} for group, prompt in prompts.items()]
    schema = pa.schema([PROMPTS.field("group"), PROMPTS.field("prompt_token_ids")])
    return LearnerBatch(pa.RecordBatch.from_pylist(shown, schema=schema), pa.RecordBatch.from_pylist(numbered, schema=LEARNER_ROWS))
