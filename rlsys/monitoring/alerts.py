"""Prometheus' alert rules for runs, from the metrics in `definitions`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from rlsys.monitoring.queries import value_of

FILE = "rlsys_alerts.yml"
DIED = "ray_node_manager_unexpected_worker_failure_total"
"""Ray's counter of processes that ended unexpectedly."""


@dataclass(frozen=True)
class Thresholds:
    """When the alerts fire."""

    stalled_minutes: float = 30.0
    """Minutes without progress: no phase completed."""
    kl: float = 1.0
    """KL divergence from the reference policy, in nats per token."""
    parse_failures: float = 0.5
    """Fraction of the samples."""
    entropy: float = 0.01
    """Nats per token."""


def rules(limits: Thresholds = Thresholds()) -> list[dict[str, Any]]:
    """Return the rules: alert, expr, for, labels, annotations (summary, description)."""
    minutes, deaths = limits.stalled_minutes, f"sum by (SessionName, Name, Type) ({DIED})"
    return [
        _rule(
            "RlsysNoStep",
            f"time() - {value_of('last_progress')} > {minutes * 60:g}",
            f"{{{{ $labels.run }}}}: no progress for {minutes:g} minutes",
            "No step and no other phase was completed. See the logs of the engines and the learners in RUN/logs.",
            wait="0m",
        ),
        _rule(
            "RlsysKlHigh",
            f"{value_of('kl')} > {limits.kl:g}",
            "{{ $labels.run }}: KL of {{ $value }} nats per token",
            "The policy has moved far from the reference: lower learner.lr or raise rl.beta.",
        ),
        _rule(
            "RlsysParseFailures",
            f"{value_of('parse_failure_share')} > {limits.parse_failures:g}",
            "{{ $labels.run }}: {{ $value | humanizePercentage }} of the samples were not parsed",
            "ray_rlsys_parse_failures has the reasons; `rlsys view RUN` shows the samples.",
        ),
        _rule(
            "RlsysEntropyZero",
            f"{value_of('entropy')} < {limits.entropy:g}",
            "{{ $labels.run }}: entropy of {{ $value }} nats per token",
            "The samples of a group hardly differ, so little is left to learn: lower learner.lr, raise rl.beta or rollout.temperature.",
        ),
        _rule(
            "RlsysActorDied",
            # A counter's first value is no increase to Prometheus, hence the comparison with no series at all.
            f"{deaths} > (sum by (SessionName, Name, Type) ({DIED} offset 5m) or 0 * {deaths})",
            "{{ $labels.Name }} ended unexpectedly ({{ $labels.Type }})",
            "The run ends with an error that names the actor; start it again to resume from its last checkpoint.",
            wait="0m",
            severity="critical",
        ),
    ]


def _rule(name: str, expression: str, summary: str, description: str, wait: str = "5m", severity: str = "warning") -> dict[str, Any]:
    labels, annotations = {"severity": severity}, {"summary": summary, "description": description}
    return {"alert": name, "expr": expression, "for": wait, "labels": labels, "annotations": annotations}


def rules_text(limits: Thresholds = Thresholds()) -> str:
    """Return the rules as a file for Prometheus' `rule_files`."""
    document = {"groups": [{"name": "rlsys", "rules": rules(limits)}]}
    return "# Written by `rlsys board`.\n" + yaml.safe_dump(document, sort_keys=False, width=1000)
