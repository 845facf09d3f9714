"""Prompt items: overlong rows are skipped, never truncated; order and seeds derive from keys; the teacher's errors are dropped."""

import json

import pytest

from rlsys.config.sources import Data
from rlsys.data.batches import Feed, cold_start_examples, heldout_rows, prompt_completion_examples
from rlsys.data.chain import PromptItem, prompt_batch
from rlsys.data.datasets import TaskRows, open_rows
from rlsys.data.mixtures import single_source
from rlsys.data.readers import DataError
from rlsys.data.records import Record, TeacherJudgement
from rlsys.models.loading import build_tiny
from rlsys.prompts.chat import Chat
from rlsys.prompts.rendering import Prompter
from rlsys.rewards.rules import judge


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(build_tiny(tmp_path_factory.mktemp("model") / "tiny-random"))


def feed(tokenizer, limit=2000, seed=1):
    return Feed(single_source(TaskRows("tasks:train", Data(), seed), seed), Prompter(tokenizer, "compact"), limit)


def test_sampled_items_depend_on_seed_and_position_only(tokenizer):
    at_once = feed(tokenizer).take(12, 1)
    piecewise = feed(tokenizer)
    parts = piecewise.take(5, 1) + piecewise.take(7, 1)
    assert at_once == parts
    assert feed(tokenizer, seed=2).take(12, 2) != at_once


def test_long_rows_are_skipped_and_counted_never_truncated(tokenizer):
    everything = feed(tokenizer)
    lengths = sorted(len(each.token_ids) for each in everything.take(40, 1))
    limit = lengths[20]
    some = feed(tokenizer, limit)
    taken = some.take(15, 1)
    assert max(len(each.token_ids) for each in taken) <= limit
    account = some.source.account
    assert account.aside["too long"] and account.rows == account.settled == 15 + account.aside["too long"]
    prompter = some.prompter
    assert all(each.token_ids == prompter.tokens(each.record, each.order) for each in taken)


def test_error_names_the_key_if_every_row_is_too_long(tokenizer, tmp_path):
    from rlsys.data.tasks import generate

    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(record.to_json()) + "\n" for record in generate("train", 5, 0)))
    with pytest.raises(DataError, match=r"few: no row is left to use \(\d+ too long\). Raise prompt.max_tokens"):
        Feed(single_source(open_rows(path, Data(), 0), 0, "few"), Prompter(tokenizer, "compact"), 3).take(2, 0)


def test_skipped_rows_are_neither_sampled_nor_held_out(tokenizer, tmp_path):
    from rlsys.data.tasks import generate

    rows = [record.to_json() for record in generate("train", 60, 0, responses=(2,))]
    for row in rows[::3]:
        row["rewards"] = [1.0, 1.0]
    path = tmp_path / "ties.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    good = [row["id"] for i, row in enumerate(rows) if i % 3]
    prompter = Prompter(tokenizer, "compact")
    taken = Feed(single_source(open_rows(path, Data(), 0), 0), prompter, 10_000).take(40, 0)
    assert sorted(each.record.id for each in taken) == sorted(good)
    for limit in (7, 100):
        kept = heldout_rows(single_source(open_rows(path, Data(), 0), 0), prompter, limit, 10_000)
        assert [each.record.id for each in kept] == good[:limit]


def test_heldout_rows_are_the_first_within_the_limit(tokenizer):
    rows = TaskRows("tasks:heldout", Data(), 7)
    source = single_source(rows, 0)
    kept = heldout_rows(source, Prompter(tokenizer, "compact"), 10, 10_000)
    assert [each.record.id for each in kept] == [rows[i].id for i in range(10)] and str(source.account) == "10 rows: 10 used"


def test_heldout_length_is_measured_in_presentation_order(tokenizer):
    rows, prompter = TaskRows("tasks:heldout", Data(), 7), Prompter(tokenizer, "compact")
    limit = 130
    source = single_source(rows, 0)
    kept = heldout_rows(source, prompter, 40, limit)
    assert source.account.aside["too long"] and source.account.rows == source.account.settled
    assert all(len(prompter.tokens(each.record, each.order)) == len(each.token_ids) <= limit for each in kept)


def test_heldout_tasks_are_the_same_for_every_seed():
    assert TaskRows("tasks:heldout", Data(), 1)[3] == TaskRows("tasks:heldout", Data(), 2)[3]
    assert TaskRows("tasks:train", Data(), 1)[3] != TaskRows("tasks:train", Data(), 2)[3]


def test_sample_seeds_are_distinct_and_independent_of_the_batch(tokenizer):
    source = feed(tokenizer)
    drawn = source.take(4, 1)
    together = prompt_batch([item.seeded(3, "train", 1, 9) for item in drawn])["seeds"].to_pylist()
    alone = prompt_batch([drawn[2].seeded(3, "train", 1, 9)], first_group=2)["seeds"].to_pylist()
    assert together[2] == alone[0]
    assert len({seed for row in together for seed in row}) == 12


def test_incorrect_teacher_trajectories_are_dropped(tokenizer):
    good = Record("a", "t", ({"role": "user", "content": "q"},), ("x", "y"), (1.0, 0.0), worked=TeacherJudgement("c", ("n", "m"), (9, 2)))
    wrong = Record("b", "t", ({"role": "user", "content": "q"},), ("x", "y"), (1.0, 0.0), worked=TeacherJudgement("c", ("n", "m"), (2, 9)))
    rows, counts = cold_start_examples(
        [PromptItem(good, [1, 0], "", [1, 2]), PromptItem(wrong, [0, 1], "", [1, 2])], Prompter(tokenizer, "compact")
    )
    assert counts == {"kept": 1, "dropped": 1}
    text = tokenizer.decode(rows[0].token_ids, skip_special_tokens=True)
    assert judge(text, good.rewards, [1, 0]).correct
    assert rows[0].token_ids[-1] == tokenizer.eos_token_id


def test_record_without_teacher_judgement_is_an_error(tokenizer):
    bare = Record("a", "llmbar", ({"role": "user", "content": "q"},), ("x", "y"), (1.0, 0.0))
    with pytest.raises(ValueError, match="sft.rows=0"):
        cold_start_examples([PromptItem(bare, [0, 1], "", [1, 2])], Prompter(tokenizer, "compact"))


def test_prompt_completion_file_names_its_bad_row(tokenizer, tmp_path):
    path = tmp_path / "sft.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n{"prompt": "p"}\nnot JSON\n')
    with pytest.raises(DataError, match=r"sft.jsonl, row 2"):
        prompt_completion_examples(path, 10, Chat(tokenizer))
    # Rows after the last one needed are not read.
    assert len(prompt_completion_examples(path, 1, Chat(tokenizer))) == 1
    path.write_text('{"prompt": "p", "completion": "c"}\nnot JSON\n')
    assert len(prompt_completion_examples(path, 1, Chat(tokenizer))) == 1
