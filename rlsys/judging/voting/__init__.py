"""Aggregation of k sampled judgements of a row into one verdict (arXiv 2504.02495).

`Samples` holds the judgements, a *strategy* aggregates them to an `Outcome`, and `best` returns the best response. A strategy is a small
pure function over any number of leading dimensions, registered with `@strategy` and looked up by name with `find_strategy`.
"""

from __future__ import annotations

from rlsys.judging.voting.adaptive import adaptive, e_value, is_decided
from rlsys.judging.voting.samples import Samples, subsets, take
from rlsys.judging.voting.strategies import abstain, borda, majority, mean, meta, meta_weighted, rpc, synthesis, vote
from rlsys.judging.voting.strategy import STRATEGIES, Options, Outcome, Strategy, find_strategy, strategy
from rlsys.judging.voting.table import SampleTable, decide
from rlsys.judging.voting.verdict import Coverage, best, coverage_curve, margin, tied

__all__ = [
    "STRATEGIES",
    "Coverage",
    "Options",
    "Outcome",
    "SampleTable",
    "Samples",
    "Strategy",
    "abstain",
    "adaptive",
    "best",
    "borda",
    "coverage_curve",
    "decide",
    "is_decided",
    "e_value",
    "find_strategy",
    "majority",
    "margin",
    "mean",
    "meta",
    "meta_weighted",
    "rpc",
    "strategy",
    "subsets",
    "synthesis",
    "take",
    "tied",
    "vote",
]
