"""eval.json: a judge's figures on benchmarks.

All figures are computed from the samples that `rlsys.evaluation.passes` plans, and are None if undefined.
"""

from __future__ import annotations

from pydantic import FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from rlsys.documents.core import Document, Estimate, Share


class Figures(Document):
    """A benchmark's figures for one strategy: fractions in [0, 1] (Reward Bench 2 Ties: -0.01 to 1.01), means over resamples."""

    overall: Estimate
    groups: dict[str, Estimate] = {}
    others: dict[str, FiniteFloat | None] = {}


class Point(Figures):
    """Figures of a strategy at one k, with its cost over the items that could be judged.

    `coverage`: fraction of all items with a verdict; a missing verdict counts as wrong.
    """

    samples_per_item: FiniteFloat | None = None
    tokens_per_item: FiniteFloat | None = None
    coverage: Share = None


class Baseline(Document):
    value: FiniteFloat | None


class BenchmarkBaselines(Document):
    """Accuracy of trivial judges: random scores, the first response, the longest one. None if meaningless."""

    chance: Baseline | None = None
    first: Baseline | None = None
    longer: Baseline | None = None


class BenchmarkRows(Document):
    """Row counts of a benchmark's files: `read` is the sum of the next four."""

    read: NonNegativeInt = 0
    used: NonNegativeInt = 0
    beyond_limit: NonNegativeInt = 0
    no_unique_best: NonNegativeInt = 0
    """Rows without a unique best response, in benchmarks that do not score them."""
    malformed: NonNegativeInt = 0
    """`rlsys.evaluation.benchmarks.core.Benchmark.report` has the reasons."""
    passed_over: tuple[tuple[str, str], ...] = ()
    """(file, reason) for each file without usable rows; their rows are not counted."""


class PositionBias(Document):
    """Which positions win, over `n` samples (`rlsys.evaluation.biases.position_bias`)."""

    first: Share = None
    """Fraction of samples won by the response shown first."""
    first_expected: Share = None
    """The same without bias: the mean of 1 / responses."""
    places: list[FiniteFloat] = []
    """Win rate of each position, over the samples that have it."""
    n: NonNegativeInt = 0


class OrderConsistency(Document):
    """How often two samples of a row have the same winners (`rlsys.evaluation.biases.order_consistency`)."""

    other_order: Share = None
    """Agreement of samples that saw the responses in different orders, averaged over the `rows` with such pairs."""
    same_order: Share = None
    """Agreement of samples that saw the same order."""
    rows: NonNegativeInt = 0


class Position(OrderConsistency, PositionBias):
    """Position bias and consistency of the greedy samples, pairs in both orders; `samples`: the same of the k samples."""

    samples: Position | None = None


class LengthBias(Document):
    """Whether longer responses are preferred, over `n` samples (`rlsys.evaluation.biases.length_bias`)."""

    longest_wins: Share = None
    """Fraction of samples won by the longest response, in characters."""
    longest_expected: Share = None
    """The same without bias: the mean of 1 / responses."""
    longest_is_best: Share = None
    """Fraction of samples in which the longest response should win."""
    correlation: FiniteFloat | None = None
    """Spearman correlation of differences in score and in log length; None if either is constant."""
    n: NonNegativeInt = 0


class ParseFailures(Document):
    """Parse failures of the k samples, reasons in order of frequency; `cut_off` ended at the token limit. `greedy`: of the greedy ones."""

    samples: NonNegativeInt = 0
    failed: NonNegativeInt = 0
    cut_off: NonNegativeInt = 0
    reasons: dict[str, NonNegativeInt] = {}
    greedy: ParseFailures | None = None


class Tokens(Document):
    """Generated tokens of the k samples, including parse failures; means are None if no sample has a count. `greedy`: the greedy ones."""

    total: NonNegativeInt = 0
    per_row: FiniteFloat | None = None
    per_sample: FiniteFloat | None = None
    greedy: Tokens | None = None


class Example(Document):
    """A judged item: responses, gold and best in the record's own order; order and scores as shown.

    For a single response, `gold` is 0 or 1 and `best` None. `best` is None without a verdict and in a tie.
    """

    id: str | int
    query: str
    responses: list[str]
    gold: int | FiniteFloat | None = None
    best: int | None = None
    correct: bool | None = None
    text: str | None = None
    order: list[NonNegativeInt] | None = None
    scores: list[int | FiniteFloat] | None = None

    @model_validator(mode="after")
    def _one_place_per_response(self) -> Example:
        if self.order is not None and sorted(self.order) != list(range(len(self.responses))):
            raise ValueError(f"order {self.order} is not a permutation of {len(self.responses)} responses")
        return self


class BenchmarkReport(Document):
    """A judge's figures on one benchmark."""

    path: str = ""
    rows: BenchmarkRows = BenchmarkRows()
    units: NonNegativeInt
    items: NonNegativeInt
    metric: str
    """accuracy or roc_auc."""
    skipped: NonNegativeInt = 0
    """Items whose prompt was too long; `skipped_ids` names the first 20."""
    skipped_ids: list[str] = []
    baselines: BenchmarkBaselines = BenchmarkBaselines()
    greedy: Point | None = None
    strategies: dict[str, dict[PositiveInt, Point]] = {}
    """By strategy and k."""
    position: Position | None = None
    length: LengthBias | None = None
    """Of the k samples."""
    parse_failures: ParseFailures | None = None
    tokens: Tokens | None = None
    examples: list[Example] = []
    """Up to 3 correct and 3 incorrect greedy critiques."""


class EvalReport(Document):
    """eval.json."""

    model: str
    meta_rm: str | None = None
    k: list[PositiveInt]
    """Increasing."""
    draws: PositiveInt
    """Random subsets of the samples for each k."""
    temperature: FiniteFloat
    seed: int
    benchmarks: dict[str, BenchmarkReport]
    seconds: FiniteFloat | None = None
    """Wall time of the command that wrote it."""
