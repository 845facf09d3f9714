"""`rlsys board`: a Grafana board, Prometheus' alert rules, and a Prometheus configuration that loads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from launch.console import UserError, only_json, print_text, to_stdout
from launch.options import AsJson
from rlsys.monitoring.alerts import Thresholds

SESSION = Path("/tmp/ray/session_latest")
DEFAULTS = Thresholds()


def board(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.")] = Path("monitoring"),
    in_ray: Annotated[
        bool, typer.Option("--in-ray", help="Also show the board in Ray's dashboard, in place of Ray Data's tab under Metrics.")
    ] = False,
    session: Annotated[Path, typer.Option("--session", metavar="DIR", help="Session folder of the Ray cluster's head.")] = SESSION,
    stalled_minutes: Annotated[float, typer.Option(min=0, help="Alert after so many minutes without progress.")] = DEFAULTS.stalled_minutes,
    kl: Annotated[float, typer.Option(help="Alert above this KL divergence, in nats per token.")] = DEFAULTS.kl,
    parse_failures: Annotated[float, typer.Option(help="Alert above this fraction of parse failures.")] = DEFAULTS.parse_failures,
    entropy: Annotated[float, typer.Option(help="Alert below this entropy, in nats per token.")] = DEFAULTS.entropy,
    as_json: AsJson = False,
) -> None:
    """Write a Grafana board, alert rules and a Prometheus configuration for the runs of a Ray cluster.

    All three follow from the definitions that `rlsys metrics` lists. Run it on the head of the cluster, then start Prometheus with
    DIR/prometheus.yml and import DIR/rlsys_grafana_dashboard.json into Grafana, or use --in-ray where Grafana runs with the settings that
    Ray writes (docs/watching.md).

    Example: rlsys board --output monitoring --in-ray --stalled-minutes 60
    """
    from rlsys.io.files import atomic_output
    from rlsys.monitoring import alerts
    from rlsys.monitoring import board as boards
    from rlsys.monitoring.prometheus import configuration

    limits = Thresholds(stalled_minutes, kl, parse_failures, entropy)
    files = {
        output / boards.FILE: boards.board_text(),
        output / alerts.FILE: alerts.rules_text(limits),
        output / "prometheus.yml": configuration(session, [(output / alerts.FILE).absolute()]),
    }
    if in_ray:
        files[_place_in_ray(session)] = boards.board_text(os.environ.get("RAY_GRAFANA_DATA_DASHBOARD_UID", boards.RAY_DATA_UID))
    with only_json(as_json) as write_json:
        for path, text in files.items():
            with atomic_output(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        write_json({"files": [str(path) for path in files]})
        if not as_json:
            for path in files:
                print_text(to_stdout(), str(path))


def _place_in_ray(session: Path) -> Path:
    """Return the file of Ray Data's board, which Ray's dashboard embeds.

    Raises:
        UserError: there is none.
    """
    folder = Path(os.environ.get("RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR", session / "metrics" / "grafana" / "dashboards"))
    file = folder / "data_grafana_dashboard.json"
    if not file.is_file():
        raise UserError(
            f"--in-ray: {file} does not exist; run this on the head of a cluster that was started with its dashboard, and name its "
            "session with --session."
        )
    return file
