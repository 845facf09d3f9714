"""`rlsys meta-rm`: train a scalar reward model."""

from __future__ import annotations

from launch.console import only_json, to_stderr, to_stdout
from launch.options import AsJson, ConfigFile, OnlyCheck, Overrides
from rlsys.system.stopping import stops_at_sigterm


@stops_at_sigterm()
def meta_rm(config: ConfigFile, overrides: Overrides = None, check: OnlyCheck = False, as_json: AsJson = False) -> None:
    """Train a scalar reward model: the meta reward model for guided votes, or the Bradley-Terry baseline.

    With meta_rm.objective=bce the model learns from judged critiques (meta_rm.data: trajectory files) whether a critique is correct; with
    bt, from preference rows (data.train) which response is better. Output in run.dir: model/ (loadable by transformers), report.json,
    calibration.png, metrics.jsonl and config.yaml. If the folder already holds a run, the run resumes where it stopped.

    Example: rlsys meta-rm launch/configs/meta-rm-tiny.yaml meta_rm.data='[runs/tiny/trajectories/*.parquet]'
    """
    from launch.check import load_checked_config

    settings = load_checked_config("meta-rm", config, overrides, check)
    from actors.loops.scalar import train_scalar

    with only_json(as_json) as write_json:
        write_json(train_scalar(settings, console=to_stderr() if as_json else to_stdout()).to_json())
