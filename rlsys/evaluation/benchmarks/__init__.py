"""Benchmarks of reward models and judges: what is judged, and the published scoring of the totals that come out.

`load` reads a benchmark's own files; its items are judged by whoever likes; `score` and `interval` turn the totals into the published
figures, `baselines` scores what needs no judge. docs/benchmarks.md lists the benchmarks, their sources and where our choice differs.
"""

from __future__ import annotations

from rlsys.evaluation.benchmarks.core import SCORES, Benchmark, Cluster, Item
from rlsys.evaluation.benchmarks.loading import BENCHMARKS, load
from rlsys.evaluation.benchmarks.scoring import Score, baselines, interval, score

__all__ = ["BENCHMARKS", "SCORES", "Benchmark", "Cluster", "Item", "Score", "baselines", "interval", "load", "score"]
