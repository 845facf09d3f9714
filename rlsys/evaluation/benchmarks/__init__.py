"""Benchmarks of reward models and judges, scored by their published rules.

`load` reads a benchmark's own files. Any judge can judge its items; `score` and `interval` turn the resulting totals into the published
figures, and `baselines` scores trivial judges. docs/benchmarks.md lists the benchmarks, their sources and where this code deviates.
"""

from __future__ import annotations

from rlsys.evaluation.benchmarks.core import SCORES, Benchmark, Cluster, Item
from rlsys.evaluation.benchmarks.loading import BENCHMARKS, load
from rlsys.evaluation.benchmarks.scoring import Score, baselines, interval, score

__all__ = ["BENCHMARKS", "SCORES", "Benchmark", "Cluster", "Item", "Score", "baselines", "interval", "load", "score"]
