"""The ladder of arXiv 2504.02495: trains every stage, judges the same test rows with each, and computes what each stage adds.

Read `run_ladder` first. Every stage has a folder of its own and is skipped once complete.
"""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import islice
from typing import Any

from rich.console import Console

from actors.cluster.session import ray_session
from actors.loops.evaluation import Evaluation, applicable_strategies, print_evaluation
from actors.loops.fresh_samples import fresh_samples
from actors.loops.rft import rejective_fine_tuning
from actors.loops.rl import train
from actors.loops.scalar import train_scalar
from rlsys.config.schema import Config
from rlsys.data.mixtures import open_mixture
from rlsys.data.readers import strict_rows
from rlsys.data.records import Record
from rlsys.documents.core import write_document
from rlsys.documents.runs import LadderReport, Rung
from rlsys.evaluation import heldout
from rlsys.evaluation.benchmarks import load
from rlsys.evaluation.ladder import RowAccuracy, row_accuracy, rung
from rlsys.io.files import atomic_output
from rlsys.io.run_folder import resolve_model
from rlsys.judging.setup import judge_config
from rlsys.judging.voting import find_strategy
from rlsys.system.terminal import print_text

BENCHMARK = "format:rlsys"
STAGE_SECTIONS = ("sft", "rft", "rl", "eval", "meta_rm", "ladder", "policy", "judge")
"""Sections of the config that only some stages read."""
FRESH_SEED_OFFSET = 1_000_003
"""Generated rows of another seed than any stage trained on; rows of a file in another order."""
ABLATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "principles": ("RFT without principles", "rft", {"prompt__principles": False}),
    "hinted": ("RFT without hinted samples", "rft", {"rft__hinted": False}),
    "non_hinted": ("RFT without samples that had no hint", "rft", {"rft__non_hinted": False}),
    "instructions": ("RFT without instruction data", "rft", {"rft__instruction_data": None}),
    "rejection": ("RL without RFT", "rl", {}),
}
"""By name: title, the stage that is ablated, and the changed settings."""
NOTES = [
    "RFT and RL are compared with the preceding model, by greedy decoding and by one sample (base@1, rft@1, vote@1: the mean over samples, "
    "each with the responses in a new order); the Bradley-Terry baseline with RL, greedy; vote@k with vote@1; meta@k, the vote of the half "
    "that the meta reward model prefers, with vote@k; an ablation, by one sample, with the full stage.",
    "Credit for a tie at the top is shared. vote and meta are means over random subsets of one set of samples.",
]


def run_ladder(config: Config, console: Console) -> None:
    """Train and judge all stages, then the ablations; ladder.json is rewritten after each ablation."""
    ladder = Ladder(config, console)
    ladder.read_test_rows()  # fail now rather than after hours of training if there are too few
    with ray_session(config.run):
        ladder.train()
        report = ladder.judge()
        ladder.write(report)
        for name in config.ladder.ablations:
            report = report.model_copy(update={"rungs": [*report.rungs, ladder.ablation(name)]})
            ladder.write(report)


class Ladder:
    """One ladder and the folders of its stages."""

    def __init__(self, config: Config, console: Console):
        self.config, self.folder, self.console = config, config.run.dir.absolute(), console
        self.tests = self.folder / "test.jsonl"
        self.base = str(self.folder / "base") if config.ladder.primer_rows else config.model.path
        self.single_sample: dict[str, RowAccuracy] = {}

    def stage_config(self, name: str, reads: tuple[str, ...], **changed: Any) -> Config:
        """Return the settings of a stage: a folder of its own, and changes given as `section__key=value`.

        Sections of STAGE_SECTIONS that the stage does not read keep their defaults: a folder refuses settings other than those it was
        created with, and the settings of later stages may still change.
        """
        tree = self.config.model_dump(mode="json", exclude={section for section in STAGE_SECTIONS if section not in reads})
        for key, value in ({"run__dir": str(self.folder / name)} | changed).items():
            section, _, inner = key.partition("__")
            tree.setdefault(section, {})[inner] = value
        return Config.model_validate(tree)

    def train(self) -> None:
        """Train every model that is not complete yet."""
        ladder = self.config.ladder
        self.prime("base")
        self.announce("RFT: rejective fine-tuning of the base model")
        rejective_fine_tuning(self.stage_config("rft", ("rft", "eval"), model__path=self.base), self.console)
        self.announce("RL: GRPO from the RFT model")
        train(self.stage_config("rl", ("rl", "eval"), model__path=str(self.folder / "rft")), self.console, stages=("rl",))
        self.announce("meta RM: fresh samples of the RL model, then training")
        fresh = self.folder / "fresh" / "samples.parquet"
        model = str(self.folder / "rl")
        seed = self.config.seed + FRESH_SEED_OFFSET
        config = self.stage_config("fresh", (), model__path=model)
        fresh_samples(config, ladder.fresh_rows, ladder.fresh_samples, seed, fresh, self.console)
        tables = [str(self.folder / "rft" / "trajectories" / "rft_round_*.parquet"), str(fresh)]
        config = self.stage_config("meta", ("meta_rm",), model__path=model, meta_rm__data=tables, meta_rm__objective="bce")
        train_scalar(config, self.console)
        self.announce("Bradley-Terry baseline")
        train_scalar(self.stage_config("bt", ("meta_rm",), meta_rm__objective="bt", meta_rm__rows=ladder.bt_rows), self.console)

    def prime(self, name: str, **changed: Any) -> str:
        """Return the base model; with ladder.primer_rows, after fine-tuning on the output format in the folder `name`."""
        if not self.config.ladder.primer_rows:
            return self.config.model.path
        self.announce(f"{name}: fine-tuning on the output format")
        config = self.stage_config(name, ("sft", "eval"), sft__rows=self.config.ladder.primer_rows, **changed)
        train(config, self.console, stages=("sft",))
        return str(self.folder / name)

    def ablation(self, name: str) -> Rung:
        """Repeat a stage without one part, judge the test rows with the result, and return its rung."""
        title, stage, changed = ABLATIONS[name]
        folder, base = f"{stage}-without-{name}", self.base
        if name == "principles":
            base = self.prime("base-without-principles", **changed)
        self.announce(title)
        config = self.stage_config(folder, (stage, "eval"), model__path=base, **changed)
        if stage == "rft":
            rejective_fine_tuning(config, self.console)
        else:
            train(config, self.console, stages=("rl",))
        right, tokens = self.judge_single(folder, str(self.folder / folder), (1, self.config.ladder.single_samples))
        return rung(folder, f"{title}, one sample", right, self.config.seed, self.single_sample[stage], tokens, ablation=True)

    def judge_single(self, name: str, model: str, ks: tuple[int, ...]) -> tuple[RowAccuracy, float]:
        """Judge the test rows with a model; return how right one sample is, averaged over the largest of `ks`, and its tokens."""
        self.evaluate(name, model, sorted(set(ks)))
        samples = self.sampled_rows(name, "samples")
        right = row_accuracy(samples, self.gold, find_strategy("vote"), 1, ks[-1], self.config.ladder.draws, self.config.seed)
        return right, _tokens_per_row(samples, len(right), 1, ks[-1])

    def judge(self) -> LadderReport:
        """Judge the test rows with all stages."""
        ladder, seed = self.config.ladder, self.config.seed
        records = self.read_test_rows()
        with atomic_output(self.tests) as path:
            path.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records), encoding="utf-8")
        gold = self.gold = {item.id: item.record.best for item in load(BENCHMARK, self.tests).items}
        rungs: list[Rung] = []
        previous: RowAccuracy | None = None
        previous_single: RowAccuracy | None = None
        for name, model, title in (
            ("base", self.base, "base model"),
            ("rft", str(self.folder / "rft"), "after rejective fine-tuning"),
            ("rl", str(self.folder / "rl"), "after RL"),
        ):
            single, tokens = self.judge_single(name, model, tuple(ladder.k) if name == "rl" else (1, ladder.single_samples))
            self.single_sample[name] = single
            greedy_rows = self.sampled_rows(name, "greedy")
            greedy = row_accuracy(greedy_rows, gold, find_strategy("vote"), 1, 1, 1, seed)
            rungs.append(rung(name, f"{title}, greedy", greedy, seed, previous, _tokens_per_row(greedy_rows, len(records), 1, 1)))
            single_name = "vote@1" if name == "rl" else f"{name}@1"
            rungs.append(rung(single_name, f"{title}, one sample", single, seed, previous_single, tokens))
            previous, previous_single = greedy, single
        samples, k_max = self.sampled_rows("rl", "samples"), ladder.k[-1]
        votes = {1: self.single_sample["rl"]}
        for k in ladder.k[1:]:
            votes[k] = row_accuracy(samples, gold, find_strategy("vote"), k, k_max, ladder.draws, seed)
            tokens = _tokens_per_row(samples, len(records), k, k_max)
            rungs.append(rung(f"vote@{k}", f"vote, k = {k}", votes[k], seed, votes[1], tokens))
        for k in ladder.k[1:]:
            guided = row_accuracy(samples, gold, find_strategy("meta"), k, k_max, ladder.draws, seed)
            tokens = _tokens_per_row(samples, len(records), k, k_max)
            rungs.append(rung(f"meta@{k}", f"guided vote, k = {k}", guided, seed, votes[k], tokens))
        baseline = dict(zip(gold, self.bradley_terry(records), strict=True))
        rungs.append(rung("bt", "Bradley-Terry baseline", baseline, seed, previous, None))
        return LadderReport(benchmark="test rows", n=len(records), rungs=rungs, baselines=heldout.baselines(records), notes=NOTES)

    def read_test_rows(self) -> list[Record]:
        """Read rows of two or more responses that come after those of the stages' own held-out evaluations.

        Raises:
            ValueError: there are too few.
        """
        data, ladder = self.config.data, self.config.ladder
        later = islice(open_mixture(data, "heldout", self.config.seed).scan(), data.heldout_rows, None)
        records = list(islice((record for _, record in later if record.n > 1), ladder.test_rows))
        if len(records) < ladder.test_rows:
            raise ValueError(
                f"data.heldout={data.heldout}: found {len(records)} rows of two or more responses after the first {data.heldout_rows}, "
                f"expected ladder.test_rows={ladder.test_rows}; lower one of the two numbers."
            )
        return records

    def evaluate(self, name: str, model: str, ks: list[int]) -> None:
        """Evaluate a model on the test rows as `rlsys eval` does; the RL model with the meta reward of each sample."""
        guided = name == "rl"
        self.announce(f"{name}: judging the test rows")
        overrides = [f"run.actor_timeout_s={self.config.run.actor_timeout_s}", f"rollout.kv_cache_gib={self.config.rollout.kv_cache_gib}"]
        overrides += [f"run.timeouts_s.{kind}={seconds}" for kind, seconds in self.config.run.timeouts_s if seconds is not None]
        config, _ = judge_config(model, self.config.seed, overrides)
        config.prompt.scores.single = config.prompt.scores.range
        benchmark = load(BENCHMARK, self.tests)
        names = ["vote", "meta", "majority"] if guided else ["vote"]
        strategies = applicable_strategies(names, benchmark, guided, config.rollout.self_certainty, self.console)
        ladder = self.config.ladder
        evaluation = Evaluation(
            config,
            {BENCHMARK: benchmark},
            self.folder / f"eval-{name}",
            ks,
            ladder.draws,
            ladder.temperature,
            self.config.seed,
            swap=guided,
        )
        meta_rm = resolve_model(self.folder / "meta")[0] if guided else None
        print_evaluation(evaluation.run({BENCHMARK: strategies}, self.console, meta_rm), self.console)

    def sampled_rows(self, name: str, part: str) -> list[dict[str, Any]]:
        path = self.folder / f"eval-{name}" / f"{BENCHMARK.replace(':', '_')}.{part}.jsonl"
        return [row for _, row in strict_rows(path, lines=True)]

    def bradley_terry(self, records: list[Record]) -> list[float]:
        """Return, for each row, whether the baseline scores the best response highest; credit for a tie at the top is shared."""
        import numpy as np
        import torch
        from transformers import AutoTokenizer

        from rlsys.data.scalar_data import preference_group
        from rlsys.models.scalar import load_scalar_model, score_texts
        from rlsys.prompts.chat import ChatError
        from rlsys.prompts.rendering import Prompter

        path = self.folder / "bt" / "model"
        model = load_scalar_model(path, getattr(torch, self.config.model.dtype), packing=self.config.learner.packing).eval()
        prompter = Prompter.from_config(AutoTokenizer.from_pretrained(path), self.config.prompt)
        groups = []
        for record in records:
            with suppress(ChatError):  # no verdict counts as wrong
                groups.append(preference_group(record, prompter))
        scores = iter(score_texts(model, groups, self.config.learner.token_budget))
        judged = {group.row for group in groups}
        right = []
        for record in records:
            if (record.source, record.id) not in judged:
                right.append(0.0)
                continue
            row_scores = np.array([next(scores) for _ in range(record.n)])
            top = row_scores == row_scores.max()
            right.append(float(top[record.best] / top.sum()))
        return right

    def write(self, report: LadderReport) -> None:
        write_document(self.folder / "ladder.json", report)

    def announce(self, text: str) -> None:
        print_text(self.console, f"\n== {text}", "bold")


def _tokens_per_row(rows: list[dict[str, Any]], count: int, k: int, k_max: int) -> float:
    """Return the mean number of tokens generated for k of the k_max samples of a row."""
    return sum(row["tokens"] for row in rows) * k / k_max / count
