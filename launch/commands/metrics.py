"""`rlsys metrics`: what every metric means."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.console import only_json, to_stdout
from launch.options import AsJson
from rlsys.system.terminal import Table


def metrics(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/metrics.md.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the metrics of a run: name in metrics.jsonl and TensorBoard, name in Prometheus, unit and meaning.

    Example: rlsys metrics
    """
    from rlsys.monitoring.definitions import BY_SUBJECT, reference

    if markdown:
        print(reference(), end="")
        return
    with only_json(as_json) as write_json:
        write_json(
            [
                {"name": metric.name, "prometheus": metric.prometheus_name, "unit": metric.unit, "meaning": metric.meaning, "group": group}
                for group, metrics in BY_SUBJECT.items()
                for metric in metrics
            ]
        )
        if not as_json:
            for group, metrics in BY_SUBJECT.items():
                table = Table("metric", "unit", "meaning", title=group)
                for metric in metrics:
                    table.add_row(metric.name, metric.unit, metric.meaning)
                to_stdout().print(table)
