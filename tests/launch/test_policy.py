"""`rlsys policy` on real parts: a tiny policy, judged by the tiny judge of the training tests, in one job, stopped and continued."""

import io
import json
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import ROOT, rlsys_here
from rich.console import Console

from actors.loops.rl import train
from rlsys.config.files import load_config
from rlsys.data.datasets import open_rows
from rlsys.data.readers import read
from rlsys.data.trajectories import REWARD_COLUMNS, TRAJECTORIES
from rlsys.io.metrics import MetricsLog
from rlsys.reporting.view.tables import open_sources
from rlsys.reporting.view.viewer import Viewer
from rlsys.rewards.checks import passes

PARTS, ANCHORS, K = 2, 1, 3


@pytest.fixture(scope="module")
def policy_run(straight_run, quiet, tiny_model, tmp_path_factory):
    """Two steps rewarded by the judge, then a second start for the third."""
    judge = ["policy.reward=judge", f"judge.model={straight_run[0].run.dir}", f"judge.k={K}", f"judge.max_responses={PARTS}"]
    sizes = ["data.heldout_rows=6", "rl.prompts_per_step=3", "rl.group_size=3", "rl.refill=false", "run.actor_timeout_s=1200"]
    more = ["policy.rewards=[{function: words, weight: 0.5}]", "checkpoint.every=1", f"model.path={tiny_model}"]
    folder = tmp_path_factory.mktemp("policy") / "run"

    def config(steps):
        settings = [*judge, *sizes, *more, f"run.dir={folder}", f"rl.steps={steps}"]
        return load_config(ROOT / "launch/configs/policy-tiny.yaml", settings)

    train(config(2), quiet, stages=("rl",), policy=True)
    return config(3), train(config(3), quiet, stages=("rl",), policy=True)


def samples_of(config, step):
    """The rows of a step's trajectories, by group."""
    table = pq.read_table(config.run.dir / "trajectories" / f"step_{step:06d}.parquet")
    assert table.schema.names == [*TRAJECTORIES.names, *REWARD_COLUMNS.names]
    groups = defaultdict(list)
    for row in table.to_pylist():
        groups[row["group"]].append(row)
    return groups


def judgements_of(config, step):
    """The judgements of a step: lines by group."""
    lines = defaultdict(list)
    for line in (config.run.dir / "judgements" / f"step_{step:06d}.jsonl").read_text().splitlines():
        lines[json.loads(line)["group"]].append(json.loads(line))
    return lines


def test_the_run_goes_on_where_it_stopped(policy_run):
    config, summary = policy_run
    assert summary.rl_steps == 3 and [row["step"] for row in MetricsLog.read(config.run.dir)] == [1, 2, 3]
    asked = [row["prompt_id"] for step in (1, 2, 3) for group in samples_of(config, step).values() for row in group[:1]]
    assert len(set(asked)) == 9, "the second start drew rows of the first one again"
    assert summary.heldout.keys() == {"base", "rl"} and summary.paired["rl_minus_base"].accuracy_parsed.n == 6


@pytest.mark.nightly
def test_prompts_without_checks_train_a_policy_that_is_not_evaluated(policy_run, tmp_path):
    loud = Console(file=io.StringIO(), width=400)
    config, _ = policy_run
    rows = open_rows(config.data.train, config.data, config.seed)
    file, folder = tmp_path / "prompts.jsonl", tmp_path / "run"
    file.write_text("".join(json.dumps({"prompt": rows[number].context[0]["content"]}) + "\n" for number in range(12)))
    data = config.data.model_copy(update={"train": file, "heldout": file, "format": "prompts"})
    run, rl = config.run.model_copy(update={"dir": folder}), config.rl.model_copy(update={"steps": 1})
    other = config.model_copy(update={"data": data, "run": run, "rl": rl})
    summary = train(other, loud, stages=("rl",), policy=True)
    assert summary.rl_steps == 1 and summary.heldout == {} and "no held-out row has checks" in loud.file.getvalue()
    (metrics,) = MetricsLog.read(folder)
    assert metrics["judgements"] > 0 and "gold" not in metrics
    assert (folder / "checkpoints/step_000001/model/config.json").is_file()
    page = tmp_path / "page.html"
    assert rlsys_here("report", folder, "--output", page).returncode == 0


def test_checks_are_measured_as_they_stand_in_the_rows(policy_run):
    config, _ = policy_run
    rows = open_rows(config.data.train, config.data, config.seed)
    for metrics in MetricsLog.read(config.run.dir):
        golds = []
        for group in samples_of(config, metrics["step"]).values():
            record = rows[int(group[0]["prompt_id"].split("-")[1])]
            for row in group:
                assert record.context[0]["content"] in row["prompt"] and "Response 1" not in row["prompt"]
                assert row["gold"] == row["correct"] == (row["finish_reason"] == "stop" and passes(record.checks, row["text"]))
                golds.append(row["gold"])
        assert metrics["gold"] == pytest.approx(np.mean(golds)) and "accuracy" not in metrics


def test_every_reward_can_be_worked_out_from_the_judgements(policy_run):
    """Parts of two responses, one of them shared: a response's score is its mean, shifted by the anchor's."""
    config, _ = policy_run
    rewarded = 0
    for metrics in MetricsLog.read(config.run.dir):
        groups, lines = samples_of(config, metrics["step"]), judgements_of(config, metrics["step"])
        counted = dict.fromkeys(("judgements", "judgements_failed", "groups_unjudged", "groups_identical"), 0)
        for number, group in groups.items():
            texts = {row["text"] for row in group}
            counted["groups_identical"] += len(texts) == 1
            means = []
            for line in lines[number]:
                assert len(line["responses"]) == PARTS and set(line["responses"]) <= texts and len(line["samples"]) == K
                parsed = [sample for sample in line["samples"] if sample["scores"] is not None]
                counted["judgements"] += K
                counted["judgements_failed"] += K - len(parsed)
                back = [[sample["scores"][sample["order"].index(place)] for sample in parsed] for place in range(PARTS)]
                means.append({text: np.mean(own) for text, own in zip(line["responses"], back)} if parsed else None)
            assert set().union(*(line["responses"] for line in lines[number])) == (texts if len(texts) > 1 else set())
            if not means or None in means:
                counted["groups_unjudged"] += bool(means)
                assert all(row["reward"] is row["judge_score"] is None and row["advantage"] == 0 for row in group)
                continue
            anchor = lines[number][0]["responses"][0]
            level = np.mean([part[anchor] for part in means])
            score = {text: value + level - part[anchor] for part in means for text, value in part.items()}
            for row in group:
                rewarded += 1
                assert row["judge_score"] == pytest.approx(score[row["text"]], abs=1e-4)
                words = sum(any(map(str.isalnum, word)) for word in row["text"].split())
                assert row["reward"] >= row["judge_score"] and (row["reward"] > row["judge_score"] or words == 0)
        assert counted == {name: metrics[name] for name in counted}
    assert rewarded, "no group was judged: nothing was tested"


def test_the_policy_was_trained_and_its_weights_reached_the_engine(policy_run):
    config, _ = policy_run
    metrics = MetricsLog.read(config.run.dir)
    assert any(row["groups_trained"] > 0 and not row["skipped"] for row in metrics)
    assert max(row["mismatch"] for row in metrics if row.get("mismatch") is not None) < config.rl.mismatch_float32 / 4


def test_the_policys_model_has_neither_the_form_nor_the_card_of_a_judge(policy_run):
    config, _ = policy_run
    models = list((config.run.dir / "checkpoints").glob("*/model"))
    assert models and all((model / "config.json").is_file() for model in models)
    assert not [file for model in models for file in (model / "rlsys.json", model / "README.md") if file.exists()]


def test_show_view_and_report_read_the_run(policy_run, tmp_path):
    config, _ = policy_run
    viewer = Viewer(open_sources([config.run.dir], ["run"]))
    outcomes = "".join(group["outcomes"] for group in viewer.groups({"run": "0", "table": "step_000001"})["groups"])
    golds = [row["gold"] for group in samples_of(config, 1).values() for row in group]
    assert sorted(outcomes) == sorted("wr"[gold] for gold in golds)
    shown = rlsys_here("show", config.run.dir, "--step", 1)
    assert shown.returncode == 0 and "its checks" in shown.stdout
    page = tmp_path / "page.html"
    written = rlsys_here("report", config.run.dir, "--output", page)
    assert written.returncode == 0, written.stderr
    assert "pass their checks" in page.read_text()


def test_all_mistakes_are_reported_before_anything_starts(tmp_path):
    mistakes = rlsys_here(
        "policy", ROOT / "launch/configs/policy-tiny.yaml", "policy.reward=judge", "judge.k_meta=9", f"run.dir={tmp_path}/r"
    )
    assert mistakes.returncode == 2
    assert "set judge.model" in mistakes.stderr and "at most judge.k" in mistakes.stderr and not (tmp_path / "r").exists()


def test_its_samples_become_rows_for_a_judge(policy_run, tmp_path):
    config, _ = policy_run
    groups = [group for step in (1, 2, 3) for group in samples_of(config, step).values()]
    passed = [{side: {row["text"] for row in group if row["gold"] is side} for side in (True, False)} for group in groups]
    sides = [(found[True] - found[False], found[False] - found[True]) for found in passed]
    expected = sum(bool(right and wrong) for right, wrong in sides)
    file = tmp_path / "samples.jsonl"
    result = rlsys_here("data", "samples", config.run.dir, "--output", file)
    if not expected:
        assert result.returncode == 2 and "nothing to compare" in result.stderr and not file.exists()
        return
    rows = list(read(file, "rlsys", strict=True))
    by_group = Counter(row.id.rpartition("/")[0] for row in rows)
    assert len(by_group) == expected and max(by_group.values()) <= 2 and f"{len(rows)} records" in result.stdout
    # The others may pass, too, but were cut off.
    assert all(passes(row.checks, row.responses[row.best]) for row in rows)
