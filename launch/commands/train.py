"""`rlsys train` and `rlsys sft`: online RL with its evaluations, or the cold start alone."""

from __future__ import annotations

from launch.console import to_stdout
from launch.options import ConfigFile, OnlyCheck, Overrides
from rlsys.system.stopping import stops_at_sigterm


@stops_at_sigterm()
def train(config: ConfigFile, overrides: Overrides = None, check: OnlyCheck = False) -> None:
    """Run the main job: held-out evaluation, cold start, online RL, evaluation again.

    All output goes to the folder run.dir: config.yaml, metrics.jsonl, trajectories/, checkpoints/, logs/, summary.json. If the folder
    already holds a run, the run resumes where it stopped. Settings, data and model are checked before anything starts; all mistakes are
    reported as one list.

    Example: rlsys train launch/configs/quickstart.yaml rl.steps=50 run.dir=runs/longer
    """
    from launch.check import load_checked_config

    settings = load_checked_config("train", config, overrides, check)
    from actors.loops.rl import train as run

    run(settings, console=to_stdout())


@stops_at_sigterm()
def sft(config: ConfigFile, overrides: Overrides = None, check: OnlyCheck = False) -> None:
    """Run the cold start alone: fine-tune on worked trajectories.

    Example: rlsys sft launch/configs/quickstart.yaml sft.rows=512 run.dir=runs/cold-start
    """
    from launch.check import load_checked_config

    settings = load_checked_config("sft", config, overrides, check)
    from actors.loops.rl import train as run

    run(settings, console=to_stdout(), stages=("sft",))
