"""`rlsys view` and `rlsys top` on a real run."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request

import pytest
from commands import ROOT, as_in_a_terminal, rlsys_here, run_rlsys

from rlsys.documents.runs import RunSummary
from rlsys.io.metrics import MetricsLog
from rlsys.reporting.top.snapshot import take


def test_the_viewer_serves_a_real_run(straight_run) -> None:
    config, _ = straight_run
    command = [sys.executable, "-u", "-m", "launch.cli", "view", str(config.run.dir), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=as_in_a_terminal) as process:
        try:
            address = process.stdout.readline().split()[0]
            with urllib.request.urlopen(
                f"{address}api/groups?run=0&table=heldout_base&other_table=heldout_rl&other_run=0", timeout=60
            ) as answer:
                document = json.loads(answer.read())
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0 and process.stdout.read() == "stopped\n"
    heldout = RunSummary.model_validate_json((config.run.dir / "summary.json").read_text()).heldout
    assert document["total"] == heldout["base"].n and document["unmatched"] == 0
    for stage, groups in (("base", document["groups"]), ("rl", [group["other"] for group in document["groups"]])):
        outcomes = "".join(group["outcomes"] for group in groups)
        assert outcomes.count("r") / len(outcomes) == heldout[stage].accuracy
        assert outcomes.count("f") == sum(heldout[stage].parse_failures.values())


def test_an_address_that_is_taken_is_named(tmp_path) -> None:
    (tmp_path / "trajectories").mkdir()
    result = rlsys_here("view", tmp_path, "--host", "203.0.113.1", "--port", "1")
    assert result.returncode == 2
    assert "--host 203.0.113.1 --port 1: cannot be bound" in result.stderr and "choose another --port" in result.stderr


def test_a_folder_without_judgements_is_refused(tmp_path) -> None:
    result = rlsys_here("view", tmp_path)
    assert result.returncode == 2 and "holds no judgements; expected a run folder" in result.stderr


def test_the_terminal_view_shows_a_real_run(straight_run) -> None:
    pytest.importorskip("textual")
    from rlsys.reporting.top.app import Top

    config, _ = straight_run
    folder = config.run.dir

    async def session() -> list[list[str]]:
        app = Top(lambda: take(folder), every_s=0.1)
        async with app.run_test(size=(120, 50)) as pilot:
            for _ in range(600):
                if app.query_one("#steps").row_count:
                    break
                await pilot.pause(0.1)
            return [[cell.plain for cell in app.query_one("#steps").get_row_at(number)] for number in range(config.rl.steps)]

    rows = asyncio.run(session())
    metrics = MetricsLog.read(folder)
    assert [row[:2] for row in rows] == [[str(one["step"]), f"{one['reward']:+.3f}"] for one in reversed(metrics)]
    snapshot = take(folder)
    assert snapshot.state == "complete" and snapshot.step == snapshot.steps == config.rl.steps
    heldout = json.loads((folder / "summary.json").read_text())["heldout"]
    assert {one.stage: one.accuracy for one in snapshot.heldout} == {stage: one["accuracy"] for stage, one in heldout.items()}
    assert {actor.name for actor in snapshot.actors} >= {"rollout-0", "learner-0", "reward"}
    assert sum(snapshot.phases.values()) == pytest.approx(metrics[-1]["seconds/step"])


def test_one_snapshot_as_json(straight_run) -> None:
    config, _ = straight_run
    result = run_rlsys("top", config.run.dir, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["state"] == "complete"
    assert "use --json" in run_rlsys("top", config.run.dir).stderr
