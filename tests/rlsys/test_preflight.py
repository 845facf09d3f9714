"""Preflight: all mistakes are reported together, and nothing is created or changed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlsys.config.files import load_config
from rlsys.io.run_folder import RunFolder
from rlsys.preflight import PreflightReport, PreflightTask, require_writable, run_preflight

ROOT = Path(__file__).resolve().parents[2]
WRITING = ("data.train=writing:train", "data.heldout=writing:heldout")
ROW = {"id": "1", "context": [{"role": "user", "content": "Say a word."}], "responses": ["yes", "no"], "rewards": [1, 0]}


@pytest.fixture
def check(tiny_model, tmp_path, monkeypatch):
    """`check("rl.steps=3", command="train", cpus=2, ...)` -> the report, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    small = ["model.path=" + str(tiny_model), "prompt.template=compact", "run.dir=run", "data.responses=[2]", "data.heldout_rows=8"]

    def run(*overrides: str, command: str = "train", cpus: int | None = 2, **more) -> PreflightReport:
        config = load_config(None, [*small, *overrides])
        return run_preflight(PreflightTask(command, config.model_dump(mode="json"), cpus=cpus, **more))

    return run


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def copy_of(model: Path, place: Path, **config) -> Path:
    """Copy the model with changes to its config.json."""
    shutil.copytree(model, place)
    path = place / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return place


@pytest.mark.parametrize("command", ["train", "sft", "rft", "filter", "ladder", "judge", "eval", "meta-rm", "policy"])
def test_valid_commands_have_no_mistakes_and_nothing_is_created(check, tmp_path, command):
    more = {
        "meta-rm": ["meta_rm.objective=bt", "meta_rm.rows=8"],
        "sft": ["sft.rows=4"],
        "policy": ["data.heldout=writing:heldout", "policy.reward=gold", "policy.rewards=[{function: json:dumps, weight: 0}]"],
    }.get(command, [])
    assert check(*more, command=command).mistakes == []
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed_is_a_mistake_of_what_logs_steps(check, monkeypatch):
    monkeypatch.setattr("rlsys.monitoring.trackers.importlib.util.find_spec", lambda name: None)
    (mistake,) = check("run.trackers=[wandb]").mistakes
    assert mistake.startswith("run.trackers: wandb is not installed")
    assert check("run.trackers=[wandb]", command="judge").mistakes == []


def test_a_policy_without_a_checked_heldout_row_is_reported_that_it_is_not_evaluated(check, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [ROW])
    report = check("data.train=writing:train", "data.heldout=rows.jsonl", "policy.reward=gold", command="policy")
    assert report.mistakes == [] and any("none of the first 1 rows has checks" in note for note in report.notes)


def test_all_mistakes_are_reported_together(check, tmp_path):
    (tmp_path / "file").write_text("")
    mistakes = check(
        "data.train=absent.jsonl",
        "data.heldout=there.jsonl",
        "data.exclude=nowhere.jsonl",
        "prompt.template=mine.jinja",
        "model.path=/nowhere/model",
        "run.dir=file/run",
        "rl.group_size=1",
        "eval.samples=4",
    ).mistakes
    for words in (
        "absent.jsonl",
        "there.jsonl",
        "nowhere.jsonl",
        "mine.jinja",
        "/nowhere/model",
        "Not a directory",
        "group_size",
        "eval.samples",
    ):
        assert sum(words in each for each in mistakes) == 1, (words, mistakes)
    assert len(mistakes) == 8


def test_all_mistakes_in_generated_tasks_are_reported(check):
    (mistake,) = check("data.families=[nonsense, sum]", "data.level=7", "data.responses=[0, 9]").mistakes
    assert all(words in mistake for words in ("'nonsense', 'sum'", "level 7", "responses (0, 9)"))


def test_unknown_format_and_missing_file_are_reported_together(check):
    (mistake,) = check("data.train={path: absent.jsonl, format: nonsense}").mistakes
    assert "unknown format 'nonsense'" in mistake and "absent.jsonl: there is no such file" in mistake


@pytest.mark.parametrize(
    ("overrides", "command", "words"),
    [
        (["rl.group_size=1"], "train", "always 0"),
        (["rollout.sleep=true", "rl.staleness=1"], "train", "rl.staleness=0"),
        (["eval.samples=2"], "train", "eval.temperature"),
        (["prompt.max_tokens=20"], "train", "prompt.max_tokens=20"),
        (["prompt.max_tokens=20"], "filter", "prompt.max_tokens=20"),
        (["prompt.max_tokens=9000"], "train", "max_position_embeddings"),
        (["data.families=[nonsense]"], "train", "nonsense"),
        (["data.train=tasks:nothing"], "train", "tasks:nothing"),
        (["data.train={path: rows.jsonl, format: prompts}"], "train", "without responses"),
        (["data.train={path: tasks:train}", "meta_rm.objective=bt"], "meta-rm", "meta_rm.rows"),
        (["data.format=trl_preferenc", "data.train=rows.jsonl"], "train", "trl_preference"),
        (["sft.rows=4", "sft.data=absent.jsonl"], "train", "absent.jsonl"),
        (["sft.rows=4", "sft.data=rows.jsonl"], "sft", "completion"),
        (["sft.rows=4", "sft.data=empty.jsonl"], "sft", "empty.jsonl"),
        (["sft.rows=4", "data.train=rows.jsonl"], "train", "worked judgements"),
        (["sft.rows=0"], "sft", "sft.rows=0"),
        (["rft.instruction_data=absent.jsonl"], "rft", "absent.jsonl"),
        (["rft.hinted=false", "rft.non_hinted=false"], "rft", "nothing would be sampled"),
        (["ladder.k=[2, 4]"], "ladder", "ladder.k"),
        ([], "meta-rm", "meta_rm.data"),
        (["meta_rm.data=[absent/*.parquet]"], "meta-rm", "absent"),
        (["meta_rm.data=[other.parquet]"], "meta-rm", "trajectory table"),
        (["meta_rm.objective=bt"], "meta-rm", "meta_rm.rows"),
        (["run.dir=rows.jsonl"], "train", "Not a directory"),
        (["run.dir=rows.jsonl/deeper/run"], "rft", "Not a directory"),
        (["prompt.template=rows.jsonl"], "judge", "marks"),
        ([*WRITING], "policy", "requires a judge: set judge.model"),
        ([*WRITING, "policy.reward=bt"], "policy", "requires policy.bt"),
        ([*WRITING, "policy.reward=gold", "policy.bt=absent"], "policy", "absent"),
        ([*WRITING, "judge.model=absent"], "policy", "absent"),
        ([*WRITING, "policy.reward=gold", "policy.rewards=[{function: length, weight: 1}]"], "policy", "expected one of tokens, words"),
        ([*WRITING, "policy.reward=gold", "policy.rewards=[{function: 'absent:f', weight: 1}]"], "policy", "no module absent"),
        ([*WRITING, "policy.reward=gold", "judge.strategy=meta"], "policy", "set judge.meta_rm"),
        ([*WRITING, "policy.reward=gold", "judge.k=2", "judge.k_meta=3"], "policy", "at most judge.k=2"),
        ([*WRITING, "policy.reward=gold", "sft.rows=4"], "policy", "has no cold start"),
        ([*WRITING, "policy.reward=gold", "rl.group_size=1"], "policy", "always 0"),
        (["model.path=rows.jsonl"], "judge", "file"),
    ],
)
def test_mistake_is_one_sentence(check, tmp_path, overrides, command, words):
    write_rows(tmp_path / "rows.jsonl", [ROW])
    (tmp_path / "empty.jsonl").write_text("")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    mistakes = check(*overrides, command=command).mistakes
    # Long rows are reported for each source.
    assert len(mistakes) == 1 + (overrides == ["prompt.max_tokens=20"] and command == "train") and all(
        words in each for each in mistakes
    ), mistakes


QUANTIZED = '{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda place: (place / "config.json").write_text('{"model_type": "llama"'), "truncated"),
        (lambda place: (place / "config.json").write_text('{"model_type": "abacus"}'), "abacus"),
        (lambda place: (place / "config.json").write_text('{"model_type": "vit"}'), "causal"),
        (lambda place: (place / "config.json").write_text("{}"), "model_type"),
        (lambda place: (place / "config.json").write_text('{"model_type": "bart", "is_encoder_decoder": true}'), "expected a decoder"),
        (lambda place: (place / "config.json").write_text(QUANTIZED), "quantized (gptq)"),
        (lambda place: (place / "config.json").write_text('{"model_type": "llama", "hidden_size": 65}'), "not a multiple"),
        (lambda place: (place / "config.json").unlink(), "config.json"),
        (lambda place: (place / "model.safetensors").unlink(), "no weights"),
        (lambda place: (place / "model.safetensors").rename(place / "pytorch_model.bin"), "pytorch_model.bin is a pickle"),
        (lambda place: (place / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes()[:-100]), "truncated"),
        (lambda place: (place / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-1.safetensors"}}'), "model-1"),
        (lambda place: (place / "model.safetensors.index.json").write_text('{"weight_map": []}'), "no weight_map"),
        (lambda place: (place / "model.safetensors").rename(place / "model-00001-of-00002.safetensors"), "no index"),
        (lambda place: (place / "tokenizer.json").write_text("{}"), "tokenizer"),
        (lambda place: (place / "chat_template.jinja").unlink(), "chat template"),
    ],
)
def test_invalid_model_files_are_rejected(check, tiny_model, tmp_path, change, words):
    place = copy_of(tiny_model, tmp_path / "model")
    change(place)
    mistakes = check(f"model.path={place}").mistakes
    assert len(mistakes) == 1 and words in mistakes[0], mistakes


def test_adapter_without_base_model_is_rejected(check, tiny_model, tmp_path):
    place = copy_of(tiny_model, tmp_path / "adapter")
    (place / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base", "r": 8}')
    assert check(f"model.path={place}").mistakes == []  # beside whole weights
    (place / "model.safetensors").rename(place / "adapter_model.safetensors")
    for change in (lambda: None, (place / "config.json").unlink, lambda: (place / "adapter_config.json").write_text("{")):
        change()
        (mistake,) = check(f"model.path={place}").mistakes
        assert "this is an adapter" in mistake and "Merge it into" in mistake
        assert ("owner/base" in mistake) == ((place / "adapter_config.json").read_text() != "{")


def test_quantized_model_may_judge(check, tiny_model, tmp_path):
    place = copy_of(tiny_model, tmp_path / "model")
    (place / "config.json").write_text(QUANTIZED)
    rows = write_rows(tmp_path / "rows.jsonl", [ROW])
    assert check(f"model.path={place}", command="judge", rows=(str(rows), "rlsys")).mistakes == []


def test_missing_model_is_one_sentence(check, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    mistakes = check("model.path=runs/nope", command="judge").mistakes
    assert len(mistakes) == 1 and "runs/nope: no such folder here" in mistakes[0] and "cannot be reached" in mistakes[0]
    assert "not a valid hub name" in check("model.path=a b").mistakes[0]


def test_inputs_and_outputs_of_judge_are_checked(check, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [ROW])
    tied = write_rows(tmp_path / "blank.jsonl", [{"nothing": 1}])
    (tmp_path / "folder").mkdir()
    assert check(command="judge", rows=(str(rows), "rlsys"), files=("new/out.jsonl",)).mistakes == []
    mistakes = check(command="judge", rows=(str(tied), "rlsys"), files=("folder",), meta_rm="/nowhere/rm").mistakes
    assert len(mistakes) == 3
    for words in ("blank.jsonl", "is a folder", "/nowhere/rm"):
        assert any(words in each for each in mistakes), mistakes
    assert "rows.jsonl" in check(command="eval", folder="rows.jsonl/evals").mistakes[0]


def test_completed_work_of_another_config_is_reported(check):
    with RunFolder(load_config(None, ["run.dir=run"])) as folder:
        assert check().mistakes == []
        folder.write_json("cold_start.json", {})
    mistakes = check().mistakes
    assert len(mistakes) == 1 and "another config" in mistakes[0] and "cold_start.json" in mistakes[0]


def test_folder_without_write_permission_is_reported(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="locked"):
        require_writable(tmp_path / "locked" / "a" / "b")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/proc/x/y", "/proc: Nothing can be created there. Choose a location on a writable disk."),
        ("file/run", "/file: Not a directory. A file exists where"),
        ("loop/run", "/loop: Not a directory. A file exists where"),
        ("a" * 300, "File name too long. Choose a shorter name."),
        ("new/" + "a" * 300, "File name too long. Choose a shorter name."),
    ],
)
def test_location_that_cannot_be_created_is_reported(check, tmp_path, place, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (mistake,) = check(f"run.dir={place}").mistakes
    assert message in mistake
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_write_check_leaves_no_trace(tmp_path, monkeypatch):
    for place in (tmp_path, tmp_path / "a" / "b", tmp_path / "no" / ".." / ".." / "c"):
        require_writable(place)

    def read_only(path: str, mode: int = 0o777) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(OSError, match=f"Read-only file system: '{tmp_path}'"):  # root may write, and the disk may not
        require_writable(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_gpus_and_cores(check):
    assert any("GPUs" in each for each in check("learner.ranks=3", gpus=2).mistakes)
    assert check("learner.ranks=3", cpus=None).mistakes == []
    crowded = check("learner.ranks=3", "learner.cpus=2")
    assert crowded.mistakes == [] and any("slow" in each for each in crowded.notes)


def test_few_rows_and_long_rows_are_noted(check, tmp_path):
    long = ROW | {"id": "2", "responses": ["word " * 500, "no"]}
    write_rows(tmp_path / "rows.jsonl", [ROW, long])
    report = check("data.train=rows.jsonl", "data.heldout=rows.jsonl", "prompt.max_tokens=400")
    assert report.mistakes == []
    assert any("data.heldout has 1 usable rows" in each for each in report.notes)
    assert any("data.train=rows.jsonl: 1 of the first 2 rows are longer" in each for each in report.notes)


def test_every_source_of_a_mixture_is_checked(check, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [ROW])
    mistakes = check("data.train=[rows.jsonl, {path: absent.jsonl, weight: 2}, {path: other.jsonl, format: rlsys}]").mistakes
    assert len(mistakes) == 2 and "absent.jsonl" in mistakes[0] and "other.jsonl" in mistakes[1]


def test_check_without_torch_gives_the_same_report(check, tmp_path):
    config = load_config(None, ["data.train=absent.jsonl", "model.path=/nowhere/model", "meta_rm.data=[x]"])
    for command in ("train", "meta-rm"):
        task = PreflightTask(command, config.model_dump(mode="json"), cpus=2)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            [sys.executable, "-m", "rlsys.preflight"], input=json.dumps(asdict(task)), env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout) == json.loads(json.dumps(asdict(run_preflight(task))))
