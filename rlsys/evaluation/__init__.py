"""Evaluating a judge on benchmarks: one set of samples of each item, and from it every figure for every k and every strategy.

`parts` says what is asked, three files a benchmark; `evaluation` turns what came back into figures, without an engine; `tables` lays the
figures out. All of it ends in eval.json:

    {"model": text, "meta_rm": text or null, "k": [increasing], "draws": int, "temperature": float, "seed": int,
     "seconds": of the command that wrote it, "benchmarks": {NAME: BENCHMARK}}

    BENCHMARK = {
      "path": text, "rows": {"read", "used", "beyond_limit", "no_unique_best", "malformed", "passed_over": [[file, why], ...]},
      "units": int, "items": int, "metric": "accuracy" or "roc_auc",
      "skipped": items whose prompt was too long, "skipped_ids": [the first 20 of them],
      "baselines": {"chance", "first", "longer": {"value": float} or null},
      "greedy": POINT, "strategies": {S: {"K": POINT}},
      "position": {biases.position_bias and order_consistency of the greedy samples, pairs in both orders; "samples": the same of the k
        samples}, "length": {biases.length_bias of the k samples},
      "parse_failures": {biases.parse_failures of the k samples; "greedy": the same of the greedy ones},
      "tokens": {biases.tokens_spent of the k samples; "greedy": the same of the greedy ones},
      "examples": [up to 3 right and 3 wrong greedy critiques {"id", "query", "responses", "gold", "best", "correct", "text", "order",
        "scores"}]}
    POINT = FIGURES + {"samples_per_item": float, "tokens_per_item": float, "coverage": float}
    FIGURES = {"overall": FIGURE, "groups": {name: FIGURE}, "others": {name: float}}
    FIGURE = {"value": float, "ci95": [low, high] or null, "n": units}

Figures are shares in [0, 1] (Reward Bench 2 Ties: -0.01 to 1.01), means over the draws, null where undefined; an interval is
null where units are too few. "K" is a number of k as text.
A point's samples and tokens are those a strategy had to draw, of items that could be asked; its coverage is the share of all items with a
verdict, and no verdict is wrong. An example's `gold` and `best` are indices in the record's own order (of a single response `gold` is 0 or
1 and `best` null); `best` is null without a verdict and in a tie; `order` and `scores` are as shown.
"""

from __future__ import annotations

from rlsys.evaluation.scoring import evaluation, unfit
from rlsys.evaluation.tables import Grid, by_group, overview, page
from rlsys.evaluation.work import Part, parts

__all__ = ["Grid", "Part", "by_group", "evaluation", "overview", "page", "parts", "unfit"]
