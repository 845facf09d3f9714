"""Mistakes that a person makes at the keyboard: said in words, at once, and nothing else happens. No test here starts Ray."""

from __future__ import annotations

from pathlib import Path

from launch.judge import judge_config
from rlsys.config import load_config, save_config


def test_a_judge_takes_names_as_they_stand_and_a_runs_own_prompt(tmp_path: Path) -> None:
    run = tmp_path / "a #3"
    (run / "model").mkdir(parents=True)
    save_config(load_config(None, ["prompt.template=my: template.jinja", "rollout.max_tokens=77", "rl.beta=0.5"]), run / "config.yaml")
    config, scorer = judge_config(str(run), str(run), seed=5, settings=["rollout.actors=2", "run.dir=x #1"])
    assert config.model.path == scorer == str(run / "model")
    assert (config.prompt.template, config.rollout.max_tokens, config.rollout.actors) == ("my: template.jinja", 77, 2)
    assert (config.seed, config.run.dir) == (5, Path("x #1"))
    assert config.rl == load_config(None).rl  # of the run's own settings only those that a judge needs
    assert judge_config("some #3", None, 0, None)[0].model.path == "some #3"
