"""`rlsys export`, and what the model folders of a real run carry."""

from __future__ import annotations

import json
import os
import socket

import pytest
from commands import rlsys_here, run_rlsys

from rlsys.io.model_form import read_form
from rlsys.io.run_folder import resolve_model


def test_the_models_of_a_run_carry_their_form_and_a_card(straight_run):
    config, summary = straight_run
    mask = os.umask(0)
    os.umask(mask)
    folders = sorted(config.run.dir.glob("checkpoints/*/model"))
    assert [folder.parent.name for folder in folders] == ["cold_start", "step_000002", "step_000003"]
    for folder in folders:
        form = read_form(folder)
        assert (form.template_name, form.max_prompt_tokens, form.max_tokens) == ("compact", 400, 160)
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~mask}
        assert "## Held-out rows of its run" in (folder / "README.md").read_text()
    card = (folders[-1] / "README.md").read_text()
    assert f"| after RL | {summary.heldout['rl'].n} | {summary.heldout['rl'].accuracy:.1%}" in card
    assert f"| before training | {summary.heldout['base'].n} | {summary.heldout['base'].accuracy:.1%}" in card


def test_export_of_a_run(straight_run, tmp_path):
    result = rlsys_here("export", f"{straight_run[0].run.dir}@cold_start", "--output", tmp_path / "judge")
    assert result.returncode == 0, result.stderr
    assert "rlsys.json" in result.stdout and "MB)" in result.stdout
    found = json.loads((tmp_path / "judge/rlsys.json").read_text())
    assert "marks" in found["template"] and resolve_model(tmp_path / "judge")[1].prompt.max_tokens == 400


def test_a_push_that_fails_says_why_and_keeps_the_folder(straight_run, tmp_path):
    """The hub itself is not there: only the refusal is tested."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        hub = f"http://127.0.0.1:{taken.getsockname()[1]}"
        options = ["--output", tmp_path / "judge", "--push", "me/judge"]
        environment = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x"}
        result = run_rlsys("export", straight_run[0].run.dir, *options, environment=environment, timeout_s=300)
    assert result.returncode == 2 and "--push me/judge: " in result.stderr and "Traceback" not in result.stderr
    assert "hf_x" not in result.stderr and (tmp_path / "judge/model.safetensors").exists()


@pytest.mark.parametrize(
    "arguments, expected",
    [(["nowhere"], "no model of a run"), (["nowhere", "--public"], "only with --push")],
)
def test_mistakes(tmp_path, arguments, expected):
    result = rlsys_here("export", *arguments, "--output", tmp_path / "out")
    assert result.returncode == 2 and expected in result.stderr
