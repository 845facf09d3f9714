"""`rlsys policy`: a policy trained by a judge, in the same job."""

from __future__ import annotations

from launch.console import to_stdout
from launch.options import ConfigFile, OnlyCheck, Overrides
from rlsys.system.stopping import stops_at_sigterm


@stops_at_sigterm()
def policy(config: ConfigFile, overrides: Overrides = None, check: OnlyCheck = False) -> None:
    """Train a policy on the scores of a judge (section `judge`), on checks, or on a Bradley-Terry model's scores (`policy.reward`).

    The rows of data.train are prompts: their conversation, in any format. What is not trained on is measured at every step: the checks
    of the rows (gold), the judge's and the Bradley-Terry model's scores. The run folder is that of `rlsys train`, plus judgements/.

    Example: rlsys policy launch/configs/policy-judge.yaml judge.k=8 run.dir=runs/policy-k8
    """
    from launch.check import load_checked_config

    settings = load_checked_config("policy", config, overrides, check)
    from actors.loops.rl import train

    train(settings, console=to_stdout(), stages=("rl",), policy=True)
