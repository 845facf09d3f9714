"""`rlsys view` on a real run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request

from commands import ROOT, rlsys_here


def test_the_viewer_serves_a_real_run(straight_run) -> None:
    config, summary = straight_run
    command = [sys.executable, "-u", "-m", "launch.cli", "view", str(config.run.dir), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split()[0]
            with urllib.request.urlopen(
                f"{address}api/groups?run=0&table=heldout_base&other_table=heldout_rl&other_run=0", timeout=60
            ) as answer:
                document = json.loads(answer.read())
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0 and process.stdout.read() == "stopped\n"
    heldout = summary["heldout"]
    assert document["total"] == heldout["base"]["n"] and document["unmatched"] == 0
    for stage, groups in (("base", document["groups"]), ("rl", [group["other"] for group in document["groups"]])):
        outcomes = "".join(group["outcomes"] for group in groups)
        assert outcomes.count("r") / len(outcomes) == heldout[stage]["accuracy"]
        assert outcomes.count("f") == sum(heldout[stage]["parse_failures"].values())


def test_an_address_that_is_taken_is_named(tmp_path) -> None:
    (tmp_path / "trajectories").mkdir()
    result = rlsys_here("view", tmp_path, "--host", "203.0.113.1", "--port", "1")
    assert result.returncode == 2
    assert "--host 203.0.113.1 --port 1: cannot be bound" in result.stderr and "choose another --port" in result.stderr


def test_a_folder_without_judgements_is_refused(tmp_path) -> None:
    result = rlsys_here("view", tmp_path)
    assert result.returncode == 2 and "holds no judgements; expected a run folder" in result.stderr
