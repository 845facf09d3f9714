"""`rlsys bench growth`: every shape is run, the exponent is that of the points, and the plot is drawn."""

from __future__ import annotations

import pytest
from commands import rlsys_here

from launch.bench.growth import exponent, numbers, render
from launch.console import UserError


@pytest.mark.nightly
def test_shapes_in_three_dimensions(bench, all_cores, tiny_bench_model, tmp_path) -> None:
    sweeps = ("--samples", "2,4", "--prompt-tokens", "30,60", "--prompts", "1,2", "--base", "1x2x30", "--output-tokens", 6)
    settings = ("model.dtype=float32", "rollout.kv_cache_gib=0.25")
    options = ("--model", tiny_bench_model, *all_cores, *sweeps, "--repeats", 1, "--output", tmp_path / "growth.png")
    document = bench("growth", *options, *settings)
    assert {name: [point["value"] for point in sweep["points"]] for name, sweep in document["sweeps"].items()} == {
        "samples": [2, 4],
        "prompt_tokens": [30, 60],
        "prompts": [1, 2],
    }
    for sweep in document["sweeps"].values():
        assert sweep["exponent"] == exponent(sweep["points"])
        for point in sweep["points"]:
            assert point["whole"] == pytest.approx(sum(point[name] for name in ("generate", "train", "send weights", "other")))
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert len(render(document).renderables) == 3


def test_the_exponent_of_powers() -> None:
    assert exponent([{"value": value, "whole": 3.0 * value**1.5} for value in (1, 2, 5)]) == pytest.approx(1.5)
    assert exponent([{"value": 1, "whole": 3.0}]) is None


@pytest.mark.parametrize("text", ["", "2,x", "0,3", "2;3"])
def test_values_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"--samples .*: expected positive numbers"):
        numbers(text, ",", "--samples")


@pytest.mark.parametrize("command", ["growth", "control"])
def test_a_plot_with_nowhere_to_go_is_reported_before_anything_is_measured(command: str, tmp_path) -> None:
    ended = rlsys_here("bench", command, "--output", tmp_path)
    assert ended.returncode == 2 and f"{tmp_path}: is a folder; give the name of a file." in ended.stderr.replace("\n", "")
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))
