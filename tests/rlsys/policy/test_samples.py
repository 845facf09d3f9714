"""A policy's samples as preference rows: which samples meet, what labels them, and where the prompts come from."""

import json
from collections import Counter

import pyarrow as pa
import pytest

from rlsys.config.files import load_config, save_config
from rlsys.data.readers import DataError, read
from rlsys.data.trajectories import REWARD_COLUMNS, TRAJECTORIES
from rlsys.data.writers import write_jsonl
from rlsys.io.run_folder import write_parquet
from rlsys.policy.samples import preference_rows
from rlsys.rewards.checks import passes

SCHEMA = pa.schema([*TRAJECTORIES, *REWARD_COLUMNS])
RIGHT, WRONG = ("one two", "three four"), ("one", "one two three", "a b c d", "e f g h i")


@pytest.fixture
def run(tmp_path):
    """A run folder with three prompts, each for exactly two words, and a function that writes the samples of a step."""
    prompts = tmp_path / "prompts.jsonl"
    checks = [{"rule": "word_count", "count": 2}]
    rows = [{"id": f"p{i}", "prompt": f"Two words about {i}.", "checks": checks, "family": ("even", "odd")[i % 2]} for i in range(3)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "policy"
    (folder / "trajectories").mkdir(parents=True)
    config = load_config(None, [f"data.train={prompts}", f"data.heldout={prompts}", "data.format=prompts", "policy.reward=gold"])
    save_config(config, folder / "config.yaml")

    def write(step, *groups, gold=lambda text: len(text.split()) == 2, source="prompts"):
        rows = [
            {"step": step, "group": group, "sample": i, "prompt_id": f"p{group}", "source": source, "text": text, "gold": gold(text)}
            for group, texts in enumerate(groups)
            for i, text in enumerate(texts)
        ]
        write_parquet(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "trajectories" / f"step_{step:06d}.parquet")
        return folder

    return write


def test_one_sample_that_passed_meets_samples_that_failed(run):
    run(1, (*RIGHT, *WRONG), RIGHT, WRONG)
    folder = run(2, (RIGHT[0], WRONG[0]))
    rows = list(preference_rows(folder, responses=(3,)))
    assert [row.id for row in rows] == ["policy/p0/1/0", "policy/p0/1/1", "policy/p0/2/0"], (
        "groups that are all right, or all wrong, compare nothing"
    )
    for row in rows:
        verdicts = [passes(row.checks, text) for text in row.responses]
        assert row.rewards == tuple(map(float, verdicts)) and sum(verdicts) == 1
        assert row.context == ({"role": "user", "content": "Two words about 0."},)
        assert [score > 5 for score in row.worked.scores] == verdicts
    assert [row.n for row in rows] == [3, 3, 2], "as many as there are"
    assert {row.responses[row.best] for row in rows[:2]} == set(RIGHT)


def test_places_and_sizes_vary_and_the_seed_decides(run):
    folder = run(1, *[(*RIGHT, *WRONG)] * 3)
    for step in range(2, 40):
        run(step, *[(*RIGHT, *WRONG)] * 3)
    rows = list(preference_rows(folder))
    places = Counter((row.n, row.best) for row in rows)
    assert places.keys() == {(n, place) for n in (2, 3, 4) for place in range(n)} and min(places.values()) > 8
    assert rows == list(preference_rows(folder)) != list(preference_rows(folder, seed=1))


def test_rows_of_a_group_take_turns_and_never_repeat(run):
    folder = run(1, (*RIGHT, *WRONG))
    rows = list(preference_rows(folder, responses=(2,), per_group=50))
    pairs = {frozenset(row.responses) for row in rows}
    assert len(pairs) == len(rows) <= len(RIGHT) * len(WRONG) and {row.responses[row.best] for row in rows[:2]} == set(RIGHT)


def test_a_text_that_passed_and_was_cut_off_has_no_verdict(run):
    verdicts = iter([True, False, False, True])
    folder = run(1, ("one two", "one two", "one", "three four"), gold=lambda text: next(verdicts))
    (row,) = preference_rows(folder, responses=(4,))
    assert sorted(row.responses) == ["one", "three four"]


def test_the_rows_are_read_back_by_their_reader(run, tmp_path):
    rows = list(preference_rows(run(1, (*RIGHT, *WRONG))))
    write_jsonl((row.to_json() for row in rows), tmp_path / "rows.jsonl")
    found = list(read(tmp_path / "rows.jsonl", "rlsys", strict=True))
    assert found == rows and [row.worked for row in found] == [row.worked for row in rows]


def test_families_are_chosen_among_those_of_the_run(run):
    folder = run(1, *[(*RIGHT, *WRONG)] * 3)
    chosen = list(preference_rows(folder, families=["even"]))
    assert {row.family for row in chosen} == {"even"} and 0 < len(chosen) < len(list(preference_rows(folder)))
    with pytest.raises(DataError, match="no prompt of the family evn; expected some of even, odd"):
        list(preference_rows(folder, families=["even", "evn"]))


def test_unusable_runs_say_why(run, tmp_path):
    with pytest.raises(DataError, match="rlsys policy"):
        list(preference_rows(tmp_path))
    with pytest.raises(DataError, match="no checks"):
        list(preference_rows(run(1, RIGHT, gold=lambda text: None)))
    with pytest.raises(DataError, match=r"prompt p0 \(other\)"):
        list(preference_rows(run(1, (*RIGHT, *WRONG), source="other")))
