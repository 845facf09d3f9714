"""What eval.json, ladder.json, a run's summary.json and a scalar reward model's report.json hold, as far as the page shows it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, PositiveInt, model_validator


class Loose(BaseModel):
    """Other keys than those named are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


Interval = tuple[FiniteFloat, FiniteFloat]
Share = FiniteFloat | None
"""In [0, 1]; None where there was nothing to take a share of."""


class Estimate(Loose):
    """A figure with its 95% interval; None where it is not defined, or, the interval, where there are too few rows."""

    value: FiniteFloat | None
    ci95: Interval | None = None
    n: NonNegativeInt | None = None


class Figures(Loose):
    """A benchmark's figures under one way of judging."""

    overall: Estimate
    groups: dict[str, Estimate] = {}
    others: dict[str, FiniteFloat | None] = {}


class Point(Figures):
    """The same for a strategy at one k, with what it spent of an item and the share of items that it gave a verdict on."""

    samples_per_item: FiniteFloat | None = None
    tokens_per_item: FiniteFloat | None = None
    coverage: Share = None


class Baseline(Loose):
    value: FiniteFloat | None


class Position(Loose):
    """rlsys.evaluation.biases.position_bias and order_consistency in one: of the greedy samples in both orders, or of the k samples."""

    first: Share = None
    first_expected: Share = None
    other_order: Share = None
    same_order: Share = None
    samples: Position | None = None
    """The same of the k samples, beside that of the greedy ones."""


class Length(Loose):
    """rlsys.evaluation.biases.length_bias."""

    longest_wins: Share = None
    longest_is_best: Share = None
    correlation: FiniteFloat | None = None


class ParseFailures(Loose):
    """rlsys.evaluation.biases.parse_failures."""

    samples: NonNegativeInt = 0
    failed: NonNegativeInt = 0
    cut_off: NonNegativeInt = 0
    reasons: dict[str, NonNegativeInt] = {}


class Example(Loose):
    """A judged item: responses, gold and best by the record's own order, scores as shown."""

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
            raise ValueError(f"order {self.order} is no order of {len(self.responses)} responses")
        return self


class Benchmark(Loose):
    units: NonNegativeInt
    items: NonNegativeInt
    metric: str
    skipped: NonNegativeInt = 0
    baselines: dict[str, Baseline | None] = {}
    greedy: Point | None = None
    strategies: dict[str, dict[PositiveInt, Point]] = {}
    position: Position | None = None
    length: Length | None = None
    parse_failures: ParseFailures | None = None
    examples: list[Example] = []


class EvalReport(Loose):
    """eval.json."""

    model: str
    meta_rm: str | None = None
    k: list[PositiveInt]
    draws: PositiveInt
    temperature: FiniteFloat
    seed: int
    seconds: FiniteFloat | None = None
    benchmarks: dict[str, Benchmark]


class Difference(Loose):
    """Of a rung and the one before it, over the same rows."""

    mean: FiniteFloat
    ci95: Interval | None


class Rung(Loose):
    name: str
    title: str
    value: FiniteFloat
    ci95: Interval | None
    seed: int | None = None
    minus_previous: Difference | None = None
    tokens_per_item: FiniteFloat | None = None
    ablation: bool = False
    """Stands beside the ladder, not on it."""


class LadderReport(Loose):
    """ladder.json."""

    benchmark: str
    n: PositiveInt
    rungs: list[Rung]
    """Lowest first."""
    notes: list[str] = []


class Family(Loose):
    n: PositiveInt
    accuracy: FiniteFloat


class Stage(Loose):
    """rlsys.evaluation.heldout.summarise."""

    n: PositiveInt
    """Rows."""
    samples: PositiveInt
    reward: FiniteFloat
    reward_ci95: Interval | None
    accuracy: FiniteFloat
    accuracy_ci95: Interval | None
    accuracy_parsed: Share = None
    accuracy_parsed_ci95: Interval | None = None
    parse_failures: dict[str, NonNegativeInt]
    cut_off: NonNegativeInt = 0
    families: dict[str, Family]


class Paired(Difference):
    """Of the mean reward of two stages, and of the accuracy of the rows that parsed in both."""

    accuracy_parsed: Difference | None = None


class RunSummary(Loose):
    """A training run's summary.json."""

    heldout: dict[str, Stage]
    baselines: dict[str, FiniteFloat | None] = {}
    paired: dict[str, Paired] = {}
    seconds: dict[str, FiniteFloat]


class Bin(Loose):
    """Of a reliability table; the last three are None where n is 0, the interval also where rows are few."""

    low: FiniteFloat
    high: FiniteFloat
    n: NonNegativeInt
    predicted: Share
    observed: Share
    ci95: Interval | None

    @model_validator(mode="after")
    def _filled(self) -> Bin:
        if self.n and None in (self.predicted, self.observed):
            raise ValueError("predicted and observed must be numbers where n is above 0")
        return self


class Level(Loose):
    mean: FiniteFloat
    high: FiniteFloat


class ExpectedError(Loose):
    """The expected calibration error; `calibrated`: that of a calibrated model of this size, on average and in all but 5% of the cases."""

    value: FiniteFloat
    calibrated: Level | None = None


class Heldout(Loose):
    """rlsys.evaluation.calibration.summarise and summarise_pairs."""

    n: PositiveInt
    rows: PositiveInt
    base_rate: FiniteFloat
    table: list[Bin]
    auc: Estimate | None = None
    auc_within_row: Estimate | None = None
    pairwise_accuracy: Estimate | None = None
    accuracy: Estimate | None = None
    brier: Estimate | None = None
    log_loss: Estimate | None = None
    rms_calibration_error: Estimate | None = None
    ece: ExpectedError | None = None


class ScalarReport(Loose):
    """A scalar reward model's report.json."""

    objective: str
    model: str
    heldout: Heldout
    seconds: dict[str, FiniteFloat] = {}
