from __future__ import annotations

import json
from pathlib import Path

import pytest
from page_folders import HOSTILE, benchmark, build, evaluation, judge_run, ladder, policy_run, scalar_run, training_run, write


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """One of each kind, and a second evaluation with hostile texts wherever a text can stand."""
    root = tmp_path_factory.mktemp("folders")
    write(root / "ladder" / "ladder.json", ladder())
    write(root / "eval" / "eval.json", evaluation())
    bad = benchmark(0.5, examples=[{"id": HOSTILE, "query": HOSTILE, "responses": [HOSTILE, "b"], "text": HOSTILE}])
    write(root / "hostile" / "eval.json", evaluation(**{HOSTILE: bad}) | {"model": HOSTILE})
    run = training_run(root / "run", text=HOSTILE, prompt=HOSTILE)
    return [root / "ladder", root / "eval", root / "hostile", run, scalar_run(root / "meta")]


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("page") / "page.html"
    build(folders, output, HOSTILE)
    return output


@pytest.fixture(scope="module")
def document(page) -> dict:
    return json.loads(page.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def page_of_runs(tmp_path_factory) -> Path:
    """The page of a judge's run, of votes with its model, and of a policy, with hostile texts in every query, response and output."""
    root = tmp_path_factory.mktemp("runs")
    run = judge_run(root / "judge", hostile=HOSTILE)
    write(run / "votes" / "eval.json", evaluation(made=benchmark(0.6)) | {"model": "elsewhere"})
    build([run, run / "votes", policy_run(root / "policy", HOSTILE)], root / "page.html", HOSTILE)
    return root / "page.html"
