"""Groups from trajectory tables and preference rows: what is kept or skipped, and that no row is on both sides of the split."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rlsys.config.files import load_config
from rlsys.config.schema import Config, ConfigError
from rlsys.config.sources import Data
from rlsys.data.datasets import open_rows
from rlsys.data.mixtures import Mixture, MixturePart, single_source
from rlsys.data.readers import DataError
from rlsys.data.records import Record
from rlsys.data.sampler import Sampler
from rlsys.data.scalar_data import (
    batches,
    describe,
    first_texts,
    load_scalar_data,
    preference_group,
    read_critiques,
    read_preferences,
    split,
    trajectory_files,
    with_both_labels,
)
from rlsys.data.trajectories import TRAJECTORIES
from rlsys.models.scalar import Group
from rlsys.prompts.rendering import Prompter

REAL_DATA = Path(os.environ.get("RLSYS_REAL_DATA", "../shared/data"))


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def sample(prompt_id: str, prompt: str, text: str, correct: bool, failure: str | None = None, **more: Any) -> dict[str, Any]:
    return {"prompt_id": prompt_id, "prompt": prompt, "text": text, "correct": correct, "parse_failure": failure, **more}


def write(path: Path, rows: list[dict[str, Any]], *more: pa.Field) -> Path:
    """A complete trajectory table as a run writes it, with nulls for the columns missing in `rows`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([*TRAJECTORIES, *more])), path)
    return path


SAMPLES = [
    sample("a", "judge one", "it is right", True),
    sample("b", "judge two", "it is wrong", False),
    sample("a", "judge one", "no box", False, "no_box"),
    sample("a", "judge one", "it is not right", False),
    sample("a", "one judge", "shown the other way round", True),
    sample("b", "judge two", "far too long " * 50, True),
]


def test_critiques_are_grouped_by_prompt(tmp_path, tokenizer):
    groups, counts = read_critiques([write(tmp_path / "step.parquet", SAMPLES)], tokenizer, max_tokens=60)
    told = [(g.id, tokenizer.decode(g.prompt), [tokenizer.decode(t) for t in g.texts], g.labels) for g in groups]
    assert told == [
        ("a", "judge one", ["it is right", "it is not right"], (1.0, 0.0)),
        ("b", "judge two", ["it is wrong"], (0.0,)),
        ("a", "one judge", ["shown the other way round"], (1.0,)),
    ]
    assert counts == {"samples": 6, "hinted": 0, "parse_failures": 1, "too_long": 1}
    assert describe(groups).to_json() == {
        "rows": 2,
        "groups": 3,
        "texts": 4,
        "positive": 0.5,
        "tokens": sum(len(g.prompt) + len(text) for g in groups for text in g.texts),
    }


def test_parse_failures_are_wrong_critiques_if_enabled(tmp_path, tokenizer):
    groups, counts = read_critiques([write(tmp_path / "step.parquet", SAMPLES)], tokenizer, 60, parse_failures=True)
    assert groups[0].labels == (1.0, 0.0, 0.0) and counts["parse_failures"] == 0


def test_hinted_samples_are_skipped_and_files_are_concatenated(tmp_path, tokenizer):
    hinted = [sample("c", "the best is 2. judge", "told so", True, hinted=True), sample("c", "judge three", "seen so", False, hinted=False)]
    files = [write(tmp_path / "rft.parquet", hinted, pa.field("hinted", pa.bool_())), write(tmp_path / "step.parquet", SAMPLES[:1])]
    groups, counts = read_critiques(files, tokenizer, 100)
    assert [(g.id, g.labels) for g in groups] == [("c", (0.0,)), ("a", (1.0,))]
    assert counts == {"samples": 3, "hinted": 1, "parse_failures": 0, "too_long": 0}


def test_globs_skip_heldout_tables_and_paths_do_not(tmp_path):
    names = ["heldout_rl.parquet", "step_000001.parquet", "step_000002.parquet"]
    for name in names:
        write(tmp_path / name, SAMPLES)
    found = trajectory_files([f"{tmp_path}/*.parquet", f"{tmp_path}/step_000002.parquet"])
    assert [path.name for path in found] == names[1:]
    assert [path.name for path in trajectory_files([f"{tmp_path}/{names[0]}"])] == names[:1]


@pytest.mark.parametrize(("patterns", "message"), [([], "no trajectories given"), (["nowhere/*.parquet"], "nowhere/.*: no such file")])
def test_missing_files(patterns, message):
    with pytest.raises(DataError, match=message):
        trajectory_files(patterns)


def test_unusable_tables_report_where_and_what(tmp_path, tokenizer):
    def message(path: Path) -> str:
        with pytest.raises(DataError) as error:
            read_critiques([path], tokenizer, 60)
        return str(error.value)

    text = tmp_path / "text.parquet"
    text.write_text("not Parquet")
    assert "text.parquet: cannot be read as Parquet" in message(text)
    without = tmp_path / "without.parquet"
    pq.write_table(pa.table({"prompt": ["p"], "text": ["t"], "correct": [True]}), without)
    assert "without.parquet: no column prompt_id, parse_failure: expected a trajectory table" in message(without)
    rows = [sample("a", "p", "t", True), sample("b", "p", "t", True) | {"correct": None}]
    assert "null.parquet, row 2: correct: expected bool, found null" in message(write(tmp_path / "null.parquet", rows))
    typed = tmp_path / "typed.parquet"
    pq.write_table(pa.Table.from_pylist([sample("a", "p", "t", 1)]), typed)
    assert "typed.parquet: correct: expected bool, found int64" in message(typed)
    failed = write(tmp_path / "failed.parquet", SAMPLES[2:3])
    assert "no sample to train on (samples 1, hinted 0, parse_failures 1, too_long 0)" in message(failed)


def test_critiques_of_one_label_are_an_error(tmp_path, tokenizer):
    path = write(tmp_path / "step.parquet", [sample(str(i), f"judge {i}", "fine", True) for i in range(40)])
    with pytest.raises(DataError, match="critiques are correct; expected both correct and wrong"):
        load_scalar_data(load_config(None, [f"meta_rm.data=['{path}']"]), tokenizer)


def test_rows_of_one_label_over_all_orders_can_be_dropped(tmp_path, tokenizer):
    rows = [
        *(sample("mixed", f"order {i}", text, right) for i, text, right in ((1, "yes", True), (2, "no", False), (2, "too", False))),
        *(sample("easy", f"other {i}", "yes", True) for i in (1, 2)),
        *(sample("hard", "third", text, False) for text in ("no", "not")),
    ]
    groups, _ = read_critiques([write(tmp_path / "step.parquet", rows)], tokenizer, max_tokens=60)
    kept = with_both_labels(groups)
    assert [(group.id, group.labels) for group in kept] == [("mixed", (1.0,)), ("mixed", (0.0, 0.0))]
    with pytest.raises(DataError, match="none of 2 rows has both correct and wrong critiques"):
        with_both_labels([group for group in groups if group.id != "mixed"])


def test_rows_of_one_id_in_two_subsets_are_two_rows(tmp_path, tokenizer):
    rows = [sample("1", "first", "yes", True, source="safety"), sample("1", "second", "no", False, source="code")]
    groups, _ = read_critiques([write(tmp_path / "step.parquet", rows)], tokenizer, max_tokens=60)
    assert describe(groups).rows == 2
    with pytest.raises(DataError, match="none of 2 rows"):
        with_both_labels(groups)


@pytest.mark.parametrize("more", [[], ["meta_rm.mixed_rows=true"], ["meta_rm.rows=20"], ["meta_rm.parse_failures=true"]])
def test_sample_counts_add_up(tmp_path, tokenizer, more):
    rows = [
        sample(f"r{i}", f"prompt {i}", "too long " * 60 if k == 4 else "fine", (i + k) % 3 > 0 or i % 4 == 0, "no_box" if k == 3 else None)
        for i in range(40)
        for k in range(5)
    ]
    path = write(tmp_path / "step.parquet", [row | {"hinted": i % 9 == 0} for i, row in enumerate(rows)], pa.field("hinted", pa.bool_()))
    data = load_scalar_data(load_config(None, [f"meta_rm.data=[{path}]", "meta_rm.max_tokens=60", "meta_rm.heldout=0.3", *more]), tokenizer)
    account = data.account
    assert account["samples"] == 200 == sum(count for name, count in account.items() if name != "samples")
    assert account["used"] == describe(data.train).texts > 0 and account["heldout"] == describe(data.heldout).texts > 0
    assert (
        account["too_long"] > 0
        and (account["one_label"] > 0) == ("mixed" in str(more))
        and (account["not_needed"] > 0) == ("rows=2" in str(more))
    )


def groups_of(ids: list[str], texts: list[int]) -> list[Group]:
    prompt = np.array([1], np.int32)
    return [Group(i, prompt, (prompt,) * n, (1.0,) * n) for i, n in zip(ids, texts)]


@given(st.lists(st.text(max_size=3), min_size=30, max_size=120), st.floats(0.2, 0.8))
@settings(deadline=None)
def test_no_row_is_on_both_sides_and_none_changes_sides(ids, share):
    groups = groups_of(ids, [1] * len(ids))
    try:
        train, heldout = split(groups, share)
    except DataError:
        return
    assert not {g.id for g in train} & {g.id for g in heldout}
    assert len(train) + len(heldout) == len(groups)
    among_more = split(groups + groups_of([f"another {i}" for i in range(50)], [1] * 50), share)[1]
    assert {g.id for g in heldout} == {g.id for g in among_more if not g.id.startswith("another")}


def test_about_the_share_is_held_out_and_an_empty_side_is_an_error():
    _, heldout = split(groups_of([f"row-{i}" for i in range(5000)], [1] * 5000), 0.1)
    assert 400 < len(heldout) < 600
    with pytest.raises(DataError, match=r"meta_rm.heldout=0.5: no row is left .* \(1 in all\)"):
        split(groups_of(["a", "a"], [1, 1]), 0.5)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 30), st.integers(1, 3))
@settings(deadline=None)
def test_every_epoch_covers_every_group_once(texts, size, epochs):
    groups = groups_of([str(i) for i in range(len(texts))], texts)
    steps = batches(groups, size, epochs, seed=0)
    assert steps == batches(groups, size, epochs, seed=0) and all(steps)
    flat = [i for step in steps for i in step]
    assert len(flat) == epochs * len(texts)
    for epoch in range(epochs):
        assert sorted(flat[epoch * len(texts) : (epoch + 1) * len(texts)]) == list(range(len(texts)))
    per_step = [sum(texts[i] for i in step) for step in steps]
    count = max(1, round(sum(texts) / size))
    assert len(steps) <= epochs * count
    # a step starts at a multiple of its share of the epoch, and exceeds it by less than a group
    assert max(per_step) < sum(texts) / count + max(texts)


def test_epochs_and_seeds_differ_in_order():
    groups = groups_of([str(i) for i in range(50)], [1] * 50)
    first, second = batches(groups, 50, 2, seed=0)
    assert first != second and batches(groups, 50, 1, seed=1)[0] not in (first, second)


def test_a_limit_takes_whole_groups_until_it_is_reached():
    groups = groups_of([str(i) for i in range(50)], [3] * 50)
    taken = first_texts(groups, 10, seed=0)
    assert len(taken) == 4 and len({g.id for g in taken}) == 4
    assert first_texts(groups, 10, seed=0) == taken != first_texts(groups, 10, seed=1)
    assert len(first_texts(groups, 1000, seed=0)) == len(first_texts(groups, None, seed=0)) == 50


def test_preference_row_is_rendered_as_chat_and_defused(tokenizer):
    context = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "which<|im_end|>?"},
    )
    record = Record("r", "s", context, ("this", "that<|im_end|>", "none"), (0.0, 1.0, 0.5))
    group = preference_group(record, Prompter(tokenizer))
    assert tokenizer.decode(group.prompt) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nwhich<·|im_end|>?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert [tokenizer.decode(text) for text in group.texts] == ["this", "that<·|im_end|>", "none"]
    assert group.labels == (0.0, 1.0, 0.0)


def test_generated_tasks_as_preferences(tokenizer):
    rows = open_rows(Path("tasks:train"), Data(families=("include_word",)), seed=0)
    groups, counts = read_preferences(single_source(rows, 0), Prompter(tokenizer), 40, 2048, shuffle=True)
    assert len(groups) == 40 and {len(g.texts) for g in groups} == {2, 4} and all(sum(g.labels) == 1 for g in groups)
    assert counts["single"] > 0 and counts["used"] == 40 and counts["rows"] == sum(counts.values()) - counts["rows"]
    fewer, counts = read_preferences(single_source(rows, 0), Prompter(tokenizer), 40, 2048, groups[:3], shuffle=True)
    shown = [g.prompt.tolist() for g in fewer]
    assert counts["heldout"] >= 3 and not any(g.prompt.tolist() in shown for g in groups[:3])
    again, _ = read_preferences(single_source(rows, 0), Prompter(tokenizer), 40, 2048, shuffle=True)
    assert [g.id for g in again] == [g.id for g in groups]
    with pytest.raises(DataError, match="no preference row to train on .*single.*meta_rm.max_tokens is 2048"):
        single = open_rows(Path("tasks:train"), Data(families=("include_word",), responses=(1,)), seed=0)
        read_preferences(Mixture([MixturePart("single", single, Sampler(20, 0))]), Prompter(tokenizer), 5, 2048, shuffle=True)


def test_preferences_are_read_for_one_epoch_only(tokenizer, tmp_path):
    """Four rows, one with a single response and one too long: two are left, and no second epoch is read."""
    path = tmp_path / "rows.jsonl"
    texts = (["a", "b"], ["a"], ["a", "b" * 500], ["c", "d", "e"])
    context = [{"role": "user", "content": "?"}]
    rows = [
        {"id": str(i), "source": "s", "context": context, "responses": own, "rewards": [1.0, *[0.0] * (len(own) - 1)]}
        for i, own in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    nothing = {"heldout": 0, "refused": 0, "no_unique_best": 0, "malformed": 0, "not_needed": 0}
    for shuffle, seed in ((False, 0), (True, 0), (True, 1)):
        groups, counts = read_preferences(single_source(open_rows(path, Data(), 0), seed), Prompter(tokenizer), 10, 100, shuffle=shuffle)
        assert sorted(g.id for g in groups) == ["0", "3"]
        assert counts == {"rows": 4, "used": 2, "single": 1, "too_long": 1, **nothing}


def test_generated_tasks_need_a_number_of_rows(tokenizer):
    with pytest.raises(ConfigError, match="set the number of rows to train on, for example meta_rm.rows=2000"):
        load_scalar_data(Config.model_validate({"meta_rm": {"objective": "bt"}}), tokenizer)


@pytest.mark.parametrize(("name", "format"), [("gsm8k_pairs_a", "trl_preference"), ("hh_harmless_a", "hh_rlhf")])
def test_real_preferences(tokenizer, name, format):
    path = REAL_DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"no real preference data: {path} is absent; RLSYS_REAL_DATA names the folder")
    settings_ = [f"data.train={path}", f"data.heldout={path}", f"data.format={format}", "data.heldout_rows=50", "meta_rm.objective=bt"]
    data = load_scalar_data(load_config(None, [*settings_, "meta_rm.max_tokens=4096", "meta_rm.rows=100"]), tokenizer)
    assert (len(data.train), len(data.heldout)) == (100, 50)
    assert all(len(g.texts) == 2 and sum(g.labels) == 1 for g in data.train)
    everything = load_scalar_data(load_config(None, settings_), tokenizer)
    account = everything.account
    left = account["rows"] - sum(account[name] for name in ("too_long", "heldout", "no_unique_best", "malformed"))
    assert account["heldout"] >= 50 and len(everything.train) == account["used"] == left > 100
    assert not {g.id for g in everything.train} & {g.id for g in everything.heldout}
