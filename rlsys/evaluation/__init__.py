"""Evaluate a judge on benchmarks: sample each item once, then compute every figure for every k and every strategy from these samples.

`eval_passes` plans the judge's work, up to three files per benchmark; `score_benchmark` computes figures from those files without an
engine; `tables` formats them. The result is eval.json (`rlsys.documents.evaluation`).
"""

from __future__ import annotations

from rlsys.evaluation.passes import EvalPass, eval_passes
from rlsys.evaluation.scoring import score_benchmark, unsupported_reason
from rlsys.evaluation.tables import Grid, by_group, markdown_page, overview

__all__ = ["EvalPass", "Grid", "by_group", "eval_passes", "markdown_page", "overview", "score_benchmark", "unsupported_reason"]
