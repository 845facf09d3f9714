"""`rlsys meta-rm`: train a scalar reward model."""

from __future__ import annotations

from launch.console import only_json, to_stderr, to_stdout
from launch.options import AsJson, ConfigFile, OnlyCheck, Overrides


def meta_rm(
    config: ConfigFile,
    overrides: Overrides = None,
    check: OnlyCheck = False,
    as_json: AsJson = False,
) -> None:
    """Train a scalar reward model: the meta reward model that guides votes, or the Bradley-Terry baseline.

    meta_rm.objective=bce learns from judged critiques (meta_rm.data: trajectory files) whether a critique is correct; bt learns from
    preference rows (data.train) which response is better. The run.dir gets model/, which transformers loads as it is, report.json,
    calibration.png, metrics.jsonl and config.yaml. A folder that already holds a run is resumed where it stopped.

    Example: rlsys meta-rm launch/configs/meta-rm-tiny.yaml meta_rm.data='[runs/tiny/trajectories/*.parquet]'
    """
    from launch.check import load_checked_config

    settings = load_checked_config("meta-rm", config, overrides, check)
    from actors.loops.scalar import train_scalar

    with only_json(as_json) as write_json:
        write_json(train_scalar(settings, console=to_stderr() if as_json else to_stdout()))
