"""`rlsys ladder`: train and judge every stage from the base model to guided votes, and report what each adds."""

from __future__ import annotations

from launch.console import to_stdout
from launch.options import ConfigFile, OnlyCheck, Overrides


def ladder(config: ConfigFile, overrides: Overrides = None, check: OnlyCheck = False) -> None:
    """Run the ladder of arXiv 2504.02495 on one model and one set of tasks: base, RFT, RL, vote@k, meta@k, Bradley-Terry baseline.

    Each stage is a run in its own folder under run.dir (base, rft, rl, fresh, meta, bt, eval-*), as the separate commands would produce.
    All stages are judged on the same test rows, which are used for nothing else. ladder.json and page.html hold accuracies with
    confidence intervals and what each stage adds, paired by row. If the command is interrupted, run it again to resume.

    Example: rlsys ladder launch/configs/ladder-tiny.yaml run.dir=runs/ladder
    """
    from launch.check import load_checked_config

    settings = load_checked_config("ladder", config, overrides, check)
    from actors.loops.ladder import run_ladder
    from launch.commands.report import report

    run_ladder(settings, to_stdout())
    folder = settings.run.dir.absolute()
    report([folder, *(folder / name for name in ("eval-rl", "rl", "meta", "bt"))], folder / "page.html")
