"""Figures of an evaluation from rows that were written down, against plain loops and figures worked out by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from rlsys.data.readers import DataError
from rlsys.documents.evaluation import BenchmarkReport, EvalReport
from rlsys.evaluation import by_group, eval_passes, markdown_page, overview, score_benchmark, unsupported_reason
from rlsys.evaluation.benchmarks import Benchmark, load
from rlsys.evaluation.passes import greedy, greedy_order
from rlsys.evaluation.tables import _biases
from rlsys.judging.requests import JudgeResult, RenderedRequest
from rlsys.judging.voting import STRATEGIES, Options, SampleTable, decide, find_strategy, strategy, subsets


def scored(*arguments) -> dict:
    """What eval.json holds."""
    return score_benchmark(*arguments).to_json()


def report(found: dict) -> EvalReport:
    return EvalReport(model="m|n", k=[1, 2, 4], draws=5, temperature=0.5, seed=0, benchmarks={"format:rlsys": found})


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def preference(number: int, n: int = 2, family: str = "all") -> dict:
    """A row whose first response is the best, and the second the longest."""
    responses = [f"answer {number}.{i}" + " and more" * (i == 1) for i in range(n)]
    context = [{"role": "user", "content": f"question {number}?"}]
    return {"id": str(number), "context": context, "responses": responses, "rewards": [1] + [0] * (n - 1), "family": family}


@pytest.fixture
def pairs(tmp_path) -> Benchmark:
    rows = [preference(number, 2 + 2 * (number % 3 == 0), "ab"[number % 2]) for number in range(12)]
    return load("format:rlsys", written(tmp_path / "pairs.jsonl", rows))


def sample(rng: random.Random, n: int, parsed: float = 0.8, order: list[int] | None = None, **more) -> dict:
    """A sample with scores that are never equal, so that nothing depends on how ties are broken."""
    order = order or rng.sample(range(n), n)
    outcome = {"scores": [rng.uniform(1, 10) for _ in order]} if rng.random() < parsed else {"scores": None, "failure": "no_box"}
    text = "".join(rng.choices("ab", k=4))
    numbers = {"meta_reward": rng.gauss(0, 2), "logprob": -rng.uniform(1, 60), "tokens": rng.randint(5, 50)}
    return {"order": order, **outcome, **numbers, "text": text} | more


def rows_of(benchmark: Benchmark, k: int, seed: int = 0, parsed: float = 0.8) -> dict[str, list[dict]]:
    rng = random.Random(seed)

    def rows(count: int) -> list[dict]:
        return [{"id": item.id, "samples": [sample(rng, item.record.n, parsed) for _ in range(count)]} for item in benchmark.items]

    return {"samples": rows(k), "greedy": rows(1)}


def skip(row: dict) -> dict:
    return row | {"samples": [], "skipped": "its prompt has 9 tokens, more than 8"}


def vote_point(benchmark: Benchmark, rows: dict, ks: list[int], k: int, draws: int, seed: int = 0) -> dict:
    return scored(benchmark, rows, [find_strategy("vote")], ks, draws, seed)["strategies"]["vote"][str(k)]


@pytest.mark.parametrize("k", [3, 8])
def test_vote_equals_a_loop_over_draws_items_and_samples(pairs, k):
    rows = rows_of(pairs, 8)
    rows["samples"][4] = skip(rows["samples"][4])
    found = vote_point(pairs, rows, [3, 8], k, draws=7)
    right = tokens = 0
    for draw in subsets(8, k, 7, 0):
        for item, row in zip(pairs.items, rows["samples"]):
            totals = [0.0] * item.record.n
            for place in draw if row["samples"] else []:
                one = row["samples"][place]
                tokens += one["tokens"]
                for shown, response in enumerate(one["order"]):
                    totals[response] += one["scores"][shown] if one["scores"] else 0.0
            right += any(totals) and totals.index(max(totals)) == 0
    assert found["overall"]["value"] == pytest.approx(right / (7 * 12)) and found["overall"]["n"] == 12
    assert (found["samples_per_item"], found["tokens_per_item"]) == (k, pytest.approx(tokens / (7 * 11)))


@pytest.mark.parametrize("name", ["vote", "mean", "majority", "meta", "meta_weighted", "rpc", "adaptive", "abstain"])
@pytest.mark.parametrize("k", [1, 5])
def test_every_strategy_equals_rlsys_vote_on_each_subset(pairs, name, k):
    """`decide` (what `rlsys vote` runs) sees one draw of one row at a time."""
    rows, draws, chosen = rows_of(pairs, 9, seed=3), 6, find_strategy(name)
    found = scored(pairs, rows, [chosen], [1, 5, 9], draws, 2)["strategies"][name][str(k)]
    right: dict[str, list[bool]] = {"a": [], "b": []}
    spent, tokens, given = [], [], []
    for draw in subsets(9, k, draws, 2):
        for item, row in zip(pairs.items, rows["samples"]):
            table = SampleTable(chosen.needs)
            table.add({"id": item.id, "samples": [row["samples"][place] for place in draw]})
            (verdict,) = decide(table, chosen, Options())
            if verdict["tied"]:  # broken by other draws of the shuffle; the expectation is compared below
                right[item.subset].append(float("nan"))
            else:
                right[item.subset].append(verdict["best"] == 0)
            spent.append(verdict["samples"])
            tokens.append(verdict["tokens"])
            given.append(verdict["best"] is not None)
    assert found["samples_per_item"] == pytest.approx(np.mean(spent))
    assert found["tokens_per_item"] == pytest.approx(np.mean(tokens))
    assert found["coverage"] == pytest.approx(np.mean(given))
    assert found["others"]["verdicts"] == pytest.approx(np.mean(given))
    for group, verdicts in right.items():
        untied = np.array(verdicts, float)
        low, high = np.nansum(untied) / len(untied), (np.nansum(untied) + np.isnan(untied).sum()) / len(untied)
        assert low - 1e-9 <= found["groups"][group]["value"] <= high + 1e-9
    if name in ("vote", "mean", "meta", "meta_weighted", "abstain"):
        assert not np.isnan(np.concatenate(list(right.values()))).any(), "scores never tie"
        assert found["overall"]["value"] == pytest.approx(np.mean(np.concatenate(list(right.values()))))


def test_what_adaptive_and_abstain_save(tmp_path):
    """Twelve unanimous samples of 10 tokens, by one point: the test stops after 6, and a margin of 1 is enough for a verdict."""
    benchmark = load("format:rlsys", written(tmp_path / "rows.jsonl", [preference(number) for number in range(2)]))
    one = {"order": [1, 0], "scores": [4, 5], "tokens": 10}
    rows = [{"id": "all/0", "samples": [one] * 12}, {"id": "all/1", "samples": [one] * 6 + [one | {"scores": [5, 4]}] * 6}]
    found = scored(
        benchmark,
        {"samples": rows, "greedy": [row | {"samples": [one | {"text": ""}]} for row in rows]},
        [find_strategy("adaptive"), find_strategy("abstain")],
        [12],
        1,
        0,
    )["strategies"]
    adaptive, abstain = found["adaptive"]["12"], found["abstain"]["12"]
    assert (adaptive["samples_per_item"], adaptive["tokens_per_item"], adaptive["coverage"]) == ((6 + 12) / 2, 90, 1)
    assert (abstain["samples_per_item"], abstain["tokens_per_item"], abstain["coverage"]) == (12, 120, 0.5)
    assert abstain["overall"]["value"] == 0.5


def test_many_draws_of_one_sample_come_to_the_mean_over_the_samples(pairs):
    rows = rows_of(pairs, 4)
    mean = np.mean(
        [
            one["scores"] is not None and one["order"][int(np.argmax(one["scores"]))] == 0
            for row in rows["samples"]
            for one in row["samples"]
        ]
    )
    assert vote_point(pairs, rows, [1, 4], 1, draws=6000)["overall"]["value"] == pytest.approx(mean, abs=0.02)


def test_all_samples_at_once_do_not_depend_on_the_draw(pairs):
    rows = rows_of(pairs, 6)
    few, many = (vote_point(pairs, rows, [6], 6, draws, seed) for draws, seed in ((1, 1), (9, 2)))
    assert few["overall"]["value"] == many["overall"]["value"]
    assert few["overall"]["ci95"] == many["overall"]["ci95"]


def test_greedy_worked_out_by_hand(tmp_path):
    """Right, wrong, tied, not parsed, not asked: (1 + 0 + 1/2 + 0 + 0) / 5."""
    benchmark = load("format:rlsys", written(tmp_path / "rows.jsonl", [preference(number) for number in range(5)]))
    said = [([1, 0], [2, 9]), ([0, 1], [2, 9]), ([0, 1], [5, 5]), ([0, 1], None), None]
    rows = []
    for item, outcome in zip(benchmark.items, said):
        row = {"id": item.id, "samples": []}
        if outcome is None:
            rows.append(skip(row))
            continue
        order, scores = outcome
        rows.append(row | {"samples": [{"order": order, "scores": scores, "failure": "no_box", "tokens": 10, "text": f"said {item.id}"}]})
    rows[3]["samples"][0]["truncated"] = True
    found = scored(benchmark, {"samples": rows, "greedy": rows}, [find_strategy("vote")], [1], 2000, 0)
    assert ("cut off at rollout.max_tokens", "1 of 1 failures", "1 of 1 failures") in tuple(_biases(BenchmarkReport.model_validate(found)))
    assert found["greedy"]["overall"]["value"] == pytest.approx(0.3, abs=0.01)
    assert (found["greedy"]["coverage"], found["greedy"]["tokens_per_item"], found["greedy"]["samples_per_item"]) == (0.6, 10, 1)
    assert (found["skipped"], found["skipped_ids"]) == (1, ["all/4"])
    assert found["strategies"]["vote"]["1"]["overall"]["value"] == found["greedy"]["overall"]["value"]
    assert found["parse_failures"]["reasons"] == {"no_box": 1} and found["parse_failures"]["greedy"]["samples"] == 4
    assert found["baselines"] == {
        "chance": {"value": pytest.approx(0.5, abs=0.1)}, "first": {"value": 1.0}, "longer": {"value": 0.0}
    }  # fmt: skip
    # The longest response (the second) won 0, 1 and half of the last: it should have won none.
    assert found["length"]["longest_wins"] == 0.5 and found["length"]["longest_is_best"] == 0
    examples = {example["id"]: example for example in found["examples"]}
    assert list(examples)[0] == "all/0" and examples.keys() == {"all/0", "all/1", "all/2", "all/3"} and list(examples)[-1] == "all/3"
    assert examples["all/0"] == {
        "id": "all/0", "query": "question 0?", "responses": list(benchmark.items[0].record.responses), "gold": 0, "best": 0,
        "correct": True, "text": "said all/0", "order": [1, 0], "scores": [2, 9],
    }  # fmt: skip
    assert [examples[f"all/{i}"]["best"] for i in (1, 2, 3)] == [1, None, None]


def test_examples_are_three_of_each(pairs):
    found = scored(pairs, rows_of(pairs, 1, parsed=1.0), [find_strategy("vote")], [1], 1, 0)["examples"]
    assert [example["correct"] for example in found] == [True] * 3 + [False] * 3
    assert all((example["best"] == example["gold"]) is example["correct"] for example in found)


def test_wrong_critiques_are_shown_before_those_that_did_not_parse(pairs):
    rows = rows_of(pairs, 1, parsed=1.0)
    for number, row in enumerate(rows["greedy"]):
        (one,) = row["samples"]
        one["scores"] = None if number < 8 else [1 + (response != 0) for response in one["order"]]
    shown = {example["id"] for example in scored(pairs, rows, [find_strategy("vote")], [1], 1, 0)["examples"]}
    # Where four responses are there, three share the top: no pick, and wrong too.
    assert len(shown) == 3 and shown < {item.id for item in pairs.items[8:]}


def test_both_orders_of_a_pair_are_compared(tmp_path):
    """Two pairs: one winner stays, the other goes with the place. A benchmark that fixes both orders needs no further file."""
    benchmark = load("format:rlsys", written(tmp_path / "rows.jsonl", [preference(number) for number in range(2)]))

    def row(item: str, order: list[int], scores: list[int]) -> dict:
        return {"id": item, "samples": [{"order": order, "scores": scores, "tokens": 1, "text": ""}]}

    first = [row("all/0", [0, 1], [9, 2]), row("all/1", [1, 0], [9, 2])]
    second = [row("all/0", [1, 0], [2, 9]), row("all/1", [0, 1], [9, 2])]
    found = scored(benchmark, {"samples": first, "greedy": first, "swapped": second}, [find_strategy("vote")], [1], 3, 0)["position"]
    assert (found["first"], found["first_expected"], found["other_order"], found["rows"]) == (0.75, 0.5, 0.5, 2)
    assert (found["samples"]["first"], found["samples"]["rows"]) == (1.0, 0)
    judgebench = {"pair_id": "1", "source": "livebench-math", "question": "?", "response_A": "A", "response_B": "B", "label": "A>B"}
    fixed = load("judgebench", written(tmp_path / "judgebench.jsonl", [judgebench]))
    assert [part.name for part in eval_passes(fixed, 2, 0.5, 0)] == ["samples", "greedy"]
    assert [part.ask(item).orders[-1] for part in eval_passes(fixed, 2, 0.5, 0) for item in fixed.items] == [(0, 1), (1, 0)] * 2
    both = [row(item.id, list(item.order), [9, 2]) for item in fixed.items]
    assert scored(fixed, {"samples": both, "greedy": both}, [find_strategy("vote")], [1], 3, 0)["position"]["other_order"] == 0.0


def test_what_is_asked(pairs):
    found = {part.name: part for part in eval_passes(pairs, 5, 0.5, 7)}
    assert list(found) == ["samples", "greedy", "swapped"]
    assert [(part.temperature, part.text) for part in found.values()] == [(0.5, False), (0.0, True), (0.0, True)]
    assert {item.record.n for item in found["swapped"].items} == {2} and len(found["swapped"].items) == 8
    for item in pairs.items:
        asked = found["samples"].ask(item)
        assert len(asked.orders) == len(set(asked.seeds)) == 5 and all(
            sorted(order) == list(range(item.record.n)) for order in asked.orders
        )
        assert greedy(item).orders == [greedy_order(item)]
    for item in found["swapped"].items:
        assert found["swapped"].ask(item).orders[0] == found["greedy"].ask(item).orders[0][::-1]
        assert {tuple(order) for order in eval_passes(pairs, 64, 0.5, 7)[0].ask(item).orders} == {(0, 1), (1, 0)}
    assert "swapped" not in [part.name for part in eval_passes(pairs, 5, 0.5, 7, swap=False)]


def test_settings_know_the_contents_and_not_the_truth(pairs, tmp_path):
    def content(**change) -> list:
        rows = [preference(number) | change for number in range(3)]
        return [part.settings for part in eval_passes(load("format:rlsys", written(tmp_path / "x.jsonl", rows)), 2, 0.5, 0)]

    assert content() == content(rewards=[0, 1]) != content(responses=["x", "y"])
    assert eval_passes(pairs, 2, 0.5, 0)[0].settings != eval_passes(pairs, 2, 0.5, 1)[0].settings
    assert eval_passes(pairs, 2, 0.5, 0)[1].settings == eval_passes(pairs, 4, 0.7, 1)[1].settings


def test_a_row_keeps_texts_where_asked_to(pairs):
    sampled, certain, _ = eval_passes(pairs, 1, 0.5, 0)
    item = pairs.items[1]
    answer = JudgeResult(RenderedRequest(greedy(item), []), [{"order": [0, 1], "scores": [1, 2], "tokens": 7, "text": "so"}])
    assert certain.row(item, answer)["samples"][0]["text"] == "so" and "text" not in sampled.row(item, answer)["samples"][0]
    assert sampled.row(item, answer)["tokens"] == 7
    assert certain.row(item, JudgeResult(RenderedRequest(greedy(item), [], "too long"))) == {
        "id": item.id, "source": item.record.source, "samples": [], "tokens": 0, "prompt_tokens": 0, "skipped": "too long"
    }  # fmt: skip


def test_single_responses_are_scored_by_area(tmp_path):
    rows = [{"id": str(i), "context": [{"role": "user", "content": "?"}], "responses": [f"{i}"], "rewards": [i % 2]} for i in range(4)]
    benchmark = load("format:rlsys", written(tmp_path / "singles.jsonl", rows))
    scores = [3, 8, 5, 4]  # wrong, right, wrong, right: of the four pairs (right, wrong) 8 wins both and 4 one
    said = [
        {"id": item.id, "samples": [{"order": [0], "scores": [given], "tokens": 3, "text": "t"}]}
        for item, given in zip(benchmark.items, scores)
    ]
    found = scored(benchmark, {"samples": said, "greedy": said}, [find_strategy("mean")], [1], 5, 0)
    assert found["metric"] == "roc_auc" and found["greedy"]["overall"]["value"] == 0.75
    # Above the middle, 5.5, is said to be right.
    assert {(example["gold"], example["scores"][0], example["correct"], example["best"]) for example in found["examples"]} == {
        (0, 3, True, None), (1, 8, True, None), (0, 5, True, None), (1, 4, False, None)
    }  # fmt: skip
    assert found["position"]["first"] is None and found["length"]["n"] == 0


def singles(path: Path, count: int) -> Benchmark:
    rows = [{"id": str(i), "context": [{"role": "user", "content": "?"}], "responses": [f"{i}"], "rewards": [i % 2]} for i in range(count)]
    return load("format:rlsys", written(path, rows))


@pytest.mark.parametrize("name", ["vote", "mean", "meta", "meta_weighted", "abstain"])
def test_rows_are_compared_by_means_whatever_did_not_parse(tmp_path, name):
    """A judge who scores right responses a point higher: unparsed samples cost what fewer samples cost, and no more."""
    benchmark, rng = singles(tmp_path / "singles.jsonl", 400), random.Random(1)
    rows, scores = [], []
    for number, item in enumerate(benchmark.items):
        own = [min(10, max(1, round(rng.gauss(5.5 + number % 2, 2)))) if rng.random() < 0.7 else None for _ in range(8)]
        samples = [{"order": [0], "scores": None if one is None else [one], "meta_reward": 0.0, "tokens": 3, "text": "t"} for one in own]
        rows.append({"id": item.id, "samples": samples})
        parsed = [one for one in own if one is not None]
        scores.append(sum(parsed) / len(parsed) if parsed else None)
    greedy = [row | {"samples": row["samples"][:1]} for row in rows]
    found = scored(benchmark, {"samples": rows, "greedy": greedy}, [find_strategy(name)], [8], 1, 0)["strategies"][name]["8"]["overall"]
    right, wrong = (list(scores[start::2]) for start in (1, 0))
    assert None not in scores  # at 0.3 to the eighth, no row is without a verdict here
    won = sum((high > low) + (high == low) / 2 for high in right for low in wrong) / (len(right) * len(wrong))
    assert found["value"] == pytest.approx(won, abs=1e-9)


def test_ties_of_reward_bench_2_are_compared_by_means(tmp_path):
    """Two samples of three parsed in one row and three in the other: by sums the margins would be 10 and 6, by means they are 5 and 2."""
    row = {"prompt": "Name a colour.", "chosen": ["red", "blue"], "rejected": ["seven"], "subset": "Ties"}
    rows = [row | {"id": "ref:0", "chosen": ["red"]}, row | {"id": "tied:0"}]
    benchmark = load("rewardbench2", written(tmp_path / "ties.jsonl", rows))
    given = {1: [[7, 5], [7, 5], [7, 5]], 2: [[9, 6, 2], [9, 6, 2], None]}
    said = [
        {"id": item.id, "samples": [{"order": list(range(item.record.n)), "scores": one, "tokens": 1, "text": ""} for one in given[index]]}
        for index, item in enumerate(benchmark.items, 1)
    ]
    document = scored(benchmark, {"samples": said, "greedy": said}, [find_strategy("vote")], [3], 1, 0)
    found = document["strategies"]["vote"]["3"]["overall"]
    # Margins 2 in ref and 6 - 2 = 4 in tied, spread 3: right in both rows (0.6), 4 > 3 (0.2), 2 is not (0), tanh(2 / 3 - 1).
    assert found["value"] == pytest.approx(0.8 + 0.01 * np.tanh(2 / 3 - 1))


def test_which_strategies_fit(pairs, tmp_path):
    row = {"id": "1", "context": [{"role": "user", "content": "?"}], "responses": ["a"], "rewards": [1]}
    singles = load("format:rlsys", written(tmp_path / "one.jsonl", [row]))

    def fit(benchmark: Benchmark, meta_rm: bool) -> set[str]:
        built_in = (chosen for chosen in STRATEGIES.values() if chosen.function.__module__.startswith("rlsys."))
        return {chosen.name for chosen in built_in if unsupported_reason(chosen, benchmark, meta_rm) is None}

    assert fit(pairs, True) == {"vote", "mean", "majority", "meta", "meta_weighted", "rpc", "adaptive", "abstain"}
    assert fit(pairs, False) == fit(pairs, True) - {"meta", "meta_weighted"}
    assert fit(singles, True) == {"vote", "mean", "meta", "meta_weighted", "abstain"}
    assert "self-certainty" in unsupported_reason(find_strategy("borda"), pairs, True) and "--meta-rm" in unsupported_reason(
        find_strategy("meta"), pairs, False
    )


def test_a_strategy_of_ones_own_is_drawn_like_the_others(pairs):
    @strategy("lowest_of_all", source="a test")
    def lowest(samples, options):
        return samples.scores.min(axis=-2)

    try:
        rows = rows_of(pairs, 4, parsed=1.0)
        found = scored(pairs, rows, [lowest], [4], 2, 0)["strategies"]["lowest_of_all"]["4"]["overall"]["value"]
    finally:
        del STRATEGIES["lowest_of_all"]
    right = 0
    for item, row in zip(pairs.items, rows["samples"]):
        own = [[one["scores"][one["order"].index(response)] for response in range(item.record.n)] for one in row["samples"]]
        worst = [min(column) for column in zip(*own)]
        right += worst.index(max(worst)) == 0
    assert found == pytest.approx(right / 12)


def test_too_few_samples_are_an_error(pairs):
    rows = rows_of(pairs, 2)
    with pytest.raises(DataError, match="2 samples, fewer than k = 4"):
        scored(pairs, rows, [find_strategy("vote")], [1, 4], 2, 0)


def test_large_tables_are_worked_on_in_portions(pairs, monkeypatch):
    rows = rows_of(pairs, 6)
    whole = scored(pairs, rows, [find_strategy("vote"), find_strategy("adaptive")], [2, 6], 11, 0)
    monkeypatch.setattr("rlsys.evaluation.scoring.CELLS", 1)
    assert scored(pairs, rows, [find_strategy("vote"), find_strategy("adaptive")], [2, 6], 11, 0) == whole


def test_the_tables(pairs):
    found = scored(pairs, rows_of(pairs, 4), [find_strategy(name) for name in ("vote", "adaptive")], [1, 2, 4], 5, 0)
    document = report(found)
    grid = overview(document)
    names = [row[0] for row in grid.rows]
    assert names == [
        "greedy",
        "vote@1",
        "vote@2",
        "vote@4",
        "adaptive@4",
        *(f"baseline: {name}" for name in ("chance", "first", "longer wins")),
    ]
    assert [row[0] for row in overview(document, every=True).rows][4:7] == ["adaptive@1", "adaptive@2", "adaptive@4"]
    figure = found["strategies"]["vote"]["4"]["overall"]
    assert figure["ci95"] is None and grid.rows[3][1] == f"{figure['value']:.1%} (too few rows)"
    figure["ci95"] = [0.25, 0.75]
    assert overview(report(found)).rows[3][1] == f"{figure['value']:.1%} (25.0% to 75.0%)"
    text = markdown_page(document, [grid, *by_group(document)])
    assert (
        text.startswith("# Evaluation\n\nModel m|n; temperature 0.5, seed 0.") and "| vote@4 |" in text and "parse failure: no_box" in text
    )
    for table in text.split("\n\n## ")[1:]:
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
