"""The page of `rlsys report`: its figures against those in hand-made folders, and what it refuses."""

from __future__ import annotations

import json
import math
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_folders import benchmark, build, evaluation, ladder, plots, scalar_run, tables, training_run, write

from rlsys.data.readers import DataError
from rlsys.data.trajectories import TRAJECTORIES
from rlsys.documents.core import Estimate
from rlsys.reporting.page import collect
from rlsys.reporting.page.critiques import spread
from rlsys.reporting.page.evaluations import mean
from rlsys.reporting.page.plots import Curves, Series, common_range, moving_mean


def test_curves_hold_the_figures_of_eval_json(folders, document) -> None:
    told = json.loads((folders[1] / "eval.json").read_text())["benchmarks"]
    for name, metric in (("alpha", "accuracy"), ("auc", "ROC-AUC")):
        by_k = plots(document)[f"{name}: {metric} against k (eval)"]
        by_tokens = plots(document)[f"{name}: {metric} against tokens spent (eval)"]
        assert by_k["log2"] and by_k["x_label"] and by_k["y_label"] == metric and by_k["percent"] == (metric == "accuracy")
        assert [one["name"] for one in by_k["series"]] == ["vote", "meta"]
        for curve, spent in zip(by_k["series"], by_tokens["series"], strict=True):
            points = told[name]["strategies"][curve["name"]]
            assert dict(zip(curve["x"], curve["y"])) == {int(k): point["overall"]["value"] for k, point in points.items()}
            assert curve["ci95"] == [point["overall"]["ci95"] for point in points.values()]
            assert spent["x"] == [point["tokens_per_item"] for point in points.values()] and spent["y"] == curve["y"]
        assert by_k["levels"]["greedy"] == told[name]["greedy"]["overall"]["value"]


def test_a_mean_and_its_interval_by_hand() -> None:
    # 0.6 - 0.03 and 0.8 - 0.04: half of hypot(0.03, 0.04) = 0.05 below; upwards half of hypot(0.05, 0.12) = 0.13.
    found = mean([Estimate(value=0.6, ci95=(0.57, 0.65)), Estimate(value=0.8, ci95=(0.76, 0.92))])
    assert (found.value, *found.ci95) == pytest.approx((0.7, 0.675, 0.765))
    assert mean([Estimate(value=0.6), None]) is mean([Estimate(value=None)]) is mean([]) is None
    assert mean([Estimate(value=0.6), Estimate(value=0.8)]).ci95 is None


def test_the_mean_is_over_accuracies_only(document) -> None:
    curve = plots(document)["mean of the benchmarks: accuracy against k (eval)"]["series"][0]
    assert curve["y"] == pytest.approx([(0.6 + 0.7) / 2 + 0.02 * math.log2(2 * k) for k in (1, 2, 4)])
    assert [(high - low) / 2 for low, high in curve["ci95"]] == pytest.approx([0.04 / math.sqrt(2)] * 3)
    table = tables(document)["Figures by strategy at its largest k: eval"]
    assert table["columns"] == ["judged by", "mean of the benchmarks", "alpha", "beta", "auc (ROC-AUC)"]
    assert [row[0] for row in table["rows"]] == ["chance", "always the first", "greedy", "vote@4", "meta@4"]


def test_the_ladder_says_which_rungs_do_not_separate(document) -> None:
    table = tables(document)["Ladder: tasks, 400 rows"]
    assert [(row[0], row[3]["value"], row[5]) for row in table["rows"]] == [
        ("base", 0.4, ""),
        ("rl", 0.7, "up"),
        ("vote@8", 0.71, "no: the interval includes zero"),
    ]
    assert table["rows"][1][4] == {"value": 0.3, "ci95": [0.2, 0.4]}
    assert [row[0] for row in tables(document)["Ablations: tasks, 400 rows"]["rows"]] == ["no_hint"]


def test_the_ladder_is_drawn_in_one_colour_per_kind_and_its_votes_against_k(tmp_path) -> None:
    names = {"base": 0.4, "rl": 0.5, "vote@1": 0.6, "vote@2": 0.65, "vote@8": 0.7, "meta@2": 0.66, "meta@8": 0.75, "mine": 0.1, "bt": 0.9}
    rungs = [{"name": name, "title": f"a {name}", "value": value, "ci95": [value - 0.1, value + 0.1]} for name, value in names.items()]
    write(tmp_path / "ladder/ladder.json", ladder() | {"rungs": rungs})
    found = plots(build([tmp_path / "ladder"], tmp_path / "page.html"))
    by_rung = {one["name"]: one for one in found["Accuracy by rung: tasks, 400 rows"]["series"]}
    assert list(by_rung) == ["base model", "RL", "vote", "guided vote", "mine", "Bradley-Terry"]
    assert len({one["style"] for one in by_rung.values()}) == 6
    assert by_rung["vote"]["y"] == [None, None, 0.6, 0.65, 0.7, None, None, None, None]
    by_k = found["Accuracy against k: tasks, 400 rows"]
    assert by_k["log2"] and by_k["levels"] == {"a base": 0.4, "a rl": 0.5, "a bt": 0.9}
    assert [(one["name"], one["x"], one["y"]) for one in by_k["series"]] == [
        ("vote", [1, 2, 8], [0.6, 0.65, 0.7]),
        ("guided vote", [2, 8], [0.66, 0.75]),
    ]
    assert all(one["style"] == by_rung[one["name"]]["style"] for one in by_k["series"])


def test_a_run_under_way_is_shown_as_far_as_it_is(document) -> None:
    """A step cut off in metrics.jsonl is left out, and evaluations without a summary are counted from their tables."""
    found = plots(document)
    (reward,) = found["Reward of the training samples"]["series"]
    assert (reward["x"], reward["y"]) == ([1, 2, 3], [0.1, 0.2, 0.3])
    assert found["KL divergence from the reference policy"]["series"][0]["y"] == [0.01, 0.02, 0.03]
    heldout = found["Accuracy on held-out rows"]["series"][0]
    assert (heldout["x"], heldout["y"]) == ([0, 2], [0.25, 0.75])
    failures = {one["name"]: one["y"] for one in found["Parse failures by reason"]["series"]}
    assert failures == {"all reasons": [0.1, 0.1, 0.1], "no_box": [0.1, 0.1, 0.1]}
    seconds = found["Seconds by phase"]
    assert [one["name"] for one in seconds["series"]] == ["run", "meta"]
    assert dict(zip(seconds["categories"], seconds["series"][0]["y"])) == {"train": 6.0, "wait for samples": 9.0, "start": None}
    families = found["Held-out accuracy by family"]
    assert families["categories"] == ["a", "b"] and families["series"][0]["y"] == [0.5, 0.0]


def test_a_complete_run_shows_its_summary(tmp_path) -> None:
    run = training_run(tmp_path / "run")
    told = {"n": 10, "samples": 10, "reward": 0.5, "reward_ci95": [0.25, 0.75], "accuracy": 0.75, "accuracy_ci95": [0.5, 0.9]}
    told |= {"accuracy_parsed": None, "accuracy_parsed_ci95": None, "parse_failures": {"no_box": 1}, "families": {}}
    pair = {"rl_minus_base": {"mean": 0.5, "ci95": [0.1, 0.9]}}
    heldout = {"base": told, "rl": told | {"reward": 1.0, "accuracy": 1.0}}
    write(
        run / "summary.json", {"heldout": heldout, "seconds": {"train": 5.0}, "paired": pair, "baselines": {"chance": 0.4, "first": None}}
    )
    found = tables(build([run], tmp_path / "page.html"))
    rows = found["Held-out results by stage, 95% intervals"]["rows"]
    assert [(row[1], row[4]["value"]) for row in rows if row[1] != "after step 2"] == [
        ("base model", 0.75),
        ("after RL", 1.0),
        ("baseline: chance", 0.4),
    ]
    assert found["Paired differences over the same rows"]["rows"][0][1:3] == [
        "after RL minus base model",
        {"value": 0.5, "ci95": [0.1, 0.9]},
    ]


def test_the_reliability_diagram_is_that_of_the_report(folders, document) -> None:
    told = json.loads((folders[4] / "report.json").read_text())["heldout"]
    plot = plots(document)["Calibration: meta"]
    assert plot["bins"] == told["table"] and plot["base_rate"] == told["base_rate"]
    rows = {row[0]: row[1] for row in tables(document)["Measures on held-out rows, 95% intervals"]["rows"]}
    assert rows["ROC-AUC"] == {"value": told["auc"]["value"], "ci95": told["auc"]["ci95"]}
    assert rows["Brier score"]["value"] == told["brier"]["value"]


def test_biases_stand_beside_what_is_expected(tmp_path) -> None:
    drawn = {"first": 0.6, "first_expected": 0.5, "other_order": 0.7, "same_order": 0.9}
    both = benchmark(0.6, position=benchmark(0.6)["position"] | {"samples": drawn})
    write(tmp_path / "eval.json", evaluation(both=both, neither=benchmark(0.6, position=None, length=None)))
    document = build([tmp_path], tmp_path / "page.html")
    shown = {title: {one["name"]: one["y"] for one in plot["series"]} for title, plot in plots(document).items()}
    assert shown["Position: how often the response shown first wins"] == {"greedy": [0.55], "samples": [0.6], "without bias": [0.5]}
    assert shown["Length: how often the longest response wins"] == {"samples": [0.6], "the longest is the best": [0.52]}
    assert shown["Consistency: how often two samples of an item agree"] == {
        "greedy, other order": [0.8],
        "samples, other order": [0.7],
        "samples, same order": [0.9],
    }
    assert plots(document)["Position: how often the response shown first wins"]["categories"] == ["both"]
    assert tables(document)["Biases by benchmark"]["rows"][0][-1] == {"value": 0.1}


def test_accuracy_by_subset_and_other_figures(document) -> None:
    subset = plots(document)["alpha: accuracy by subset (eval)"]
    assert (subset["categories"], [one["name"] for one in subset["series"]]) == (["easy", "hard"], ["greedy", "vote@4", "meta@4"])
    assert subset["series"][1]["y"] == [0.6 + 0.02 * 3] * 2
    rows = tables(document)["Other figures: eval"]["rows"]
    assert ["alpha", "greedy", "agreement", {"value": 0.75}] in rows
    assert ["alpha", "vote@4", {"value": 4}, {"value": 400.0}, {"value": 1.0}] in tables(document)["Cost: eval"]["rows"]


def test_critiques_show_scores_as_the_judge_saw_them(document) -> None:
    critiques = document["sections"][-1]["critiques"]
    run = [one for one in critiques if one["source"] == "run"]
    assert [(one["id"], one["correct"], one["scores"]) for one in run] == [
        ("row-0", True, [2, 9]),
        ("row-1", True, [2, 9]),
        ("row-2", True, [2, 9]),
        ("row-3", False, None),
    ]
    # The record's first response is the best one; it is shown second.
    assert {(one["gold"], one["truth"]) for one in run} == {(1, "[2] is the best response")}
    example = next(one for one in critiques if one["source"] == "eval, alpha")
    assert (example["scores"], example["gold"], example["truth"]) == ([2, 9], 1, "[2] is the best response")
    assert (example["turns"], example["responses"]) == ([["user", "Two plus two?"]], ["five", "four"])


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 8))
def test_spread_takes_one_of_each_before_a_second(keys, count) -> None:
    chosen = [key for _, key in spread(list(enumerate(keys)), count, lambda item: item[1])]
    times = [chosen.count(key) for key in set(keys)]
    assert len(chosen) == min(count, len(keys))
    assert all(keys.count(key) == chosen.count(key) or chosen.count(key) >= max(times) - 1 for key in set(keys))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.integers(1, 9))
def test_a_moving_mean_stays_within_its_window(values, width) -> None:
    found = moving_mean(values, width)
    assert len(found) == len(values)
    for i, value in enumerate(found):
        near = [y for j, y in enumerate(values) if -((width - 1) // 2) <= j - i <= width // 2]
        assert value == pytest.approx(sum(near) / len(near))


def test_plots_side_by_side_have_one_range_that_holds_everything() -> None:
    one, two = (Curves("t", series=[Series("a", [y], [1], [(y - 0.1, y + 0.1)])], levels={"chance": 0.2}) for y in (0.5, 0.8))
    low, high = common_range([one, two])[0].y_range
    assert (low, high) == common_range([one, two])[1].y_range and low < 0.2 and high > 0.9


# --- files ----------------------------------------------------------------------------------------------------------


def test_every_form_is_written_and_plots_are_pictures(page, document) -> None:
    assert sorted(path.name for path in page.parent.iterdir()) == sorted(document["files"])
    pictures = [page.with_name(name) for name in document["files"] if name.endswith(".png")]
    assert len(pictures) == len(plots(document)) > 10
    from matplotlib.image import imread

    for path in pictures:
        pixels = imread(path)[..., :3]
        assert pixels.shape[1] == 780  # 5.2 inches at 150 dots
        assert 0.005 < (pixels < 0.9).any(axis=-1).mean() < 0.6, path


def test_the_same_folders_make_the_same_page(folders, tmp_path) -> None:
    build(folders[:1], tmp_path / "one.html")
    build(folders[:1], tmp_path / "two.html")
    assert (tmp_path / "one.html").read_text() == (tmp_path / "two.html").read_text()


def test_folders_of_one_name_are_reported_apart(tmp_path) -> None:
    for parent in ("a", "b"):
        write(tmp_path / parent / "ladder" / "ladder.json", ladder())
    assert [source.name for source in collect([tmp_path / "a" / "ladder", tmp_path / "b" / "ladder"])] == ["a/ladder", "b/ladder"]


def test_markdown_cannot_be_broken_by_a_text(page, document) -> None:
    text = page.with_suffix(".md").read_text()
    assert "\x1b" not in text and "\u202e" not in text
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script>" not in re.sub(r"\\.", "", outside) and "](javascript" not in re.sub(r"\\.", "", outside)
    for lines in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}
        assert len(cells) == 1, lines
    for name in document["files"]:
        if name.endswith(".png"):
            assert f"]({name})" in text


# --- what cannot be used --------------------------------------------------------------------------------------------


def changed(value: dict, path: str, new) -> dict:
    """A deep copy with the dotted `path` set."""
    value = json.loads(json.dumps(value))
    *parents, last = path.split(".")
    inner = value
    for key in parents:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[last] = new
    return value


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ["holds none of", "rlsys train"]),
        ({"deeper/eval.json": "{}"}, ["folders in it do: deeper"]),
        ({"eval.json": '{"model": "m", "k": [1,'}, ["eval.json", "not valid JSON", "may be incomplete"]),
        ({"eval.json": "[]"}, ["eval.json", "the document"]),
        ({"eval.json": changed(evaluation(), "k", ["one"])}, ["eval.json", "k.0"]),
        (
            {"eval.json": changed(evaluation(), "benchmarks.alpha.strategies.vote.2.overall.value", float("nan"))},
            ["benchmarks.alpha.strategies.vote.2.overall.value", "finite"],
        ),
        ({"eval.json": changed(evaluation(), "benchmarks.alpha.examples.0.order", [0, 0])}, ["examples.0", "order"]),
        ({"ladder.json": changed(ladder(), "rungs.1.ci95", [0.6])}, ["ladder.json", "rungs.1.ci95"]),
        ({"ladder.json": b"\xff"}, ["ladder.json", "UTF-8"]),
        ({"config.yaml": "a: [", "metrics.jsonl": '{"step": 1, "reward": 0.5}\n'}, ["config.yaml", "model.path"]),
        ({"config.yaml": "model: {path: m}"}, ["this run has no evaluation"]),
        ({"config.yaml": "model: {path: m}", "metrics.jsonl": '{"step": 1}\n{"st\n{"step": 3}\n'}, ["metrics.jsonl, row 2", "JSON"]),
        ({"config.yaml": "model: {path: m}", "metrics.jsonl": '{"reward": 1}\n{"step": 3}\n'}, ["metrics.jsonl, row 1", "step"]),
        ({"config.yaml": "model: {path: m}", "trajectories/heldout_base.parquet": "PAR1"}, ["heldout_base.parquet", "Parquet"]),
        ({"config.yaml": "model: {path: m}", "summary.json": {"heldout": {}}}, ["summary.json", "seconds"]),
        (
            {"config.yaml": "model: {path: m}", "summary.json": {"heldout": {"rl": {"n": 1}}, "seconds": {}}},
            ["summary.json", "heldout.rl.samples"],
        ),
        ({"config.yaml": "model: {path: m}", "report.json": {"objective": "bce"}}, ["report.json", "heldout"]),
    ],
)
def test_a_broken_folder_is_named_with_what_is_wrong(tmp_path, files, expected) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            write(folder / name, content)
    with pytest.raises(DataError) as caught:
        collect([folder])
    assert str(folder) in str(caught.value)
    for words in expected:
        assert words in str(caught.value)


def test_a_table_without_its_columns_is_named(tmp_path) -> None:
    write(tmp_path / "config.yaml", "model: {path: m}")
    (tmp_path / "trajectories").mkdir()
    path = tmp_path / "trajectories" / "heldout_base.parquet"
    for table in (pa.table({"text": ["a"]}), TRAJECTORIES.empty_table()):
        pq.write_table(table, path)
        with pytest.raises(DataError, match=re.escape(str(path))):
            collect([tmp_path])


def test_a_folder_may_be_several_things(tmp_path) -> None:
    write(tmp_path / "ladder.json", ladder())
    write(tmp_path / "eval.json", evaluation())
    write(tmp_path / "config.yaml", "model: {path: m}")
    assert [type(source).__name__ for source in collect([tmp_path])] == ["Ladder", "Evaluation"]
    write(tmp_path / "metrics.jsonl", '{"step": 1, "reward": 0.5, "kl": NaN}\n')
    assert [type(source).__name__ for source in collect([tmp_path])] == ["Ladder", "Evaluation", "TrainingRun"]


@pytest.mark.parametrize(("names", "expected"), [(["absent"], "no such folder"), (["file"], "is a file"), (["x", "./x"], "given twice")])
def test_what_is_no_folder_is_named(tmp_path, names, expected) -> None:
    write(tmp_path / "file", "")
    write(tmp_path / "x" / "ladder.json", ladder())
    with pytest.raises(DataError, match=expected):
        collect([tmp_path / name for name in names])


def test_a_page_overwrites_pages_only(folders, tmp_path) -> None:
    run = scalar_run(tmp_path / "meta")
    before = (run / "report.json").read_text()
    with pytest.raises(DataError, match="was not written by `rlsys report`"):
        build([run], run / "report.html")
    assert (run / "report.json").read_text() == before and not (run / "report.html").exists()
    with pytest.raises(DataError, match="ends in .html"):
        build([run], run / "page.json")
    for _ in range(2):
        build([folders[0]], tmp_path / "eval.html")
    write(tmp_path / "ladder.json", ladder())
    assert [source.name for source in collect([tmp_path])] == [tmp_path.name]
