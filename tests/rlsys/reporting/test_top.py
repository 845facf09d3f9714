"""`rlsys top`: snapshots of hand-made run folders, and the terminal view driven by textual's own pilot."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from page_folders import HOSTILE, training_run, write

from rlsys.config.files import load_config, save_config
from rlsys.data.readers import DataError
from rlsys.documents.progress import Progress
from rlsys.io.progress import ProgressFile, read_progress
from rlsys.reporting.top.app import head
from rlsys.reporting.top.snapshot import TAIL, Actor, Heldout, read_tail, take


@pytest.fixture
def run(tmp_path):
    folder = training_run(tmp_path / "run", steps=3)
    save_config(load_config(None, ["rl.steps=7", "model.path=models/small"]), folder / "config.yaml")
    write(folder / "actors.json", {"rollout-0": {"device": "cpu", "vllm": "0.32.0"}, "reward": {"name": "reward"}})
    write(folder / "logs/rollout-0.log", "INFO fine\nERROR 11-28 engine: no memory\nRuntimeError: out of luck\n")
    return folder


def test_a_run_without_progress_is_shown_by_its_files(run) -> None:
    snapshot = take(run)
    assert (snapshot.name, snapshot.model, snapshot.state, snapshot.step, snapshot.steps) == ("run", "models/small", "unknown", 3, 7)
    assert snapshot.series("reward") == [0.1, 0.2, 0.3]
    assert snapshot.phases == {"wait_for_samples": 3.0, "train": 2.0}
    assert snapshot.heldout == [Heldout("base", 4, -0.5, 0.25, 1), Heldout("step_000002", 4, 0.5, 0.75, 1)]
    assert [(actor.name, actor.about, actor.quiet_s is None) for actor in snapshot.actors] == [
        ("rollout-0", "cpu, vllm 0.32.0", False),
        ("reward", "", True),
    ]
    assert snapshot.errors == ["rollout-0.log: ERROR 11-28 engine: no memory", "rollout-0.log: RuntimeError: out of luck"]


def test_the_state_follows_what_the_run_writes(run) -> None:
    progress = ProgressFile(run)
    progress.enter("train", "step 4: training", {"start": 1.23456})
    progress.say("\x1b[31mred")
    snapshot = take(run)
    assert (snapshot.state, snapshot.doing, snapshot.lines) == ("running", "step 4: training", ["\ufffd[31mred"])
    assert snapshot.elapsed_s >= 0 and read_progress(run).seconds == {"start": 1.23}
    progress.end(MemoryError("no room"))
    assert take(run).state == "failed" and take(run).errors[-1] == "MemoryError: no room"
    progress.end(None)
    assert take(run).state == "ended"
    write(run / "summary.json", {})
    assert take(run).state == "complete"
    os.utime(run / "summary.json", (1, 1))  # of an earlier process, with fewer steps
    assert take(run).state == "ended"


def test_starts_are_counted(run) -> None:
    for expected in range(3):
        ProgressFile(run).say("started")
        assert take(run).restarts == read_progress(run).restarts == expected
    assert "restarts: 2" in head(take(run)).plain
    write(run / Progress.FILE, "{")  # a start, whatever it wrote
    assert ProgressFile(run).restarts == 1


def test_a_killed_run_is_recognised(run) -> None:
    program = "import sys; from pathlib import Path; from rlsys.io.progress import ProgressFile as File; File(Path(sys.argv[1])).say('x')"
    subprocess.run([sys.executable, "-c", program, run], check=True, timeout=120)
    assert take(run).state == "killed"
    document = json.loads((run / Progress.FILE).read_text())
    # Its id belongs to another process now.
    write(run / Progress.FILE, document | {"pid": os.getpid(), "started": 1.0})
    assert take(run).state == "killed"
    # On another machine, nobody can tell.
    write(run / Progress.FILE, document | {"host": "elsewhere"})
    assert take(run).state == "running"
    write(run / Progress.FILE, "{")
    with pytest.raises(DataError, match="progress.json: not valid JSON"):
        take(run)


def test_only_the_end_of_long_metrics_is_read(run) -> None:
    path = write(run / "long.jsonl", "".join(json.dumps({"step": step, "reward": 0.5}) + "\n" for step in range(1, 20_001)) + '{"step": 9')
    rows = read_tail(path)
    assert rows[-1]["step"] == 20_000 and 1 < rows[0]["step"] < 20_000
    assert TAIL - 100 < sum(len(json.dumps(row)) + 1 for row in rows) <= TAIL
    assert read_tail(run / "absent.jsonl") == []


def test_states_of_the_cluster_join_the_actors_of_the_run(run) -> None:
    live = [Actor("rollout-0", "pid 1", "alive", "1 running, 2 waiting"), Actor("other", "pid 2", "alive", "")]
    assert [(actor.name, actor.state, actor.calls) for actor in take(run, live).actors] == [
        ("rollout-0", "alive", "1 running, 2 waiting"),
        ("reward", "", ""),
        ("other", "alive", ""),
    ]


def test_other_folders_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="not a run folder"):
        take(tmp_path)
    write(tmp_path / "config.yaml", "rl: {steps: many}")
    with pytest.raises(DataError, match="config.yaml: cannot be read: .*rl.steps"):
        take(tmp_path)


# --- the terminal view ----------------------------------------------------------------------------------------------


def cells(table) -> list[list[str]]:
    return [[cell.plain for cell in table.get_row_at(number)] for number in range(table.row_count)]


def text_of(app, selector: str) -> str:
    return app.query_one(selector).visual.plain if hasattr(app.query_one(selector).visual, "plain") else str(app.query_one(selector).visual)


async def until(pilot, there) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        await pilot.pause(0.05)


def drive(look, steps, size=(120, 50)) -> None:
    """Run the view headless and await `steps(app, pilot)`."""
    pytest.importorskip("textual")
    from rlsys.reporting.top.app import Top

    async def session() -> None:
        app = Top(look, every_s=0.1)
        async with app.run_test(size=size) as pilot:
            await steps(app, pilot)

    asyncio.run(session())


def test_the_view_shows_a_run_and_follows_it(run) -> None:
    async def steps(app, pilot) -> None:
        table = app.query_one("#steps")
        await until(pilot, lambda: table.row_count == 3)
        assert cells(table)[0][:4] == ["3", "+0.300", "", "0.0300"]
        assert cells(app.query_one("#heldout"))[1] == ["step_000002", "4", "+0.500", "75.0%", "1"]
        assert cells(app.query_one("#actors"))[0][0] == "rollout-0"
        assert "out of luck" in text_of(app, "#errors")
        with (run / "metrics.jsonl").open("a") as file:
            file.write('ard": 0}\n{"step": 4, "reward": 0.4}\n')
        await until(pilot, lambda: cells(table)[0][0] == "4")
        ProgressFile(run).enter("train", "step 5: training", {})
        await until(pilot, lambda: "running  step 4 of 7  step 5: training" in text_of(app, "#head"))
        write(run / "summary.json", {})
        await until(pilot, lambda: "complete" in text_of(app, "#head"))
        await pilot.press("q")

    drive(lambda: take(run), steps)


def test_the_view_outlives_errors_and_shows_texts_as_they_are(run) -> None:
    hostile = "[bold red]x[/] [@click=app.quit]y[/] " + HOSTILE
    snapshot = take(run)
    bad = replace(
        snapshot,
        name=hostile,
        heldout=[Heldout(hostile, 1, 0.0, 0.0, 0)],
        actors=[Actor(hostile, hostile, hostile, hostile)],
        errors=[hostile],
        lines=[hostile],
    )
    looks = iter([ValueError("the cluster is gone"), bad])

    def look():
        found = next(looks, bad)
        if isinstance(found, Exception):
            raise found
        return found

    async def steps(app, pilot) -> None:
        await until(pilot, lambda: hostile in text_of(app, "#head"))
        assert cells(app.query_one("#heldout"))[0][0] == hostile and cells(app.query_one("#actors"))[0][0] == hostile
        assert hostile in text_of(app, "#errors") and hostile in text_of(app, "#lines")

    drive(look, steps, size=(60, 24))
