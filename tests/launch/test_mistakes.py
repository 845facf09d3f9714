"""User errors are reported in one message before anything starts. No test here starts Ray."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, rlsys_here, run_rlsys

from launch.console import exit_status
from rlsys.config.files import load_config, save_config
from rlsys.judging.setup import judge_config
from rlsys.system.environment_errors import describe_environment_error


def test_judge_config_takes_names_literally_and_the_prompt_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "a #3"
    (run / "model").mkdir(parents=True)
    save_config(load_config(None, ["prompt.template=my: template.jinja", "rollout.max_tokens=77", "rl.beta=0.5"]), run / "config.yaml")
    config, wrong = judge_config(str(run), seed=5, overrides=["rollout.actors=2", "run.dir=x #1", "rl.stepz=1"])
    assert config.model.path == str(run / "model") and len(wrong) == 1 and "rl.steps" in wrong[0]
    assert (config.prompt.template, config.rollout.max_tokens, config.rollout.actors) == ("my: template.jinja", 77, 2)
    assert (config.seed, config.run.dir) == (5, Path("x #1"))
    assert config.rl == load_config(None).rl  # of the run's own settings only those that a judge needs
    assert judge_config("some #3", 0, None)[0].model.path == "some #3"


TINY = ROOT / "launch/configs/tiny.yaml"
ROW = {"id": "1", "context": [{"role": "user", "content": "Say a word."}], "responses": ["yes", "no"], "rewards": [1, 0]}


def test_train_reports_all_mistakes_and_leaves_no_files(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    wrong = ["rl.stepz=1", "rl.steps=-1", "data.train=absent.jsonl", "prompt.template=nowhere.jinja", "rl.group_size=1"]
    result = rlsys_here("train", TINY, f"run.dir={folder}", f"model.path={tiny_model}", *wrong)
    assert result.returncode == 2 and "5 mistakes; nothing was started" in result.stderr
    for words in ("Did you mean rl.steps", "rl.steps: Input", "absent.jsonl", "nowhere.jinja", "rl.group_size=1"):
        assert words in result.stderr
    assert not folder.exists()


@pytest.mark.parametrize("command", ["train", "sft", "rft", "meta-rm", "ladder"])
def test_check_creates_no_files(command: str, tiny_model: Path, tmp_path: Path) -> None:
    settings = [f"run.dir={tmp_path / 'run [a]'}", f"model.path={tiny_model}", "meta_rm.objective=bt", "meta_rm.rows=8", "sft.rows=8"]
    result = rlsys_here(command, TINY, *settings, "ladder.test_rows=4", "--check")
    assert result.returncode == 0, result.stderr
    assert "no mistake found" in result.stderr and "run [a]" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["judge", "filter"])
def test_check_lists_the_outputs(command: str, tiny_model: Path, tmp_path: Path) -> None:
    (rows := tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    options = ["--output", tmp_path / "out.jsonl", "prompt.template=compact", "--check"]
    first = ["--model", tiny_model, "--input", rows, "--format", "rlsys"] if command == "judge" else [TINY, f"model.path={tiny_model}"]
    result = rlsys_here(command, *first, *options)
    assert result.returncode == 0 and "no mistake found" in result.stderr, result.stderr
    assert "output" in result.stderr and "run folder" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_the_check_alone_is_there_in_a_process_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    result = run_rlsys("train", TINY, f"run.dir={tmp_path / 'run'}", f"model.path={tiny_model}", "--check")
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("rlsys train: checking") and "112 to" in result.stderr


def test_judge_finds_its_mistakes_before_engines(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"nothing": 1}\n')
    (tmp_path / "folder").mkdir()
    options = [
        "--input",
        tmp_path / "rows.jsonl",
        "--format",
        "rlsys",
        "--output",
        tmp_path / "folder",
        "--meta-rm",
        tmp_path / "no" / "rm",
    ]
    result = rlsys_here("judge", "--model", tiny_model, *options, "rollout.actors=0")
    assert result.returncode == 2 and "4 mistakes" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "rows.jsonl"]


def test_a_check_reads_each_source_under_its_own_columns(tmp_path: Path) -> None:
    from rlsys.preflight import PreflightReport, _first_records

    (tmp_path / "rows.jsonl").write_text('{"question": "Say a word.", "chosen": "yes", "rejected": "no"}\n')
    source = f"{{path: {tmp_path / 'rows.jsonl'}, format: trl_preference, columns: {{prompt: question}}}}"
    found = PreflightReport()
    ((_, records),) = _first_records(load_config(None, [f"data.train=[{source}]"]), "train", 4, found)
    assert len(records) == 1 and not found.mistakes


def test_a_judge_does_not_write_over_its_input(tiny_model: Path, tmp_path: Path) -> None:
    (rows := tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    result = rlsys_here("judge", "--model", tiny_model, "--input", rows, "--format", "rlsys", "--output", rows, "--again")
    assert result.returncode == 2 and "this is the input" in result.stderr
    assert json.loads(rows.read_text()) == ROW


def test_eval_finds_its_mistakes_before_engines(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = rlsys_here("eval", "--model", tiny_model, "-b", "judgebench=absent.jsonl", "--output", tmp_path / "file" / "evals")
    assert (
        result.returncode == 2 and "2 mistakes" in result.stderr and "absent.jsonl" in result.stderr and "Not a directory" in result.stderr
    )


def test_a_mistyped_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    options = ["--input", tmp_path / "rows.jsonl", "--format", "rlsys", "--output", tmp_path / "out.jsonl"]
    result = rlsys_here("judge", "--model", "runs/nope", *options)
    assert result.returncode == 2 and "runs/nope: no such folder" in result.stderr
    assert len([line for line in result.stderr.splitlines() if line]) == 2  # what it is doing, and the error


def test_data_check_counts_the_rows_that_fit(tiny_model: Path, tmp_path: Path) -> None:
    from launch.commands.data import fitting_rows
    from rlsys.data.readers import read

    rows = [ROW, ROW | {"id": "2", "responses": ["word " * 500, "no"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fits = fitting_rows(read(tmp_path / "rows.jsonl", "rlsys"), str(tiny_model), "compact")
    assert fits[256] == 1 and list(fits.values())[-1] == 2 and sorted(fits) == [256 * 2**i for i in range(len(fits))]
    options = ["--format", "rlsys", "--model", tiny_model, "--template", "compact"]
    assert "rows that fit" in rlsys_here("data", "check", tmp_path / "rows.jsonl", *options).stdout


def test_version() -> None:
    assert rlsys_here("--version").stdout.startswith("rlsys 0.")


# --- what the world does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EACCES, "permissions"), (errno.ENOSPC, "Free some space"), (errno.ENOTDIR, "A file exists"), (errno.EISDIR, "choose a file")],
)
def test_an_error_of_the_system_is_one_line_with_what_to_do(number: int, words: str) -> None:
    error = OSError(number, os.strerror(number), "runs/[a]")
    told = describe_environment_error(error)
    assert told.startswith("runs/[a]: ") and words in told and "\n" not in told
    assert exit_status(error) == 2


def test_libraries_that_cannot_reach_the_hub_are_one_line() -> None:
    import httpx
    from huggingface_hub.errors import LocalEntryNotFoundError

    for error in (
        httpx.ConnectError("Name or service\n not known"),
        LocalEntryNotFoundError("cannot\nfind it"),
        OSError("We couldn't\nconnect"),
    ):
        assert "\n" not in describe_environment_error(error) and exit_status(error) == 2
    assert describe_environment_error(ValueError("x")) is None and describe_environment_error(KeyError("x")) is None


@pytest.mark.parametrize(
    "arguments", [["data", "generate", "--output", "file/x.jsonl"], ["score", "texts.jsonl", "--output", "file/x.jsonl"]]
)
def test_a_file_in_the_place_of_a_folder_is_one_line(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "x", "rewards": [0, 1]}) + "\n")
    result = rlsys_here(*arguments)
    assert result.returncode == 2 and result.stderr.startswith(f"error: {Path('file').resolve()}: ") and "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "texts.jsonl"]


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m launch.cli config show --keys --json | head -c 10"
    ended = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.stderr == "" and len(ended.stdout) == 10
