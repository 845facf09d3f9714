"""The `rlsys` command, end to end: exit status, stdout and stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from commands import as_in_a_terminal, rlsys, rlsys_here, run_rlsys

from launch.environment import find_device
from rlsys.data.trajectories import TRAJECTORIES

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "pyarrow", "numpy", "scipy", "matplotlib")
COMMANDS = (
    "",
    "train",
    "sft",
    "rft",
    "filter",
    "meta-rm",
    "ladder",
    "judge",
    "eval",
    "vote",
    "report",
    "show",
    "score",
    "doctor",
    "config",
    "config show",
    "data",
    "data check",
    "data generate",
)


def document(result: subprocess.CompletedProcess[str]):
    """Parse stdout as a single JSON document."""
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_help_needs_no_heavy_import() -> None:
    """All commands in one process, which reports the command that imported a heavy module."""
    program = (
        "import sys; from launch.app import app\n"
        f"for command in {COMMANDS!r}:\n"
        "    sys.argv = ['rlsys', *command.split(), '--help']\n"
        "    try:\n        app()\n    except SystemExit as end:\n        assert end.code == 0, (command, end.code)\n"
        f"    heavy = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "    assert not heavy, (command, heavy)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=6000)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Usage:") == len(COMMANDS)


def test_the_installed_command_and_the_module_are_the_same() -> None:
    installed = subprocess.run([Path(sys.executable).with_name("rlsys"), "config", "show"], capture_output=True, text=True, timeout=6000)
    assert installed.stdout == run_rlsys("config", "show").stdout != ""


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "absent.yaml"], ["absent.yaml", "launch/configs"]),
        (["train", "rl.steps=3"], ["rl.steps=3", "comes first"]),
        (["config", "show", "rl.stepz=3"], ["rl.stepz=3", "rl.steps"]),
        (["config", "show", "--json", "rl.steps=-1"], ["rl.steps"]),
        (["show", "absent", "--step", "1"], ["absent", "run.dir"]),
        (["score", "absent.jsonl"], ["absent.jsonl"]),
        (["data", "check", "absent.jsonl", "--format", "rlsys"], ["absent.jsonl"]),
        (["data", "check", "absent.jsonl", "--format", "trl_preferenc", "--json"], ["trl_preference"]),
    ],
)
def test_user_errors_are_one_message_on_stderr_and_status_2(arguments: list[str], expected: list[str]) -> None:
    result = rlsys(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    for words in expected:
        assert words in result.stderr


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    program = "import sys\nfrom launch.app import app\nfrom launch.cli import main\n"
    program += "@app.command()\ndef bug(): int('x')\nsys.argv = ['rlsys', 'bug']\nmain()"
    path = tmp_path / "program.py"
    path.write_text(program)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "invalid literal" in result.stderr


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    fifo = tmp_path / "texts.jsonl"
    os.mkfifo(fifo)
    command = [sys.executable, "-m", "launch.cli", "score", fifo]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=as_in_a_terminal)
    with fifo.open("w"):  # opens only once the command is reading: from then on it waits for rows
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in errors and errors.startswith("interrupted") and errors.count("\n") == 1


def test_sigterm_before_anything_began_ends_with_75(tmp_path: Path) -> None:
    fifo = tmp_path / "worked.jsonl"
    os.mkfifo(fifo)
    config = ROOT / "launch/configs/tiny.yaml"
    command = [
        sys.executable,
        "-m",
        "launch.cli",
        "sft",
        config,
        f"sft.data={fifo}",
        f"run.dir={tmp_path / 'run'}",
        f"model.path={tmp_path / 'tiny-random'}",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with fifo.open("w"):  # opens only once the checks are reading: from then on they wait for rows
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 75
    assert "Traceback" not in errors and errors.splitlines()[-1].startswith("error: stopped by SIGTERM; nothing new was saved.")


def test_ctrl_c_during_imports_prints_one_line() -> None:
    program = (
        "import sys\nclass Pressed:\n    def find_spec(self, name, *_):\n        if name == 'typer':\n            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\nfrom launch.cli import main\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 130
    assert result.stderr.startswith("interrupted") and result.stderr.count("\n") == 1


# --- config ---------------------------------------------------------------------------------------------------------


def test_config_show_prints_a_valid_config_file(tmp_path: Path) -> None:
    first = run_rlsys("config", "show", "rl.steps=7", "data.families=[sum, order]")
    assert yaml.safe_load(first.stdout)["rl"]["steps"] == 7
    path = tmp_path / "again.yaml"
    path.write_text(first.stdout)
    assert rlsys("config", "show", path).stdout == first.stdout
    assert document(run_rlsys("config", "show", path, "--json")) == yaml.safe_load(first.stdout)


def dotted_keys(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from dotted_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_config_show_keys_lists_every_setting() -> None:
    settings = document(run_rlsys("config", "show", "--json"))
    rows = {row["key"]: row for row in document(run_rlsys("config", "show", "--keys", "--json", "rl.beta=0.5"))}
    assert set(rows) == set(dotted_keys(settings))
    assert rows["rl.beta"]["value"] == 0.5 and "KL" in rows["rl.beta"]["help"]
    table = rlsys("config", "show", "--keys").stdout
    assert all(key in table for key in rows)


# --- score ----------------------------------------------------------------------------------------------------------


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


TEXTS = [
    {"text": r"... Scores: \boxed{3, 9}", "rewards": [0, 1]},
    {"text": r"... Scores: \boxed{3, 9}", "rewards": [0, 1], "order": [1, 0]},
    {"text": "no verdict", "rewards": [1, 0]},
    {"text": r"\boxed{1}", "rewards": [1]},
    {"text": r"\boxed{11, 2}", "rewards": [1, 0]},
    {"text": r"\boxed{2, 8}", "rewards": [1, 1], "order": [1, 0]},
    {"text": r"\boxed{8, 2}", "rewards": [1, 0], "finish_reason": "length"},
    {"text": r"\boxed{8, 2}", "rewards": [1, 0], "prompt": "assistant\n<think>\n", "finish_reason": "stop"},
]
TIE = "rewards [1.0, 1.0]: expected exactly one highest, or for a single response 0 or 1."
JUDGED = [
    {"scores": [3, 9], "reason": None, "correct": True, "reward": 1.0},
    {"scores": [9, 3], "reason": None, "correct": False, "reward": -1.0},
    {"scores": None, "reason": "no_box", "correct": False, "reward": -1.0},
    {"scores": [1], "reason": None, "correct": True, "reward": 1.0},
    {"scores": None, "reason": "out_of_range", "correct": False, "reward": -1.0},
    {"scores": [8, 2], "reason": None, "correct": None, "reward": None, "set_aside": TIE},
    {"scores": None, "reason": "truncated", "correct": False, "reward": -1.0},
    {"scores": None, "reason": "unfinished_thought", "correct": False, "reward": -1.0},
]


def test_score_writes_one_row_per_text_and_a_summary(tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    plain = run_rlsys("score", texts)
    assert plain.returncode == 0, plain.stderr
    assert [json.loads(line) for line in plain.stdout.splitlines()] == JUDGED
    assert "no_box" in plain.stderr
    output = tmp_path / "judged.jsonl"
    filed = rlsys("score", texts, "--output", output)
    assert (filed.stdout, output.read_text()) == ("", plain.stdout)
    failures = {"no_box": 1, "out_of_range": 1, "truncated": 1, "unfinished_thought": 1}
    figures = {"correct": 2, "accuracy": 2 / 7, "reward": -3 / 7}
    summary = {"rows": 8, "set_aside": 1, **figures, "parse_failures": failures}
    assert document(run_rlsys("score", texts, "--json")) == {"rows": JUDGED, "summary": summary}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("{", "JSON"),
        ([1], "object"),
        ({"rewards": [0, 1]}, "text"),
        ({"text": "x", "rewards": []}, "rewards"),
        ({"text": "x", "rewards": [True, False]}, "rewards"),
        ('{"text": "x", "rewards": [NaN, 1]}', "rewards"),
        ({"text": "x", "rewards": [1, 1], "order": [1, 1]}, "order"),
        ({"text": "x", "rewards": [1, 0], "finish_reason": "eos"}, "finish_reason"),
        ({"text": "x", "rewards": [1, 0], "prompt": 3}, "prompt"),
        ({"text": "x", "rewards": [0.5]}, "rewards"),
        ({"text": "x", "rewards": [0, 1], "order": [0, 0]}, "order"),
        ({"text": "x", "rewards": [0, 1], "order": [False, True]}, "order"),
    ],
)
def test_an_invalid_row_is_named_and_leaves_no_output(tmp_path: Path, row, expected: str) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", [TEXTS[0], row])
    result = rlsys_here("score", texts, "--output", tmp_path / "judged.jsonl")
    assert result.returncode == 2
    assert f"{texts}, row 2" in result.stderr and expected in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]


def test_score_reads_the_format_of_a_released_judge(tmp_path: Path) -> None:
    rows = [{"text": r"\boxed{[8.5, 9.0]}", "rewards": [0, 1]}, {"text": r"\boxed{8}", "rewards": [1]}]
    texts = write_jsonl(tmp_path / "texts.jsonl", rows)
    found = document(run_rlsys("score", texts, "prompt.scores={numbers: decimal, single: [1, 10]}", "--json"))
    assert [row["scores"] for row in found["rows"]] == [[8.5, 9.0], [8.0]] and found["summary"]["correct"] == 2
    assert document(run_rlsys("score", texts, "--json"))["summary"]["correct"] == 0


def test_links_pipes_and_devices_are_kept_as_outputs(tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "\\boxed{9, 3}", "rewards": [1, 0]}])
    (tmp_path / "there.jsonl").write_text("before")
    (tmp_path / "link.jsonl").symlink_to("there.jsonl")
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        for name in ("link.jsonl", "pipe"):
            assert run_rlsys("score", texts, "--output", tmp_path / name).returncode == 0
        written = reader.communicate(timeout=60)[0]
    assert (tmp_path / "link.jsonl").is_symlink() and (tmp_path / "pipe").is_fifo()
    assert json.loads(written) == json.loads((tmp_path / "there.jsonl").read_text()) and json.loads(written)["correct"]


def test_output_is_complete_for_any_stdout_encoding_and_without_stdout(tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "\u00fc.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"\ud800": 1}])
    arguments = ("data", "check", rows, "--format", "trl_preference")
    result = run_rlsys(*arguments, "--json", environment={"PYTHONIOENCODING": "ascii"})
    assert document(result)["file"] == str(rows) and result.returncode == 0, result.stderr
    assert run_rlsys(*arguments, environment={"PYTHONIOENCODING": "ascii"}).returncode == 0
    command = f"{sys.executable} -m launch.cli data check '{rows}' --format trl_preference"
    closed = subprocess.run(["sh", "-c", f"{command} >&- <&-"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert closed.returncode == 0 and "Traceback" not in closed.stderr


def test_score_of_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("")
    result = rlsys_here("score", tmp_path / "texts.jsonl")
    assert result.returncode == 2 and "texts.jsonl" in result.stderr


# --- show -----------------------------------------------------------------------------------------------------------


def trajectory(sample: int, reward: float, advantage: float | None, text: str, failure: str | None = None) -> dict:
    return {
        "step": 3,
        "group": 0,
        "sample": sample,
        "prompt_id": "sum-17",
        "source": "sums",
        "family": "sum",
        "order": [1, 0],
        "ground_truth": [0.0, 1.0],
        "prompt": "Judge these.\n[begin 1] forty [end 1]",
        "text": text,
        "scores": None if failure else [2, 8],
        "parse_failure": failure,
        "correct": reward > 0,
        "reward": reward,
        "advantage": advantage,
        "finish_reason": "stop",
        "weight_version": 2,
        "prompt_token_count": 11,
        "token_count": 5,
        "rollout_logprob": -0.25,
        "trainer_logprob": float("nan"),
        "reference_logprob": None,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "trajectories"
    folder.mkdir(parents=True)
    rows = [
        trajectory(0, 1.0, 0.5, "plain win"),
        trajectory(1, -1.0, -1.5, "lost \x1b[31mred [bold]words[/bold]"),
        trajectory(2, 1.0, 1.5, "rare win"),
        trajectory(3, -1.0, None, "unreadable", failure="no_box"),
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=TRAJECTORIES), folder / "step_000003.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:1], schema=TRAJECTORIES).drop_columns("ground_truth"), folder / "heldout_rl.parquet")
    for other in (1, 2, 7):
        (folder / f"step_{other:06d}.parquet").touch()
    return tmp_path / "run"


def test_show_picks_best_and_worst_without_duplicates(run: Path) -> None:
    shown = document(run_rlsys("show", run, "--step", 3, "--best", 1, "--worst", 9, "--json"))
    assert shown["samples"] == 4 and shown["reward"] == 0.0
    assert [row["text"] for row in shown["best"]] == ["rare win"]
    assert [row["sample"] for row in shown["worst"]] == [1, 3, 0]
    assert shown["best"][0]["trainer_logprob"] is None  # JSON has no NaN


def test_show_prints_prompt_and_generation_literally(run: Path) -> None:
    result = rlsys("show", run, "--step", 3)
    assert result.returncode == 0, result.stderr
    # Shown in the order 1, 0, so that the record's second response, the best one, stands first.
    truth = ("ground truth: [1] is the best response", "scores as shown [8, 2]")
    said = (*truth, "rare win", "[bold]words[/bold]", "parse failure: no_box", "reward -1")
    for words in ("sum-17  source sums", "family sum", "[begin 1] forty [end 1]", *said):
        assert words in result.stdout
    assert "\x1b" not in result.stdout
    assert "forty" not in rlsys("show", run, "--step", 3, "--no-prompt").stdout


def test_show_names_the_steps_that_exist(run: Path) -> None:
    result = run_rlsys("show", run, "--step", 4, "--json")
    assert (result.returncode, result.stdout) == (2, "")
    assert "no samples of step 4" in result.stderr and "1-3, 7" in result.stderr and "held-out rl" in result.stderr


def test_show_takes_held_out_samples_and_tables_without_a_ground_truth(run: Path) -> None:
    result = rlsys("show", run, "--heldout", "rl")
    assert result.returncode == 0 and "held-out rl" in result.stdout and "plain win" in result.stdout
    assert "ground truth" not in result.stdout
    for options in ((), ("--step", 3, "--heldout", "rl")):
        result = rlsys_here("show", run, *options)
        assert result.returncode == 2 and "--step" in result.stderr and "--heldout" in result.stderr


def test_show_reports_an_unreadable_table(run: Path) -> None:
    result = rlsys("show", run, "--step", 7)
    assert result.returncode == 2 and "step_000007.parquet" in result.stderr


# --- doctor ---------------------------------------------------------------------------------------------------------


def test_doctor_reports_this_environment_in_one_document(tmp_path: Path) -> None:
    result = run_rlsys("doctor", "--json", cwd=tmp_path)
    report = document(result)
    assert result.returncode == 0 and report["ok"], report["problems"]
    assert report["python"]["executable"] == sys.executable
    installed = {row["name"]: row for row in report["packages"]}
    assert installed["ray"]["installed"] == installed["ray"]["pinned"]
    assert report["machine"]["cores"] >= 1 and report["machine"]["memory_gib"] > 0
    assert report["model"]["present"] is False and any("model" in problem["what"] for problem in report["problems"])


def test_doctor_reports_problems_and_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSYS_DEVICE", "abacus")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    result = run_rlsys("doctor")
    assert result.returncode == 1
    assert "MISSING: RLSYS_DEVICE=abacus" in result.stdout and "expected cpu or gpu" in result.stdout
    assert "source launch/ray_env.sh" in result.stdout


@pytest.mark.parametrize(
    ("driver", "what", "todo"),
    [
        ("535.183.01", "NVIDIA's driver is 535.183.01", "580 or newer: update the driver"),
        ("580.65.06", "the installed torch", "run `bash launch/setup.sh`"),
        ("[N/A]", "the installed torch", "run `bash launch/setup.sh`"),
    ],
)
def test_doctor_on_a_gpu_that_torch_cannot_use(driver: str, what: str, todo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old driver is named instead of set-up, which would install the same packages again."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho 'NVIDIA H100, 80GB, {driver}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("RLSYS_DEVICE", raising=False)
    found: list[tuple[str, str, bool]] = []
    device = find_device(lambda what, todo, fatal=False: found.append((what, todo, fatal)))
    assert (device["kind"], device["names"]) == ("gpu", ["NVIDIA H100, 80GB"])
    (problem,) = found
    assert what in problem[0] and todo in problem[1] and problem[2]
    assert ("setup.sh" in problem[1]) == (not driver.startswith("535"))
