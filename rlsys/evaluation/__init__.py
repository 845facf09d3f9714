"""Evaluate a judge on benchmarks: sample each item once, then compute every figure for every k and every strategy from these samples.

`eval_passes` plans the judge's work, up to three files per benchmark; `score_benchmark` computes figures from those files without an
engine; `tables` formats them. The result is eval.json:

    {"model": text, "meta_rm": text or null, "k": [increasing], "draws": int, "temperature": float, "seed": int,
     "seconds": wall time of the command that wrote it, "benchmarks": {NAME: BENCHMARK}}

    BENCHMARK = {
      "path": text, "rows": {"read", "used", "beyond_limit", "no_unique_best", "malformed", "passed_over": [[file, reason], ...]},
      "units": int, "items": int, "metric": "accuracy" or "roc_auc",
      "skipped": number of items whose prompt was too long, "skipped_ids": [the first 20 of them],
      "baselines": {"chance", "first", "longer": {"value": float} or null},
      "greedy": POINT, "strategies": {S: {"K": POINT}},
      "position": {biases.position_bias and order_consistency of the greedy samples, pairs in both orders; "samples": the same for the k
        samples}, "length": {biases.length_bias of the k samples},
      "parse_failures": {biases.parse_failures of the k samples; "greedy": the same for the greedy samples},
      "tokens": {biases.tokens_spent of the k samples; "greedy": the same for the greedy samples},
      "examples": [up to 3 correct and 3 incorrect greedy critiques {"id", "query", "responses", "gold", "best", "correct", "text",
        "order", "scores"}]}
    POINT = FIGURES + {"samples_per_item": float, "tokens_per_item": float, "coverage": float}
    FIGURES = {"overall": FIGURE, "groups": {name: FIGURE}, "others": {name: float}}
    FIGURE = {"value": float, "ci95": [low, high] or null, "n": units}

Figures are fractions in [0, 1] (Reward Bench 2 Ties: -0.01 to 1.01) averaged over `draws` resamples (random subsets of the samples), null
if undefined; an interval is null if there are too few units (`Cluster`s). "K" is a value of k as text.
A point's samples and tokens are those the strategy used, averaged over the items that could be judged; its coverage is the fraction of all
items with a verdict, and a missing verdict counts as wrong. An example's `gold` and `best` are indices in the record's own order (for a
single response `gold` is 0 or 1 and `best` null); `best` is null without a verdict and in a tie; `order` and `scores` are as shown.
"""

from __future__ import annotations

from rlsys.evaluation.passes import EvalPass, eval_passes
from rlsys.evaluation.scoring import score_benchmark, unsupported_reason
from rlsys.evaluation.tables import Grid, by_group, markdown_page, overview

__all__ = ["EvalPass", "Grid", "by_group", "eval_passes", "markdown_page", "overview", "score_benchmark", "unsupported_reason"]
