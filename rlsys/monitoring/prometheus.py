"""A Prometheus configuration for a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

DISCOVERY = "prom_metrics_service_discovery.json"
"""File in the session's folder in which the head of a cluster with a dashboard lists the metrics endpoints of all nodes."""


def configuration(session: Path, rule_files: Sequence[Path], interval_s: int = 10) -> str:
    """Return a configuration that scrapes every node of the cluster and evaluates the rules.

    Args:
        session: folder of the cluster's session on its head.
        interval_s: seconds between scrapes, and between evaluations.
    """
    document = {
        "global": {"scrape_interval": f"{interval_s}s", "evaluation_interval": f"{interval_s}s"},
        "rule_files": [str(path) for path in rule_files],
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [{"files": [str(session / DISCOVERY)], "refresh_interval": "10s"}]}],
    }
    return "# Written by `rlsys board`.\n" + yaml.safe_dump(document, sort_keys=False)
