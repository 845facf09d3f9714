"""Mixtures of sources: exact shares, every row counted, identical after a restart; and data.exclude."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from rlsys.config.sources import Data
from rlsys.data.accounts import RowCounts
from rlsys.data.batches import heldout_rows
from rlsys.data.exclusion import read_exclusion
from rlsys.data.mixtures import Mixture, open_mixture, single_source
from rlsys.data.readers import DataError

ROW = {"source": "s", "context": [{"role": "user", "content": "Q?"}], "responses": ["one", "two"], "rewards": [1.0, 0.0]}
TIE, BAD = {"rewards": [1.0, 1.0]}, {"responses": "none"}


def write(path: Path, rows: list[dict], **more) -> Path:
    if path.exists():
        return path
    path.write_text("".join(json.dumps(ROW | {"id": str(i)} | row | more) + "\n" for i, row in enumerate(rows)))
    return path


def files(folder: Path) -> list[dict]:
    """Three sources with the same ids; in the first one every third row is a tie, and one is malformed."""
    first = [TIE if i % 3 == 0 else {} for i in range(30)]
    first[4] = BAD
    return [
        {"path": write(folder / "a.jsonl", first), "weight": 3},
        {"path": write(folder / "b.jsonl", [{}] * 7), "weight": 2},
        {"path": write(folder / "c.jsonl", [{}] * 11), "weight": 0.5, "name": "third"},
    ]


def mixture(folder: Path, seed: int = 0, which: str = "train") -> Mixture:
    sources = files(folder)
    if which == "heldout":
        sources = [{"path": source["path"]} for source in sources]
    return open_mixture(Data.model_validate({which: sources}), which, seed)


def names(records) -> list[str]:
    return [record.source.partition("/")[0] for record in records]


def test_shares_are_exact_with_any_number_of_skipped_rows(tmp_path):
    source = mixture(tmp_path)
    drawn = names(source.take(1100))
    weights = {"a": Fraction(6, 11), "b": Fraction(4, 11), "third": Fraction(1, 11)}
    for count in range(len(drawn) + 1):
        found = Counter(drawn[:count])
        assert all(abs(found[name] - share * count) <= 1 for name, share in weights.items())
        if count % 11 == 0:
            assert all(found[name] == share * count for name, share in weights.items())
    for part in source.parts:
        account = part.account
        assert account.rows == account.settled == part.sampler.epoch * part.sampler.size + part.sampler.position
    aside = source.parts[0].account.aside
    # Ten ties and a malformed row per thirty rows, in every epoch.
    assert aside["no unique best"] / aside["malformed"] == pytest.approx(10, rel=0.1) and aside["malformed"] >= 29


def test_sampling_depends_on_seed_and_state_only(tmp_path):
    whole = mixture(tmp_path).take(100)
    state, parts = mixture(tmp_path).state_dict(), []
    for count in (1, 0, 40, 7, 52):
        source = mixture(tmp_path)
        source.load_state_dict(json.loads(json.dumps(state)))
        parts += source.take(count)
        state = source.state_dict()
    assert parts == whole and mixture(tmp_path, seed=1).take(100) != whole
    assert source.fresh().take(100) == whole and source.account.rows > source.account.used == 100


def test_equal_ids_of_two_sources_are_distinct_and_each_epoch_has_every_row(tmp_path):
    source = mixture(tmp_path)
    usable = {part.name: {record.key for record in part.scan()} for part in mixture(tmp_path).parts}
    assert len(set().union(*usable.values())) == 19 + 7 + 11
    once = list(source.once())
    assert {record.key for record in once} == set().union(*usable.values()) and len(once) == 37
    account = source.account
    assert str(account) == "48 rows: 37 used; set aside: 10 no unique best, 1 malformed" and account.rows == 48


def test_each_source_may_have_its_own_format_and_columns(tmp_path):
    pair = {"question": "Q?", "good": "yes", "bad": "no"}
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair | {"id": i}) + "\n" for i in range(3)))
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    sources = [write(tmp_path / "own.jsonl", [{}] * 3), {"path": tmp_path / "pairs.jsonl", "format": "trl_preference", "columns": columns}]
    records = open_mixture(Data.model_validate({"train": sources}), "train", 0).take(4)
    assert [record.responses for record in records] == [("one", "two"), ("yes", "no")] * 2


def test_each_source_has_its_own_metrics(tmp_path):
    source = mixture(tmp_path)
    groups = [("a/s", 1.0), ("b/s", -1.0), ("a/other", 0.0)]
    assert source.metrics(groups) == {
        "source/a/rows": 2,
        "source/b/rows": 1,
        "source/third/rows": 0,
        "source/a/reward": 0.5,
        "source/b/reward": -1.0,
    }
    assert single_source(source.parts[0].rows, 0).metrics([("s", 1.0)]) == {}


def test_single_source_keeps_its_order_and_state_format(tmp_path):
    path = write(tmp_path / "a.jsonl", [{}] * 20)
    source = open_mixture(Data(train=path), "train", 5)
    ids = [record.id for record in source.take(25)]
    state = source.state_dict()
    assert {name: state[name] for name in ("size", "seed", "epoch", "position")} == {"size": 20, "seed": 5, "epoch": 1, "position": 5}
    assert source.take(1)[0].source == "s"
    old = {name: value for name, value in state.items() if name != "account"}
    source.load_state_dict(old)
    assert source.account == RowCounts() and source.take(3) == source.fresh().take(28)[25:] and len(set(ids[:20])) == 20


def test_state_of_other_sources_is_rejected(tmp_path):
    state = mixture(tmp_path).state_dict()
    single = open_mixture(Data(train=tmp_path / "b.jsonl"), "train", 0)
    with pytest.raises(ValueError, match="sampled a, b, third"):
        single.load_state_dict(state)
    with pytest.raises(ValueError, match="sampled a single file"):
        mixture(tmp_path).load_state_dict(single.state_dict())


def test_source_without_usable_rows_is_an_error(tmp_path):
    source = mixture(tmp_path)

    def keep(found, account):
        left = [record for _, record in found if not record.source.startswith("b/")]
        account.aside["too long"] += len(found) - len(left)
        return left

    with pytest.raises(DataError, match=r"b: no row is left to use \(\d+ too long\)"):
        source.take(20, keep)
    empty = write(tmp_path / "ties.jsonl", [TIE] * 5)
    with pytest.raises(DataError, match="ties.jsonl"):
        open_mixture(Data(train=[tmp_path / "b.jsonl", empty]), "train", 0)


def test_error_names_a_malformed_or_changed_source(tmp_path):
    files(tmp_path)
    paths = [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]
    with pytest.raises(DataError, match=r"a.jsonl, row 5: "):
        open_mixture(Data(train=paths, strict=True), "train", 0)
    source = open_mixture(Data(train=paths), "train", 0)
    source.take(3)
    paths[0].write_text(paths[0].read_text() + "\n")
    with pytest.raises(DataError, match="b.jsonl: the file has changed"):
        source.take(3)


def test_row_with_only_its_last_record_usable_is_found(tmp_path):
    row = {"prompt": "Q?", "subset": "Ties", "rejected": ["no"], "id": "x", "chosen": ["a", "b", "c"]}
    (tmp_path / "f.jsonl").write_text(json.dumps(row) + "\n")
    source = open_mixture(Data(train=tmp_path / "f.jsonl", format="rewardbench2"), "train", 0)
    last = source.take(2, lambda found, account: [record for _, record in found if record.id == "x/2"])
    assert [record.id for record in last] == ["x/2", "x/2"]


class Plain:
    """A minimal prompter for held-out rows: the prompt is the query."""

    def render(self, record, order):
        return record.context[-1]["content"]

    def tokenizer(self, prompts, add_special_tokens):
        return {"input_ids": [prompt.split() for prompt in prompts]}


def test_heldout_sources_alternate_and_every_row_is_counted(tmp_path):
    source = mixture(tmp_path, which="heldout")
    kept = heldout_rows(source, Plain(), 12, 5)
    assert names(each.record for each in kept) == ["a", "b", "c"] * 4
    rows = {part.name: part.account for part in source.parts}
    # The fourth good row of a is its eighth: ties at 0, 3 and 6, malformed at 4.
    assert rows["a"].to_json() == {"rows": 8, "used": 4, "set_aside": {"no unique best": 3, "malformed": 1}}
    assert rows["b"].to_json() == {"rows": 4, "used": 4, "set_aside": {}}
    everything = mixture(tmp_path, which="heldout")
    assert len(heldout_rows(everything, Plain(), 1000, 5)) == 37
    assert everything.account.rows == everything.account.settled == 48
    with pytest.raises(DataError, match=r"no row is left to evaluate on \(.*b: 7 rows: 0 used; set aside: 7 too long.*max_tokens is 0"):
        heldout_rows(mixture(tmp_path, which="heldout"), Plain(), 12, 0)


def test_duplicate_rows_are_set_aside_when_reading_in_order(tmp_path):
    twice = write(tmp_path / "twice.jsonl", [{"id": "x"}, {"id": "x"}, {"id": "x", "source": "other"}])
    source = alone_file(twice)
    assert [record.key for _, record in source.scan()] == [("s", "x"), ("other", "x")]
    assert source.account.rows == 3 and source.account.aside.total() == 1


def alone_file(path: Path, **data) -> Mixture:
    return open_mixture(Data(train=path, **data), "train", 0)


# --- data.exclude ----------------------------------------------------------------------------------------------------


def excluded(folder: Path, source: Mixture, *rows: dict):
    path = folder / "exclude.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_exclusion(path, source)


@pytest.fixture
def subsets(tmp_path) -> Mixture:
    """Ids 0 to 2 in two subsets, 3 in the second one only."""
    rows = [
        {"id": i, "prompt": f"q {i}", "chosen": "y", "rejected": "n", "subset": s} for s, n in (("safe", 3), ("code", 4)) for i in range(n)
    ]
    path = tmp_path / "subsets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_mixture(Data(train=path, format="rewardbench"), "train", 0)


def test_row_is_excluded_from_its_own_subset_only(tmp_path, subsets):
    found = excluded(tmp_path, subsets, {"id": "1", "source": "safe"}, {"id": "3"}, {"id": "2", "source": "code", "easy": False})
    assert found.rows == {("safe", "1"), ("code", "3")} and not found.unknown


def test_ambiguous_id_is_an_error_and_unknown_id_is_reported(tmp_path, subsets):
    with pytest.raises(DataError, match=r"id '1' occurs in several sources \(code, safe\).*\"source\": \"code\""):
        excluded(tmp_path, subsets, {"id": "1"})
    found = excluded(tmp_path, subsets, {"id": "3"}, {"id": "33"}, {"id": "1", "source": "typo"})
    assert found.unknown == ("33", "1") and "2 of its ids match no training row, for example '33', '1'" in str(found)
    with pytest.raises(DataError, match="none of its 1 ids matches a training row"):
        excluded(tmp_path, subsets, {"id": "33"})
    with pytest.raises(DataError, match=r"exclude.jsonl, row 1: expected"):
        excluded(tmp_path, subsets, {"name": "33"})


def test_excluded_source_may_omit_the_part_prefix(tmp_path):
    source = mixture(tmp_path)
    assert excluded(tmp_path, source, {"id": "1", "source": "b/s"}, {"id": "9", "source": "third/s"}).rows == {
        ("b/s", "1"),
        ("third/s", "9"),
    }
    with pytest.raises(DataError, match="several sources"):
        excluded(tmp_path, source, {"id": "1", "source": "s"})


def test_generated_rows_are_found_without_generating_all(tmp_path):
    source = open_mixture(Data(), "train", 3)
    record = source.parts[0].rows[777]
    found = excluded(tmp_path, source, {"id": record.id}, {"id": "train-00000778-no_such"}, {"id": "other"})
    assert found.rows == {record.key} and len(found.unknown) == 2


def test_single_source_accepts_any_rows():
    source = open_mixture(Data(heldout="tasks:heldout"), "heldout", 0)
    rows = source.parts[0].rows
    assert single_source(rows, 4).take(3) == [rows[i] for i in single_source(rows, 4).parts[0].sampler.next(3)]
