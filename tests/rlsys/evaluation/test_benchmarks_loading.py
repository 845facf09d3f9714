"""Benchmarks of any kind: known formats, limits, ids, errors, ties at the top, baselines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlsys.data.readers import DataError
from rlsys.evaluation.benchmarks import BENCHMARKS, Benchmark, baselines, load, score


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def overall(benchmark: Benchmark, totals: list) -> float:
    """The overall figure of one draw."""
    return score(benchmark, [np.full((1, item.record.n), total) for item, total in zip(benchmark.items, totals, strict=True)]).overall[0]


def of_four(number: int, subset: str = "Math") -> dict:
    """A row of Reward Bench 2 whose four responses are of equal length."""
    return {"id": str(number), "prompt": "Pick a number.", "chosen": ["one"], "rejected": ["two", "six", "ten"], "subset": subset}


def ties(number: int) -> list[dict]:
    row = {"prompt": "Name a colour.", "chosen": ["red", "blue"], "rejected": ["seven"], "subset": "Ties"}
    return [row | {"id": f"ref:{number}", "chosen": ["red"]}, row | {"id": f"tied:{number}"}]


def llmbar(label: int) -> dict:
    return {"input": "Say hi.", "output_1": "Hi.", "output_2": "Hello there, how are you?", "label": label}


def judgebench(name: str) -> dict:
    return {"pair_id": name, "source": "livebench-math", "question": "A or B?", "response_A": "A", "response_B": "B", "label": "A>B"}


def best_of_k(name: str, pairs: list[list[int]]) -> dict:
    responses = {f"response_{i + 1}": f"answer {i + 1}" for i in range(4)}
    return {"question_id": name, "prompt": "2 + 2?", **responses, "scores": [True, False, False, True], "sampled_conflict_pairs": pairs}


def test_any_known_format(tmp_path):
    rows = [{"instruction": "Hi?", "output_1": "One.", "output_2": "Two.", "label": label} for label in (1, 2, 2)]
    benchmark = load("format:offsetbias", write(tmp_path / "rows.jsonl", rows))
    assert overall(benchmark, [(9, 4), (9, 4), (4, 9)]) == pytest.approx(2 / 3)
    # Three conflict pairs of one row are one cluster.
    rows = [best_of_k("1", [[0, 1], [1, 3], [0, 2]]), best_of_k("2", [[0, 1]])]
    benchmark = load("format:ppe_best_of_k", write(tmp_path / "k.jsonl", rows))
    assert len(benchmark.clusters) == 2
    assert overall(benchmark, [(9, 4), (9, 4), (4, 9), (9, 4)]) == pytest.approx((1 / 3 + 1) / 2)


def test_single_responses_of_any_format_are_scored_by_area(tmp_path):
    rows = [{"prompt": "2 + 2?", "completion": f"It is {n}.", "label": n == 4} for n in (4, 5, 4)]
    benchmark = load("format:trl_unpaired", write(tmp_path / "rows.jsonl", rows))
    assert overall(benchmark, [9, 3, 2]) == pytest.approx(1 / 2)
    mixed = [{"context": [{"role": "user", "content": "Hi?"}], "responses": ["a", "b"][:n], "rewards": [1, 0][:n]} for n in (1, 2)]
    with pytest.raises(DataError, match="rows of one response and rows of several, .*: expected one kind. Split the file."):
        load("format:rlsys", write(tmp_path / "mixed.jsonl", mixed))


def test_ties_at_the_top_are_broken_at_random_and_by_seed(tmp_path):
    benchmark = load("rewardbench2", write(tmp_path / "test.jsonl", [of_four(1)]))
    totals = [np.tile([7.0, 7, 7, 1], (4000, 1))]
    found = score(benchmark, totals).overall
    assert found.mean() == pytest.approx(1 / 3, abs=0.03)
    assert (score(benchmark, totals).overall == found).all() and (score(benchmark, totals, seed=1).overall != found).any()


def test_a_limit_holds_for_each_subset(tmp_path):
    rows = [of_four(i, ("Math", "Focus")[i // 5]) for i in range(10)] + ties(0) + ties(1)
    benchmark = load("rewardbench2", write(tmp_path / "test.jsonl", rows), limit=1)
    assert [(cluster.subset, cluster.id) for cluster in benchmark.clusters] == [
        ("Math", "Math/0"),
        ("Focus", "Focus/5"),
        ("Ties", "Ties/0"),
    ]
    with pytest.raises(ValueError, match="at least 1"):
        load("rewardbench2", tmp_path / "test.jsonl", limit=0)


def test_ids_are_made_unique(tmp_path):
    benchmark = load("judgebench", write(tmp_path / "gpt.jsonl", [judgebench("p"), judgebench("p")]))
    assert [item.id for item in benchmark.items] == [f"livebench-math/{name}" for name in ("p#0", "p#1", "p@2#0", "p@2#1")]


def test_what_cannot_be_loaded_is_reported(tmp_path):
    with pytest.raises(DataError, match="unknown benchmark 'rewardbench3'. Did you mean rewardbench2?"):
        load("rewardbench3", tmp_path)
    with pytest.raises(DataError, match="the folder holds no file that ends in .jsonl"):
        load("rmb", tmp_path)
    with pytest.raises(DataError, match="there is no such file"):
        load("rmb", tmp_path / "S1.json")
    with pytest.raises(
        DataError, match=r"none of the 1 rows is usable as judgebench. The first: .*row 1: label: expected \"A>B\" or \"B>A\""
    ):
        load("judgebench", write(tmp_path / "rows.jsonl", [{"question": "A or B?"}]))


def test_totals_of_another_shape_are_reported(tmp_path):
    benchmark = load("rewardbench2", write(tmp_path / "test.jsonl", [of_four(1), of_four(2)]))
    with pytest.raises(ValueError, match="expected totals for its 2 items, found 1"):
        score(benchmark, [np.zeros((1, 4))])
    with pytest.raises(ValueError, match=r"item Math/2: expected totals of shape \[3, 4\], found \[3, 2\]"):
        score(benchmark, [np.zeros((3, 4)), np.zeros((3, 2))])


def test_every_benchmark_is_described():
    page = (Path(__file__).parents[3] / "docs/benchmarks.md").read_text()
    assert all(f"`{name}`" in page or name.startswith("ppe_best_of_") for name in BENCHMARKS) and "`ppe_best_of_K`" in page


def test_baselines_by_the_same_scorers(tmp_path):
    benchmark = load("llmbar", write(tmp_path / "natural.jsonl", [llmbar(1), llmbar(2), llmbar(2)]))
    found = {name: result.overall.mean() for name, result in baselines(benchmark).items()}
    # The second response is the longer one; the first one shown is each of both once.
    assert found["longer"] == pytest.approx(2 / 3) and found["first"] == pytest.approx(1 / 2)
    assert found["chance"] == pytest.approx(1 / 2, abs=0.05)
    assert baselines(benchmark)["first"].others["agreement"].mean() == 0


def test_there_is_no_first_response_where_the_best_is_listed_first(tmp_path):
    benchmark = load("rewardbench2", write(tmp_path / "test.jsonl", [of_four(i) for i in range(5)]))
    found = baselines(benchmark, resamples=2000)
    assert found["first"] is None
    assert found["longer"].overall.mean() == pytest.approx(found["chance"].overall.mean(), abs=0.05) == pytest.approx(1 / 4, abs=0.02)


def test_chance_on_judgebench_is_right_in_both_orders(tmp_path):
    benchmark = load("judgebench", write(tmp_path / "gpt.jsonl", [judgebench(str(i)) for i in range(20)]))
    assert baselines(benchmark, resamples=1000)["chance"].overall.mean() == pytest.approx(1 / 4, abs=0.02)


# Folders


def test_stray_files_are_named_and_passed_over(tmp_path):
    write(tmp_path / "gpt.jsonl", [judgebench("p0"), judgebench("p1")])
    (tmp_path / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    write(tmp_path / "notes.jsonl", [{"note": "to self"}])
    (tmp_path / "README.md").write_text("About the data.")
    (tmp_path / "old.zip").write_bytes(b"PK")
    for hidden in (".cache/gpt.jsonl", "__MACOSX/gpt.jsonl", "._gpt.jsonl"):
        write(tmp_path / hidden, [judgebench("hidden")])
    benchmark = load("judgebench", tmp_path)
    assert [cluster.id for cluster in benchmark.clusters] == ["livebench-math/p0", "livebench-math/p1"]
    passed = dict(benchmark.rows.passed_over)
    assert passed.keys() == {"dataset_infos.json", "empty.jsonl", "broken.parquet", "notes.jsonl", "README.md", "old.zip"}
    assert "the file is empty" in passed["empty.jsonl"]
    assert passed["notes.jsonl"].startswith("none of its 1 rows is usable; the first: row 1: ")
    # The rows of stray files are not the benchmark's: they are not counted as malformed.
    assert (benchmark.rows.read, benchmark.rows.used, benchmark.rows.malformed) == (2, 2, 0)


def test_a_file_that_breaks_off_is_no_stray_file(tmp_path):
    import gzip

    rows = [judgebench(f"p{i}") | {"question": f"{hash((i, 'noise'))} or {hash((i, 'more'))}?"} for i in range(5000)]
    whole = gzip.compress(write(tmp_path / "gpt.jsonl", rows).read_bytes())
    (tmp_path / "gpt.jsonl").unlink()
    (tmp_path / "gpt.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    write(tmp_path / "claude.jsonl", [judgebench("p")])
    with pytest.raises(DataError, match="gpt.jsonl.gz: the file is damaged"):
        load("judgebench", tmp_path)


def test_a_folder_without_a_usable_file_is_reported(tmp_path):
    write(tmp_path / "a.jsonl", [])
    write(tmp_path / "b.jsonl", [{"note": "to self"}])
    with pytest.raises(DataError, match="none of the 0 rows is usable as judgebench. The first: a.jsonl: the file is empty."):
        load("judgebench", tmp_path)


@pytest.mark.parametrize("folder", ["mathias", "math", "PPE-MATH-of-mine"])
def test_a_domain_is_named_below_the_given_folder_only(tmp_path, folder):
    path = write(tmp_path / folder / "ppe/train.jsonl", [best_of_k("1", [[0, 1]])])
    for given in (path, path.parent):
        assert [cluster.subset for cluster in load("ppe_correctness", given).clusters] == ["all"]
    # Below it, words count, not letters.
    assert [cluster.subset for cluster in load("ppe_correctness", tmp_path).clusters] == ["all" if folder == "mathias" else "MATH"]
    write(tmp_path / folder / "ppe/mmlu_pro_best_of_k.jsonl", [best_of_k("1", [[0, 1]])])
    assert sorted(cluster.subset for cluster in load("ppe_correctness", tmp_path / folder).clusters) == ["MMLU-Pro", "all"]


def test_a_folder_of_one_llmbar_subset_may_be_given_alone(tmp_path):
    path = write(tmp_path / "manual labels/Adversarial/GPTOut/dataset.jsonl", [llmbar(1)])
    for given in (path, path.parent):
        assert [cluster.subset for cluster in load("llmbar", given).clusters] == ["GPTOut"]
    with pytest.raises(DataError, match="expected the name of a subset in it"):
        load("llmbar", write(tmp_path / "manual labels/rows.jsonl", [llmbar(1)]))


def test_copies_of_a_file_count_once(tmp_path):
    rows = [judgebench("p0"), judgebench("p1")]
    write(tmp_path / "gpt.jsonl", rows)
    (tmp_path / "gpt.json").write_text(json.dumps(rows))
    (tmp_path / "old").mkdir()
    (tmp_path / "old/copy.jsonl").symlink_to(tmp_path / "gpt.jsonl")
    write(tmp_path / "claude.jsonl", [judgebench("p2"), judgebench("p1")])
    benchmark = load("judgebench", tmp_path)
    # Two files may share a row: they are no copies of each other.
    assert [cluster.id.partition("/")[2] for cluster in benchmark.clusters] == ["p2", "p1", "p0", "p1@2"]
    assert dict(benchmark.rows.passed_over) == {
        "gpt.jsonl": "it holds the same rows as gpt.json", "old/copy.jsonl": "it holds the same rows as gpt.json"
    }  # fmt: skip


def test_links_and_capitals_are_followed(tmp_path):
    write(tmp_path / "elsewhere/Natural/Dataset.JSONL", [llmbar(1)])
    write(tmp_path / "elsewhere/Natural/evaluators/result.jsonl", [llmbar(1) | {"results": []}])
    (tmp_path / "data").mkdir()
    (tmp_path / "data/LLMBar").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/round").symlink_to(tmp_path / "elsewhere")
    benchmark = load("llmbar", tmp_path / "data")
    assert [cluster.subset for cluster in benchmark.clusters] == ["Natural"]


def test_every_row_is_accounted_for(tmp_path):
    rows = [of_four(0), of_four(1), of_four(2) | {"num_incorrect": 7}, *ties(0), ties(1)[0], of_four(3, "Focus")]
    found = load("rewardbench2", write(tmp_path / "test.jsonl", rows), limit=1).rows
    assert (found.read, found.used, found.beyond_limit, found.no_unique_best, found.malformed) == (7, 4, 1, 0, 2)
    pairs = [{"prompt": "Hi?", "response_1": "One.", "response_2": "Two.", "winner": winner} for winner in ("model_a", "tie", "model_b")]
    found = load("ppe_preference", write(tmp_path / "ppe.jsonl", pairs)).rows
    assert (found.read, found.used, found.no_unique_best) == (3, 2, 1)
