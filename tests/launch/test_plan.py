"""`rlsys plan`, and the ready-made configs for GPUs: each is valid, and fits on the machines that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import ROOT, rlsys

from rlsys.config.checks import find_conflicts
from rlsys.config.files import load_config
from rlsys.system.placement import Machine, place

CONFIGS = sorted((ROOT / "launch" / "configs").glob("gpu-*.yaml"))
EXAMPLE = re.compile(r"`rlsys plan (launch/configs/\S+) ([^`]+)`")


def examples(config: Path) -> list[list[str]]:
    """Return the options of every `rlsys plan CONFIG ...` in the file's comment."""
    text = config.read_text()
    return [options.split() for path, options in EXAMPLE.findall(text) if path.endswith(config.name)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_for_gpus_fits(config: Path) -> None:
    """On the machines that its comment names, with 80 GiB per GPU."""
    assert find_conflicts(load_config(config), "train") == []
    (options,) = examples(config)
    answer = rlsys("plan", config, *options)
    assert (answer.returncode, answer.stdout.splitlines()[-1]) == (0, "Everything fits."), answer.stdout + answer.stderr
    assert "80" in answer.stdout


def test_there_are_configs_of_all_sizes() -> None:
    assert [path.stem for path in CONFIGS] == ["gpu-0.6b", "gpu-1.7b", "gpu-27b", "gpu-32b", "gpu-8b-shared", "gpu-8b-split"]


def test_the_papers_recipe() -> None:
    for name in ("gpu-27b", "gpu-32b"):
        config = load_config(ROOT / "launch" / "configs" / f"{name}.yaml")
        assert (config.rl.prompts_per_step, config.rl.group_size, config.rl.beta, config.learner.lr) == (512, 4, 0.08, 4e-7)


def test_what_does_not_fit_and_what_would() -> None:
    answer = rlsys("plan", "launch/configs/gpu-8b-shared.yaml", "--memory", 40)
    assert answer.returncode == 1
    assert "does not fit: the key-value cache of an engine holds " in answer.stdout
    (first, *_) = re.findall(r"fits with: (.*)", answer.stdout)
    assert rlsys("plan", "launch/configs/gpu-8b-shared.yaml", *first.split(), "--memory", 40).returncode == 0


def test_json() -> None:
    answer = rlsys("plan", "launch/configs/gpu-8b-shared.yaml", "--memory", 40, "--json")
    document = json.loads(answer.stdout)
    assert answer.returncode == 1 and not document["fits"] and document["suggestions"]


@pytest.mark.parametrize("config", sorted({*CONFIGS[0].parent.glob("*.yaml")} - {*CONFIGS}), ids=lambda path: path.stem)
@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_every_other_config_can_be_placed_on_any_number_of_gpus(config: Path, gpus: int) -> None:
    placed = place(load_config(config), [Machine("here", 2, gpus)])
    assert placed.count("learner") >= 1 and placed.count("rollout") >= 1


@pytest.mark.parametrize(("gpus", "memory", "ranks"), [(0, 16, 2), (1, 24, 1), (8, 24, 8)])
def test_the_quickstart_fits_what_is_there(gpus: int, memory: int, ranks: int) -> None:
    answer = rlsys("plan", "launch/configs/quickstart.yaml", "--gpus", gpus, "--memory", memory)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert sorted(set(re.findall(r"learner-\d+", answer.stdout))) == [f"learner-{rank}" for rank in range(ranks)]
    assert ("rollout-7" in answer.stdout) == (gpus == 8)


def test_a_shape_of_its_own(tmp_path: Path) -> None:
    shape = tmp_path / "config.json"
    shape.write_text((ROOT / "launch" / "configs" / "shapes" / "Qwen3-0.6B.json").read_text())
    answer = rlsys("plan", "launch/configs/gpu-1.7b.yaml", "--gpus", 1, "--shape", shape)
    assert answer.returncode == 0 and "0.60 billion parameters" in " ".join(answer.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model.path=nobody/nothing"], "--shape CONFIG.JSON"),
        (["--shape", "nowhere.json"], "nowhere.json: cannot be read"),
        (["learner.ranks=99"], "99 learner ranks"),
        (["rl.group_size=1"], "rl.group_size=1"),
    ],
)
def test_mistakes(arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    answer = rlsys("plan", "launch/configs/gpu-8b-shared.yaml", *arguments)
    assert answer.returncode == 2 and expected in answer.stderr
