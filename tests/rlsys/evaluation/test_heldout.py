"""Held-out summaries, worked out by hand on a table small enough to count."""

import pyarrow as pa
import pytest

from rlsys.data.records import Record
from rlsys.documents.runs import Family
from rlsys.evaluation import heldout


def table(rows):
    """rows: (prompt id, family, correct, parse failure)."""
    return pa.table(
        {
            "prompt_id": [row[0] for row in rows],
            "family": [row[1] for row in rows],
            "correct": [row[2] for row in rows],
            "parse_failure": pa.array([row[3] for row in rows], pa.string()),
            "reward": [1.0 if row[2] else -1.0 for row in rows],
            "token_count": [10] * len(rows),
        }
    )


ROWS = [("a", "sum", True, None), ("b", "sum", False, None), ("c", "case", False, "no_box"), ("d", "case", True, None)]


def test_counts_by_hand():
    summary = heldout.summarise(table(ROWS))
    assert summary.n == 4
    assert summary.reward == pytest.approx(0.0)
    assert summary.accuracy == pytest.approx(0.5)
    assert summary.accuracy_parsed == pytest.approx(2 / 3)
    assert summary.parse_failures == {"no_box": 1}
    assert summary.families["case"] == Family(n=2, accuracy=0.5, parsed=0.5)
    assert summary.reward_ci95 is None and "(too few rows)" in heldout.describe("rl", summary), "four rows say next to nothing"
    low, high = heldout.summarise(table([(str(i), *row[1:]) for i, row in enumerate(ROWS * 3)])).reward_ci95
    assert -1 <= low < 0 < high <= 1


def test_several_samples_of_one_row_do_not_narrow_the_interval_as_new_rows_would():
    few = heldout.summarise(table([(str(i), "f", i % 2 == 0, None) for i in range(40)]))
    copies = heldout.summarise(table([(str(i), "f", i % 2 == 0, None) for i in range(40) for _ in range(10)]))
    assert copies.n == 40 and copies.samples == 400
    width = lambda s: s.accuracy_ci95[1] - s.accuracy_ci95[0]  # noqa: E731
    assert width(copies) == pytest.approx(width(few), rel=0.15)


def test_what_parsed_counts_by_sample_and_its_interval_by_row():
    """Each of 30 rows is right always or never, in eight samples of which all, or two, parse: no more than 30 rows say."""
    rows = [(str(i), "f", i % 3 > 0, None if i % 2 or k < 2 else "no_box") for i in range(30) for k in range(8)]
    summary = heldout.summarise(table(rows))
    assert summary.accuracy_parsed == pytest.approx(sum(r[2] for r in rows if not r[3]) / sum(not r[3] for r in rows))
    low, high = summary.accuracy_parsed_ci95
    single = heldout.summarise(table(rows[::8])).accuracy_ci95
    assert high - low > single[1] - single[0]


def test_paired_difference_and_parsed_accuracy():
    before = table(ROWS)
    after = table([("a", "sum", True, None), ("b", "sum", True, None), ("c", "case", True, None), ("d", "case", True, None)])
    result = heldout.paired(after, before)
    assert result.mean == pytest.approx(1.0)  # rewards: two rows rise by 2, two stay
    assert result.accuracy_parsed.n == 3
    assert result.accuracy_parsed.mean == pytest.approx(1 / 3)


def subsets_table(rewards, **columns):
    """One sample each of rows a/1, b/1 and b/2."""
    rows = [("1", "a", rewards[0] > 0, None), ("1", "b", rewards[1] > 0, None), ("2", "b", rewards[2] > 0, None)]
    found = table(rows)
    for name, values in columns.items():
        found = found.append_column(name, pa.array(values))
    return found


@pytest.mark.parametrize("names", [("source",), ("group",), ("source", "group")])
def test_rows_of_one_id_in_two_subsets_are_two_rows_in_old_tables_too(names):
    now = {"source": ["a", "b", "b"], "group": [0, 1, 2]}
    now = {name: now[name] for name in names}
    before = subsets_table([1, -1, -1], **now)
    after = subsets_table([-1, -1, 1], **now | {"group": [0, 1, 2]})
    assert heldout.summarise(before).n == 3
    pair = heldout.paired(after, before)
    assert pair.mean == pytest.approx(0.0) and pair.accuracy_parsed.n == 3
    # One falls, one rises: a mean over merged rows would be the same, its rows are not.
    assert sorted(heldout.per_row_reward(after).values()) == [-1.0, -1.0, 1.0]


def test_families_of_one_name_in_two_sources_are_not_one():
    found = heldout.summarise(subsets_table([1, -1, 1], source=["a", "b", "b"]).set_column(1, "family", pa.array(["math", "math", "code"])))
    assert {name: row.accuracy for name, row in found.families.items()} == {"math (a)": 1, "math (b)": 0, "code": 1}


def test_rows_are_paired_by_source_whatever_their_order():
    before = subsets_table([1, -1, -1], source=["a", "b", "b"])
    assert heldout.paired(before.take([2, 1, 0]), before).changed == 0


def record(best, *responses):
    rewards = tuple(1.0 if i == best else 0.0 for i in range(len(responses)))
    return Record("x", "s", ({"role": "user", "content": "q"},), responses, rewards)


def test_baselines_by_hand():
    records = [record(0, "long one", "x"), record(1, "long one", "x"), record(1, "aa", "bb"), record(0, "only")]
    result = heldout.baselines(records)
    assert result.chance == pytest.approx(0.5)
    assert result.pairs_n == 3
    assert result.first == pytest.approx(1 / 3)
    assert result.longer == pytest.approx((1 + 0 + 0.5) / 3)
