"""The tables of the chain: what goes in comes out, by key; each prompt once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rlsys.data.chain import (
    LEARNER_ROWS,
    PROMPTS,
    SAMPLES,
    LearnerBatch,
    LearnerRow,
    PromptItem,
    Sample,
    SupervisedExample,
    batch_of,
    prompt_batch,
    sample_keys,
)
from rlsys.data.records import Record

RECORD = Record("r1", "llmbar", ({"role": "user", "content": "What is the capital of Norway?"},), ("Oslo", "Bergen"), (1.0, 0.0))
ITEM = PromptItem(RECORD, [1, 0], "... Response 1: Bergen ... Response 2: Oslo ...", [151644, 872])


def test_the_example_in_the_docstrings() -> None:
    (row,) = prompt_batch([ITEM.seeded(2, "train", 0)], first_group=5).to_pylist()
    assert (row["group"], row["prompt_id"], row["source"], row["family"], row["order"]) == (5, "r1", "llmbar", None, [1, 0])
    assert (row["rewards"], row["prompt_token_ids"], len(set(row["seeds"]))) == ([1.0, 0.0], [151644, 872], 2)
    sample = Sample(0, 1, [3838, 151645], [-0.5, -0.25], "... \\boxed{2, 9}", "stop", 3)
    (found,) = batch_of([sample], SAMPLES).to_pylist()
    assert Sample(**found) == sample and not sample.truncated
    assert batch_of([], SAMPLES).schema == SAMPLES and prompt_batch([]).schema == PROMPTS


def test_seeds_depend_on_the_key_and_the_record_alone() -> None:
    assert ITEM.seeded(3, "train", 0).seeds[:2] == ITEM.seeded(2, "train", 0).seeds
    other = PromptItem(Record("r2", "s", RECORD.context, RECORD.responses, RECORD.rewards), [0, 1], "", [])
    assert not {*ITEM.seeded(3, "train", 0).seeds} & {*ITEM.seeded(3, "train", 1).seeds, *other.seeded(3, "train", 0).seeds}


tokens = st.lists(st.integers(0, 99), min_size=1, max_size=4)


@given(st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=3)), min_size=1, max_size=5), st.data())
def test_a_part_of_a_batch_has_its_own_rows_and_their_prompts_once(
    groups: list[tuple[list[int], list[list[int]]]], data: st.DataObject
) -> None:
    rows = [LearnerRow(number, place, own) for number, (_, texts) in enumerate(groups) for place, own in enumerate(texts)]
    whole = LearnerBatch.of([prompt for prompt, _ in groups], rows)
    picked = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1)))
    part = whole.take(np.array(picked))
    assert part.prompts["group"].to_pylist() == sorted({rows[i].group for i in picked})
    expected = [(rows[i].group, rows[i].sample, groups[rows[i].group][0], rows[i].token_ids) for i in picked]
    columns = ("group", "sample", "prompt_token_ids", "token_ids")
    assert [tuple(row[name] for name in columns) for row in part.to_pylist()] == expected
    assert [row["rollout_logprobs"] for row in part.to_pylist()] == [None] * len(picked)


def test_supervised_examples_are_groups_of_their_own_and_batches_of_other_groups_join() -> None:
    examples = [SupervisedExample([1, 2], [3]), SupervisedExample([1, 2], [4, 5])]
    batch = LearnerBatch.supervised(examples)
    assert batch.rows.schema == LEARNER_ROWS and batch.num_rows == 2
    assert [(row["group"], row["prompt_token_ids"], row["token_ids"]) for row in batch.to_pylist()] == [
        (0, [1, 2], [3]),
        (1, [1, 2], [4, 5]),
    ]
    both = LearnerBatch.concat([batch.take(np.array([1])), batch.take(np.array([0]))])
    assert both.to_pylist() == batch.to_pylist()[::-1] and both.prompts["group"].to_pylist() == [1, 0]


def test_keys_are_distinct_for_distinct_samples() -> None:
    table = pa.table({"group": pa.array([0, 0, 1, 2**31 - 1], pa.int32()), "sample": pa.array([0, 1, 0, 2**31 - 1], pa.int32())})
    assert sample_keys(table).to_pylist() == [0, 1, 2**32, (2**31 - 1 << 32) + 2**31 - 1]
