"""What the page shows of training runs, counted again from their Parquet tables and metrics.jsonl with plain loops."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from page_folders import HOSTILE, STAGES, evaluation, judge_run, ladder, plots, policy_run, tables, told, write

from rlsys.reporting.page import collect, judging, outline
from rlsys.reporting.page.plots import Categories, Curves, Series, drawn_once, span_of
from rlsys.reporting.page.render import without_neighbour

NAMES = {"base": "base model", "cold_start": "after the cold start", "rl": "after RL"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return judge_run(tmp_path_factory.mktemp("runs") / "judge", rows=120)


@pytest.fixture(scope="module")
def shown(run) -> dict:
    return told(run)


@pytest.fixture(scope="module")
def held(run) -> dict[str, list[dict]]:
    return {stage: pq.read_table(run / "trajectories" / f"heldout_{stage}.parquet").to_pylist() for stage in STAGES}


def by_name(plot: dict) -> dict[str, dict]:
    return {series["name"]: dict(zip(plot["categories"], series["y"])) for series in plot["series"]}


def test_the_headline_comes_first(shown, held) -> None:
    (headline,) = shown["sections"][0]["headlines"]
    assert headline["measured"] == "120 held-out rows: accuracy"
    right = {stage: sum(row["correct"] for row in rows) for stage, rows in held.items()}
    assert [(one["name"], one["value"]) for one in headline["figures"]] == [(NAMES[stage], right[stage] / 120) for stage in STAGES]
    assert all(one["ci95"][0] <= one["value"] <= one["ci95"][1] for one in headline["figures"])
    gained = f"{(right['rl'] - right['cold_start']) / 120:+.1%} ("
    assert headline["figures"][2]["remark"].startswith(gained)
    sizes = [len(row["order"]) for row in held["rl"]]
    facts = headline["facts"]
    assert facts["chance"]["value"] == pytest.approx(sum(0.5 if n == 1 else 1 / n for n in sizes) / 120)
    assert (facts["steps"]["value"], facts["minutes"]["value"], facts["model"]) == (2, 2.0, "models/small")
    assert set(facts) == {"chance", "always the first", "always the longest", "steps", "minutes", "model"}
    plot = plots(shown)["Accuracy by stage"]
    assert by_name(plot)["judge"] == {NAMES[stage]: right[stage] / 120 for stage in STAGES}
    assert set(plot["levels"]) == {"chance", "always the first", "always the longest"}


def test_votes_with_a_model_of_the_run_end_its_headline(run, tmp_path) -> None:
    votes = write(tmp_path / "votes" / "eval.json", evaluation() | {"model": str(run / "checkpoints" / "step_000002" / "model")}).parent
    other = write(tmp_path / "other" / "eval.json", evaluation()).parent
    figures = json.loads((votes / "eval.json").read_text())["benchmarks"]
    first, second = told(run, votes, other)["sections"][0]["headlines"]
    # Of the benchmarks of accuracy, alpha and beta.
    mean = sum(figures[name]["strategies"]["vote"]["4"]["overall"]["value"] for name in ("alpha", "beta")) / 2
    assert [one["name"] for one in first["figures"]] == [*NAMES.values(), "vote@4", "meta@4"]
    assert first["figures"][3]["value"] == pytest.approx(mean)
    assert first["figures"][3]["remark"] == "the mean of the benchmarks, 200 rows"
    assert (second["name"], [one["name"] for one in second["figures"]]) == ("other", ["greedy", "vote@4", "meta@4"])


def test_the_headline_of_a_ladder_compares_like_with_like(tmp_path) -> None:
    names = ("base", "base@1", "rft", "rft@1", "rl", "vote@1", "vote@2", "vote@8", "meta@2", "meta@8", "bt")
    rungs = [{"name": name, "title": name, "value": place / 20, "ci95": None} for place, name in enumerate(names)]
    write(tmp_path / "x" / "ladder.json", ladder() | {"rungs": rungs, "baselines": {"chance": 0.4}})
    (headline,) = told(tmp_path / "x")["sections"][0]["headlines"]
    assert [one["name"] for one in headline["figures"]] == ["base@1", "rft@1", "vote@1", "vote@8", "meta@8"]
    assert headline["facts"]["bt"]["value"] == 0.5 and headline["facts"]["chance"] == {"value": 0.4}


def test_accuracy_by_number_of_responses_and_by_place(shown, held) -> None:
    plot = plots(shown)["Accuracy by responses and place of the best one"]
    found = by_name(plot)
    counts: dict[str, int] = {}
    for stage, rows in held.items():
        right: dict[str, list[bool]] = {}
        for row in rows:
            n, best = len(row["order"]), row["ground_truth"].index(max(row["ground_truth"]))
            right.setdefault(f"{n} response{'s' * (n > 1)}", []).append(row["correct"])
            if n > 1:
                right.setdefault(f"best at place {row['order'].index(best) + 1} of {n}", []).append(row["correct"])
        counts = {name: len(own) for name, own in right.items()}
        expected = {f"{name}, {len(own)} rows": sum(own) / len(own) for name, own in right.items()}
        assert found[NAMES[stage]] == pytest.approx(expected)
    assert found["chance"] == {category: {"1": 0.5, "2": 0.5, "4": 0.25}[_responses(category)] for category in plot["categories"]}
    table = tables(shown)["Accuracy by number of responses and place of the best one, 95% intervals"]
    assert {row[0]: row[1]["value"] for row in table["rows"]} == counts
    assert [row[0] for row in table["rows"][:4]] == ["1 response", "2 responses", "best at place 1 of 2", "best at place 2 of 2"]


def _responses(category: str) -> str:
    """Number of responses that a category names."""
    words = category.split(",")[0].split()
    return words[-1] if words[0] == "best" else words[0]


def test_places_and_scores(shown, held) -> None:
    scores = by_name(plots(shown)["Scores that the judge writes"])
    won = by_name(plots(shown)["Place with the highest score"])
    assert set(scores) == {"after the cold start", "after RL"}, "no output of the base model parsed"
    for stage in ("cold_start", "rl"):
        parsed = [row for row in held[stage] if row["scores"] is not None and len(row["order"]) > 1]
        every = [score for row in parsed for score in row["scores"]]
        assert scores[NAMES[stage]] == pytest.approx({str(score): every.count(score) / len(every) for score in range(1, 11)})
        pairs = [[row["scores"][response] for response in row["order"]] for row in parsed if len(row["order"]) == 2]
        first = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
        assert won[NAMES[stage]]["place 1 of 2"] == pytest.approx(first)
    rows = [row for row in held["rl"] if len(row["order"]) == 2]
    best_first = sum(row["ground_truth"][row["order"][0]] == 1.0 for row in rows) / len(rows)
    assert won["where the best one is"]["place 1 of 2"] == pytest.approx(best_first)


def test_curves_over_steps_are_those_of_the_metrics(shown) -> None:
    found = plots(shown)
    for title, values in {
        "Entropy of the policy": [0.4, 0.3],
        "Length of the training samples": [71.0, 72.0],
        "Samples cut off at the token limit": [0.05, 0.05],
        "Groups of equal rewards": [0.25, 0.25],
        "Generated tokens per second": [500.0, 500.0],
    }.items():
        assert found[title]["series"][0]["y"] == pytest.approx(values), title


def test_the_same_row_stands_side_by_side(shown, held) -> None:
    comparisons = [one for section in shown["sections"] for one in section["comparisons"]]
    assert len(comparisons) == 5
    outcomes = []
    for one in comparisons:
        assert list(one["critiques"]) == list(NAMES.values())
        for stage, rows in held.items():
            row, critique = next(row for row in rows if row["prompt_id"] == one["id"]), one["critiques"][NAMES[stage]]
            assert (critique["text"], critique["correct"]) == (row["text"], row["correct"])
            assert critique["scores"] == (row["scores"] and [row["scores"][response] for response in row["order"]])
            assert critique["turns"] == [["user", f"query {one['id'].removeprefix('row-')} "]]
            assert critique["responses"] == [f"response {response} " for response in row["order"]]
            best = row["ground_truth"].index(max(row["ground_truth"]))
            assert critique["gold"] == (row["order"].index(best) if len(row["order"]) > 1 else None)
        outcomes.append((one["critiques"]["after the cold start"]["correct"], one["critiques"]["after RL"]["correct"]))
    assert outcomes == [(False, True), (False, True), (True, False), (True, True), (False, False)]


def test_queries_and_responses_instead_of_chat_markup(shown) -> None:
    critiques = [critique for section in shown["sections"] for critique in section["critiques"]]
    assert critiques and all(one["responses"] and "<|im_start|>" not in json.dumps([one["turns"], one["responses"]]) for one in critiques)


def test_a_run_in_progress_is_taken_apart_as_far_as_it_has_come(tmp_path) -> None:
    run = judge_run(tmp_path / "run", complete=False)
    for stage in ("cold_start", "rl"):
        (run / "trajectories" / f"heldout_{stage}.parquet").unlink()
    (run / "metrics.jsonl").unlink()
    write(run / "progress.json", {"started": 1.0, "host": "h", "pid": 1, "since": 2.0, "seconds": {"start": 60.0, "evaluate": 120.0}})
    document = told(run)
    (headline,) = document["sections"][0]["headlines"]
    assert [one["name"] for one in headline["figures"]] == ["base model"]
    assert (headline["facts"]["state"], headline["facts"]["minutes"]["value"], headline["facts"]["steps"]["value"]) == (
        "in progress",
        3.0,
        0,
    )
    assert "chance" in headline["facts"] and not any(section["comparisons"] for section in document["sections"])
    assert "Place with the highest score" not in plots(document) and "Scores that the judge writes" not in plots(document)


def test_a_policy_shows_its_rewards_and_kl_over_the_same_steps(tmp_path) -> None:
    run = policy_run(tmp_path / "policy", HOSTILE)
    document = told(run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    plot = plots(document)["Rewards and KL divergence over steps"]
    assert [panel["series"][0]["y"] for panel in plot["panels"]] == [
        [row[key] for row in rows] for key in ("judge_score", "gold", "bt", "kl")
    ]
    assert all(panel["series"][0]["x"] == [row["step"] for row in rows] for panel in plot["panels"])
    assert "the judge's score rises and gold does not" in plot["note"]
    gold = policy_run(tmp_path / "gold")
    write(gold / "metrics.jsonl", "".join(json.dumps({key: row[key] for key in ("step", "reward", "gold", "kl")}) + "\n" for row in rows))
    alone = plots(told(gold))["Rewards and KL divergence over steps"]
    assert len(alone["panels"]) == 2 and "judge" not in alone["note"]
    (headline,) = document["sections"][0]["headlines"]
    assert headline["measured"] == "10 held-out rows: answers that pass their checks"
    assert [(one["name"], one["value"]) for one in headline["figures"]] == [("base model", 0.2), ("after RL", 0.7)]
    comparison = next(one for section in document["sections"] for one in section["comparisons"])
    assert comparison["critiques"]["after RL"]["turns"] == [["user", "query 2"]]
    titles = {section["title"] for section in document["sections"]}
    assert not {"Training", "Where the judge is right", "Parse failures", "Sample critiques"} & titles


def test_an_answer_of_a_policy_passes_or_fails(tmp_path) -> None:
    """It has no scores; that is no parse failure."""
    sections = outline(collect([policy_run(tmp_path / "policy")]))
    verdicts = [critique.verdict for section in sections for critique in section.critiques]
    assert verdicts == ["passes its checks"] * 3 + ["fails its checks"] * 2


# --- how plots are drawn --------------------------------------------------------------------------------------------


def test_axes_do_not_magnify_half_a_point() -> None:
    def span(*values: float, percent: bool = True, **more) -> tuple[float, float]:
        return span_of([Curves("t", percent=percent, series=[Series("a", values, range(len(values)))], **more)])

    for values in ((0.5, 0.505), (0.0, 0.005), (0.995, 1.0), (0.0, 0.0)):
        low, high = span(*values)
        assert low < min(values) and high > max(values) and 0.1 <= high - low <= 0.111
        assert low >= -0.006 and high <= 1.006
    low, high = span(500.0, 500.5, percent=False)
    assert high - low == pytest.approx(0.1 * 500.5 * 1.1)
    low, high = span(0.5, 0.7, levels={"chance": 0.25})
    assert (low, high) == pytest.approx((0.25 - 0.0225, 0.7 + 0.0225))
    assert span_of([Curves("t")]) is None


def test_curves_that_are_equal_are_drawn_once() -> None:
    vote, majority, other = (
        Series(name, y, [1, 2], ((0.4, 0.6), None))
        for name, y in (("vote", (0.5, 0.6)), ("majority", (0.5003, 0.6)), ("meta", (0.5, 0.61)))
    )
    assert [one.name for one in drawn_once([vote, other, majority], percent=True)] == ["vote = majority", "meta"]
    assert [one.name for one in drawn_once([vote, majority], percent=False)] == ["vote", "majority"]
    shorter = Series("shorter", (0.5,), [1], ((0.4, 0.6),))
    assert len(drawn_once([vote, shorter], percent=True)) == 2
    assert len(drawn_once([vote, Series("expected", vote.y, vote.x, vote.ci95, expected=True)], percent=True)) == 2


def test_the_legend_names_both_of_two_equal_curves() -> None:
    figure = Curves("t", series=[Series(name, (0.5, 0.6), (1, 2)) for name in ("vote", "majority")], levels={"chance": 0.5}).draw()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["vote = majority", "chance"]
    assert len(figure.axes[0].get_lines()) == 2


def test_wide_plots_and_those_without_a_neighbour_take_a_row() -> None:
    small, many = Curves("t"), Categories("m", categories=list("abcdefghi"))
    assert many.wide and not small.wide
    one, two, three = (Curves(name) for name in "abc")
    assert without_neighbour([one, two, three]) == [three]
    assert without_neighbour([one, two]) == []
    assert without_neighbour([one, many, two, three]) == [one, many]


def test_the_place_of_the_best_response_is_shown_however_many_groups_there_are(tmp_path):
    """With two to six responses there are more groups than the plot of the accuracy has room for."""
    rows = [
        {"order": list(range(n)), "ground_truth": [float(i == best) for i in range(n)], "scores": [9] + [2] * (n - 1), "correct": best == 0,
         "parse_failure": None, "prompt_id": f"{n}-{best}", "source": "s", "group": 0, "sample": 0}
        for n in range(2, 7) for best in range(n)
    ]  # fmt: skip
    run = SimpleNamespace(judged={"rl": rows}, name="run")
    accuracy, places, *_ = judging.section([run]).plots
    assert len(accuracy.categories) == 5
    (best,) = (series for series in places.series if series.expected)
    assert best.y == pytest.approx([1 / n for n in range(2, 7) for _ in range(n)])
