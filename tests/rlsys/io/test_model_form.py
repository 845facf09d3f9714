"""A trained model carries its form: a copy of its folder is asked as its run asked, and runs name their models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlsys.config.files import load_config
from rlsys.config.schema import Config, ConfigError
from rlsys.data.trajectories import TRAJECTORIES
from rlsys.io.export import export_model
from rlsys.io.model_form import form_of, read_form
from rlsys.io.run_folder import RunFolder, resolve_model
from rlsys.judging.setup import judge_config
from rlsys.planning.disk import checkpoint_bytes, parameter_count, run_disk
from rlsys.prompts.rendering import UserTurns, template_source
from rlsys.reporting.model_card import write_model_card

OWN = template_source("compact").replace("Response", "Candidate")
SETTINGS = ["prompt.principles=false", "prompt.max_tokens=777", "rollout.max_tokens=55", "prompt.scores.range=[1, 5]"]


@pytest.fixture
def run(tmp_path, tiny_model) -> Path:
    """A run folder with a template of its own, a cold start, two checkpoints of which the first is the best, and held-out tables."""
    template = tmp_path / "mine.jinja"
    template.write_text(OWN)
    config = load_config(None, [f"run.dir={tmp_path / 'run'}", f"prompt.template={template}", *SETTINGS])
    with RunFolder(config) as folder:
        for place in (folder.cold_start, folder.checkpoint_path(3), folder.checkpoint_path(6)):
            shutil.copytree(tiny_model, place / "model")
            for name, text in folder.model_files.items():
                (place / "model" / name).write_text(text)
            (place / "state.json").write_text("{}")
        folder.set_best(3, 0.5)
        for number, stage in enumerate(("base", "cold_start", "step_000003", "rl")):
            rows = [
                {"prompt_id": f"r{i}", "source": "s", "order": [0, 1], "ground_truth": [1, 0], "correct": i < 10 + 10 * number}
                | {"reward": 1.0 if i < 10 + 10 * number else -1.0, "token_count": 5, "finish_reason": "stop"}
                for i in range(50)
            ]
            pq.write_table(pa.Table.from_pylist(rows, schema=TRAJECTORIES), folder.heldout_path(stage))
    template.write_text("changed after the training")
    return tmp_path / "run"


def form(config: Config) -> tuple:
    prompt = config.prompt
    text = template_source(prompt.template)
    return text, prompt.principles, prompt.max_tokens, prompt.scores.range, config.rollout.max_tokens


def test_a_copied_folder_is_asked_as_its_run_asked(run, tmp_path):
    copy = tmp_path / "elsewhere" / "judge"
    shutil.copytree(run / "checkpoints/step_000003/model", copy)
    shutil.rmtree(run)
    config, problems = judge_config(str(copy), 0, None)
    assert problems == [] and config.model.path == str(copy)
    assert form(config) == (OWN, False, 777, (1, 5), 55)
    UserTurns.for_endpoint(config.prompt)  # the template works from there
    assert judge_config(str(copy), 0, ["prompt.max_tokens=99"])[0].prompt.max_tokens == 99, "overrides still apply"


def test_a_known_template_keeps_its_name(tmp_path, tiny_model):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "rlsys.json").write_text(form_of(load_config(None, ["prompt.template=compact"])).to_text())
    assert judge_config(str(folder), 0, None)[0].prompt.template == "compact"


def test_without_a_form_a_folder_has_the_defaults(tiny_model):
    assert read_form(tiny_model) is None
    assert judge_config(str(tiny_model), 0, None)[0].prompt == Config().prompt


def test_runs_name_their_models(run):
    checkpoints = run / "checkpoints"
    for name, place in {"best": "step_000003", "step_3": "step_000003", "step_000006": "step_000006", "cold_start": "cold_start"}.items():
        path, config = resolve_model(f"{run}@{name}")
        assert path == str(checkpoints / place / "model")
        assert config is not None and form(config) == (OWN, False, 777, (1, 5), 55)
    assert resolve_model(run)[0] == str(checkpoints / "step_000006" / "model"), "the newest"
    with pytest.raises(ConfigError, match="@step_4: this run has no such model. It has best, cold_start, step_000003, step_000006"):
        resolve_model(f"{run}@step_4")


def test_an_older_run_without_forms_gives_its_config(run):
    for path in run.glob("checkpoints/*/model/rlsys.json"):
        path.unlink()
    assert resolve_model(f"{run}@best")[1].prompt.max_tokens == 777
    assert resolve_model(run / "checkpoints/step_000003/model")[1].prompt.max_tokens == 777


@pytest.mark.parametrize("text", ["{", "[]", '{"rlsys": "1"}', '{"template": 3}'])
def test_an_unusable_form_is_named(tmp_path, tiny_model, text):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "rlsys.json").write_text(text)
    with pytest.raises(ConfigError, match=r"model/rlsys.json: not the form of a model \("):
        resolve_model(folder)


def test_keys_of_a_later_version_are_ignored(tmp_path, tiny_model):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    known = json.loads(form_of(Config()).to_text())
    (folder / "rlsys.json").write_text(json.dumps(known | {"new": 1}))
    assert read_form(folder) == form_of(Config())


def test_the_card_has_the_results_that_led_to_the_model(run):
    for name, shown in {"cold_start": ["20.0%", "40.0%"], "step_000003": ["20.0%", "40.0%", "60.0%"]}.items():
        write_model_card(run, run / f"checkpoints/{name}/model")
        card = (run / f"checkpoints/{name}/model/README.md").read_text()
        table = [line for line in card.splitlines() if line.startswith("| ") and " | 50 | " in line]
        assert [line.split(" | ")[2].split()[0] for line in table] == shown
        assert OWN.strip() in card
    write_model_card(run, run / "checkpoints/step_000006/model")
    assert "| after RL | 50 | 80.0% (" in (run / "checkpoints/step_000006/model/README.md").read_text()


def test_an_export_is_complete_and_has_ordinary_permissions(run, tmp_path):
    (run / "checkpoints/step_000003/model/model.safetensors").chmod(0o600)
    (run / "checkpoints/step_000003/model/rlsys.json").unlink()
    (tmp_path / "mine.jinja").write_text(OWN)
    before = os.umask(0o022)
    try:
        files = export_model(f"{run}@best", tmp_path / "out")
    finally:
        os.umask(before)
    assert {"model.safetensors", "config.json", "rlsys.json", "README.md", "tokenizer.json"} <= set(files)
    assert {(tmp_path / "out" / name).stat().st_mode & 0o777 for name in files} == {0o644}
    assert form(judge_config(str(tmp_path / "out"), 0, None)[0]) == (OWN, False, 777, (1, 5), 55)
    with pytest.raises(ConfigError, match="exists already"):
        export_model(f"{run}@best", tmp_path / "out")
    with pytest.raises(ConfigError, match="no model of a run"):
        export_model(str(tmp_path / "out"), tmp_path / "again")


def test_only_the_last_checkpoint_keeps_its_optimizer_state(tmp_path):
    with RunFolder(load_config(None, [f"run.dir={tmp_path / 'run'}"])) as folder:
        for step in (1, 2, 3):
            (folder.begin_checkpoint(step) / "optimizer").mkdir()
            folder.commit_checkpoint(step, {"step": step}, 3, "last")
        assert [(path / "optimizer").is_dir() for path in folder.checkpoints()] == [False, False, True]


def test_disk_is_that_of_models_and_optimizer_states(tiny_model):
    parameters = parameter_count(tiny_model)
    assert (tiny_model / "model.safetensors").stat().st_size == pytest.approx(2 * parameters, rel=0.02), "bfloat16"
    checkpoint = checkpoint_bytes(parameters, Config())
    assert checkpoint == {"model": 2 * parameters, "optimizer": 14 * parameters}
    sizes = {name: run_disk(parameters, load_config(None, [f"checkpoint.optimizer={name}"]), "train") for name in ("all", "last")}
    assert sizes == {"all": 4 * 16 * parameters, "last": (4 * 2 + 2 * 14) * parameters}, "two kept, the best, and one being written"


def test_a_model_on_the_hub_brings_its_form(tmp_path, monkeypatch):
    """Against a local server of the hub's shape; the real hub was never asked."""
    form = form_of(load_config(None, ["prompt.template=compact", "prompt.max_tokens=321"])).to_text()
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(200 if self.path == "/me/judge/resolve/main/rlsys.json" else 404)
            for name, value in {"X-Repo-Commit": "a" * 40, "ETag": '"e"', "Content-Length": str(len(form))}.items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(form.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import sys; from rlsys.judging.setup import judge_config as j; print([j(m, 0, None)[0].prompt.max_tokens for m in sys.argv[1:]])"
    )
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    try:
        ran = subprocess.run(
            [sys.executable, "-c", code, "me/judge", "me/other"], env=environment, capture_output=True, text=True, timeout=120
        )
    finally:
        server.shutdown()
    assert ran.stdout.strip() == "[321, 1024]", ran.stderr
    offline = subprocess.run(
        [sys.executable, "-c", code, "me/judge"], env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert offline.stdout.strip() == "[321]", "from the cache"
