"""The rows that pass through the loop, and the Arrow tables that carry them between actors.

    Record      a query, its responses and their ground-truth rewards             rlsys.data.records
    PromptItem  the record as a prompt, with one seed per requested sample        PROMPTS       key: group
    Sample      what an engine generated for one seed                             SAMPLES       key: (group, sample)
    LearnerRow  a sample to train on, with its advantage                          LEARNER_ROWS  key: (group, sample)

`group` numbers the prompts of a batch, `sample` the samples of a group from 0. Tables are joined by these keys, never by position, and a
prompt is stored once per group. The trajectory table of a step (`rlsys.data.trajectories`) has the same key.

Units: token ids are indices into the model's vocabulary, counts are in tokens, log-probabilities are natural (nats). The docstrings
follow one example: record "r1" with responses ("Oslo", "Bergen") and rewards (1.0, 0.0).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlsys.data.records import Record
from rlsys.prompts.rendering import seed_for

SeedPart = str | int | float | bool | None
"""A component of the key that a permutation or a sampling seed is derived from."""

TokenIds = Sequence[int] | np.ndarray
TOKENS = pa.list_(pa.int32())
FLOATS = pa.list_(pa.float32())


@dataclass(frozen=True)
class PromptItem:
    """A record rendered as a prompt, once, for the length check, the engine and the trajectory table.

    Example: the record "r1" with responses ("Oslo", "Bergen"), shown in swapped order, to be sampled twice:

        PromptItem(record, order=[1, 0], text="... Response 1: Bergen ... Response 2: Oslo ...", token_ids=[151644, 872, ...],
                   seeds=[1830521917, 402731])

    A sample that ends in \\boxed{2, 9} scores Bergen 2 and Oslo 9; in the record's own order, (9, 2).
    """

    record: Record
    order: Sequence[int]
    """order[p] is the index in `record.responses` of the response shown at position p."""
    text: str
    """The full text after the chat template, up to where the assistant's turn begins."""
    token_ids: list[int]
    """`text`, encoded."""
    seeds: Sequence[int] = ()
    """Sampling seeds, one per requested sample: the length is the group size."""

    def seeded(self, samples: int, *key: SeedPart) -> PromptItem:
        """Request `samples` samples; each seed derives from (*key, record id, sample number) alone."""
        return replace(self, seeds=[seed_for(*key, self.record.id, sample) for sample in range(samples)])


PROMPTS = pa.schema(
    [
        ("group", pa.int32()),  # key
        ("prompt_id", pa.string()),  # Record.id
        ("source", pa.string()),  # Record.source
        ("family", pa.string()),  # Record.family, or null
        ("order", pa.list_(pa.int32())),
        ("rewards", pa.list_(pa.float64())),  # Record.rewards: ground truth, in the record's own order; any scale
        ("prompt", pa.string()),
        ("prompt_token_ids", TOKENS),
        ("seeds", pa.list_(pa.int64())),
    ]
)
"""What engines sample, the reward actor judges and the learner trains on: one row per `PromptItem`.

Example: {"group": 0, "prompt_id": "r1", "source": "llmbar", "family": None, "order": [1, 0], "rewards": [1.0, 0.0],
"prompt": "... Response 1: Bergen ...", "prompt_token_ids": [151644, 872], "seeds": [1830521917, 402731]}.
"""


def prompt_batch(items: Sequence[PromptItem], first_group: int = 0) -> pa.RecordBatch:
    """Return the PROMPTS rows of `items`, numbered from `first_group`."""
    columns = {
        "group": range(first_group, first_group + len(items)),
        "prompt_id": [item.record.id for item in items],
        "source": [item.record.source for item in items],
        "family": [item.record.family for item in items],
        "order": [item.order for item in items],
        "rewards": [item.record.rewards for item in items],
        "prompt": [item.text for item in items],
        "prompt_token_ids": [item.token_ids for item in items],
        "seeds": [item.seeds for item in items],
    }
    return pa.record_batch(columns, schema=PROMPTS)


@dataclass(frozen=True)
class Sample:
    """What an engine generated for one seed of a prompt.

    Example: Sample(group=0, sample=1, token_ids=[3838, 151645], logprobs=[-0.7, -0.1], text="... \\boxed{2, 9}", finish_reason="stop",
    weight_version=3).
    """

    group: int
    sample: int
    """Index of its seed in the group."""
    token_ids: Sequence[int]
    """Generated tokens, including the end-of-turn token if it was generated."""
    logprobs: Sequence[float]
    """nats, one per token: the engine's, at the sampling temperature."""
    text: str
    """Decoded, without special tokens."""
    finish_reason: str
    """"stop" or "length"."""
    weight_version: int
    """Version of the weights that generated it, of its oldest token if they changed midway."""
    certainty: float | None = None
    """Self-certainty, nats, mean over the tokens; None unless rollout.self_certainty."""

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"


SAMPLES = pa.schema(
    [
        ("group", pa.int32()),  # key
        ("sample", pa.int32()),  # key
        ("token_ids", TOKENS),
        ("logprobs", FLOATS),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("weight_version", pa.int64()),
        ("certainty", pa.float32()),
    ]
)
"""One row per `Sample`, with its fields, sorted by key."""


@dataclass(frozen=True)
class LearnerRow:
    """A completion to train on, after the prompt of its group.

    Example: the sample above, the only one of its group that found Oslo, trains as LearnerRow(group=0, sample=1,
    token_ids=[3838, 151645], rollout_logprobs=[-0.7, -0.1], advantage=0.7). Supervised rows leave the last two out.
    """

    group: int
    sample: int
    token_ids: TokenIds
    """The tokens that the loss covers."""
    rollout_logprobs: Sequence[float] | None = None
    """nats, one per token, by the engine; None in supervised rows."""
    advantage: float = 1.0
    """Group-relative reward (GRPO), dimensionless; for a scalar reward model, the label."""


LEARNER_ROWS = pa.schema(
    [
        ("group", pa.int32()),  # key
        ("sample", pa.int32()),  # key
        ("token_ids", TOKENS),
        ("rollout_logprobs", FLOATS),
        ("advantage", pa.float32()),
    ]
)
"""One row per `LearnerRow`, with its fields."""


@dataclass(frozen=True)
class LearnerBatch:
    """What a learner step trains on: the rows, and the prompt of each group, once."""

    prompts: pa.RecordBatch
    """At least group and prompt_token_ids of PROMPTS, for every group of `rows`."""
    rows: pa.RecordBatch
    """LEARNER_ROWS."""

    @classmethod
    def of(cls, prompts: Sequence[TokenIds], rows: Iterable[LearnerRow]) -> LearnerBatch:
        """Return a batch of `rows` whose groups are positions in `prompts`, token ids."""
        schema = pa.schema([PROMPTS.field("group"), PROMPTS.field("prompt_token_ids")])
        columns = {"group": range(len(prompts)), "prompt_token_ids": prompts}
        return cls(pa.record_batch(columns, schema=schema), batch_of(rows, LEARNER_ROWS))

    @classmethod
    def supervised(cls, examples: Sequence[SupervisedExample]) -> LearnerBatch:
        """Return a batch in which each example is a group of its own."""
        rows = (LearnerRow(group, 0, example.token_ids) for group, example in enumerate(examples))
        return cls.of([example.prompt_token_ids for example in examples], rows)

    @classmethod
    def concat(cls, batches: Sequence[LearnerBatch]) -> LearnerBatch:
        """Return the batches as one; their groups differ."""
        return cls(pa.concat_batches([one.prompts for one in batches]), pa.concat_batches([one.rows for one in batches]))

    def take(self, rows: np.ndarray) -> LearnerBatch:
        """Return the rows at these positions, with the prompts of their groups only."""
        picked = self.rows.take(pa.array(rows))
        return LearnerBatch(self.prompts.filter(pc.is_in(self.prompts["group"], picked["group"])), picked)

    @property
    def num_rows(self) -> int:
        return int(self.rows.num_rows)

    def to_pylist(self) -> list[dict[str, Any]]:
        """Return each row as a dict, with its group's prompt_token_ids."""
        prompts = dict(zip(self.prompts["group"].to_pylist(), self.prompts["prompt_token_ids"].to_pylist()))
        return [row | {"prompt_token_ids": prompts[row["group"]]} for row in self.rows.to_pylist()]


@dataclass(frozen=True)
class SupervisedExample:
    """A prompt and the completion to imitate, which ends with the end-of-turn token.

    Example: SupervisedExample(prompt_token_ids=[151644, 872], token_ids=[3838, 151645]).
    """

    prompt_token_ids: list[int]
    token_ids: list[int]


def batch_of(rows: Iterable[Any], schema: pa.Schema) -> pa.RecordBatch:
    """Return dataclass rows as a record batch whose columns are their fields of the same names."""
    rows = list(rows)
    return pa.record_batch({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)


def sample_keys(table: pa.Table | pa.RecordBatch) -> pa.Array:
    """Return (group, sample) of each row as one int64, for look-ups."""
    group, sample = (np.asarray(table[name]).astype(np.int64) for name in ("group", "sample"))
    return pa.array((group << 32) + sample)
