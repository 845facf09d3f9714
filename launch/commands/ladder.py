"""`rlsys ladder`: climb from the base model to guided votes, one rung after the other, and say what each adds."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from launch.console import UserError, atomic_output, print_text, to_stdout
from launch.options import ConfigFile, OnlyCheck, Overrides

if TYPE_CHECKING:
    from rlsys.config.schema import Config
    from rlsys.data.records import Record
    from rlsys.evaluation.ladder import Rightness

BENCHMARK = "format:rlsys"
STAGES = ("sft", "rft", "rl", "eval", "meta_rm", "ladder")
"""Sections of the config that only some rungs read."""
ABLATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "principles": ("RFT without principles", "rft", {"prompt__principles": False}),
    "hinted": ("RFT without hinted samples", "rft", {"rft__hinted": False}),
    "non_hinted": ("RFT without samples that had no hint", "rft", {"rft__non_hinted": False}),
    "instructions": ("RFT without instruction data", "rft", {"rft__instruction_data": None}),
    "rejection": ("RL without RFT", "rl", {}),
}
"""By name: title, the rung that it is an ablation of, and what is changed."""
NOTES = [
    "RFT and RL are compared with the model before, greedily and by one sample (base@1, rft@1, vote@1: the mean over samples, each with "
    "the responses in a fresh order); the Bradley-Terry baseline with RL, greedy; vote@k with vote@1; "
    "meta@k, the vote of the half that the meta reward model prefers, with vote@k; an ablation, by one sample, with the model that it is "
    "one of.",
    "A tie at the top is shared out. vote and meta are means over random subsets of one set of samples.",
]


def ladder(
    config: ConfigFile,
    overrides: Overrides = None,
    check: OnlyCheck = False,
) -> None:
    """Climb the ladder of arXiv 2504.02495 on one model and one set of tasks: base, RFT, RL, vote@k, meta@k, and a Bradley-Terry baseline.

    Each rung is a run in a folder of its own under run.dir (base, rft, rl, fresh, meta, bt, eval-*), made by the commands that one can also
    give by hand, and kept. All are judged on the same test rows, which nothing was tuned on. ladder.json and page.html hold accuracy with
    intervals and what each rung adds, paired by row. The same command on the same folder goes on where it stopped.

    Example: rlsys ladder launch/configs/ladder-tiny.yaml run.dir=runs/ladder
    """
    from launch.check import checked_config

    settings = checked_config("ladder", config, overrides, check)
    from actors.cluster.session import ray_session

    climb = Climb(settings)
    climb.records_to_test()  # too few of them would be told after hours otherwise
    with ray_session(settings.run):
        climb.train()
        document = climb.judge()
        climb.write(document)
        for name in settings.ladder.ablations:
            document["rungs"].append(climb.ablation(name))
            climb.write(document)
    from launch.commands.report import report

    folders = [climb.folder, *(climb.folder / name for name in ("eval-rl", "rl", "meta", "bt"))]
    report(folders, climb.folder / "page.html")


class Climb:
    """One ladder's folders."""

    def __init__(self, config: Config):
        self.config, self.folder, self.console = config, config.run.dir.absolute(), to_stdout()
        self.tests = self.folder / "test.jsonl"
        self.base = str(self.folder / "base") if config.ladder.primer_rows else config.model.path
        self.singles: dict[str, Rightness] = {}

    def stage(self, name: str, reads: tuple[str, ...], **changed: Any) -> Config:
        """The settings of one rung: its own folder, and `section__key=value`.

        Of STAGES it has those that it `reads`, the others as they are by default: a folder refuses other settings than it was begun
        with, and what a later rung does may still change.
        """
        from rlsys.config.schema import Config

        tree = self.config.model_dump(mode="json", exclude={section for section in STAGES if section not in reads})
        for key, value in ({"run__dir": str(self.folder / name)} | changed).items():
            section, _, inner = key.partition("__")
            tree.setdefault(section, {})[inner] = value
        return Config.model_validate(tree)

    def train(self) -> None:
        """Every model of the ladder; what is complete is not made again."""
        from actors.loops.fresh_samples import fresh_samples
        from actors.loops.rft import rejective_fine_tuning
        from actors.loops.rl import train
        from actors.loops.scalar import train_scalar

        ladder = self.config.ladder
        self.prime("base")
        self.say("RFT: rejective fine-tuning of the base model")
        rejective_fine_tuning(self.stage("rft", ("rft", "eval"), model__path=self.base), self.console)
        self.say("RL: GRPO from there")
        train(self.stage("rl", ("rl", "eval"), model__path=str(self.folder / "rft")), self.console, stages=("rl",))
        self.say("meta RM: fresh samples of the model after RL, and training")
        fresh = self.folder / "fresh" / "samples.parquet"
        model = str(self.folder / "rl")
        seed = self.config.seed + 1_000_003  # other generated rows than any stage trained on; of a file, another order
        fresh_samples(self.stage("fresh", (), model__path=model), ladder.fresh_rows, ladder.fresh_samples, seed, fresh, self.console)
        tables = [str(self.folder / "rft" / "trajectories" / "rft_round_*.parquet"), str(fresh)]
        train_scalar(self.stage("meta", ("meta_rm",), model__path=model, meta_rm__data=tables, meta_rm__objective="bce"), self.console)
        self.say("Bradley-Terry baseline")
        train_scalar(self.stage("bt", ("meta_rm",), meta_rm__objective="bt", meta_rm__rows=ladder.bt_rows), self.console)

    def prime(self, name: str, **changed: Any) -> str:
        """The base model, primed in the folder `name` where that is asked for."""
        from actors.loops.rl import train

        if not self.config.ladder.primer_rows:
            return self.config.model.path
        self.say(f"{name}: a primer on the form")
        train(self.stage(name, ("sft", "eval"), sft__rows=self.config.ladder.primer_rows, **changed), self.console, stages=("sft",))
        return str(self.folder / name)

    def ablation(self, name: str) -> dict[str, Any]:
        """Make a stage again without a part, judge it on the test rows; its rung."""
        from actors.loops.rft import rejective_fine_tuning
        from actors.loops.rl import train
        from rlsys.evaluation.ladder import rung

        title, of, changed = ABLATIONS[name]
        folder, base = f"{of}-without-{name}", self.base
        if name == "principles":
            base = self.prime("base-without-principles", **changed)
        self.say(title)
        stage = self.stage(folder, (of, "eval"), model__path=base, **changed)
        if of == "rft":
            rejective_fine_tuning(stage, self.console)
        else:
            train(stage, self.console, stages=("rl",))
        right, tokens = self.single(folder, str(self.folder / folder), (1, self.config.ladder.single_samples))
        return rung(folder, f"{title}, one sample", right, self.config.seed, self.singles[of], tokens, ablation=True)

    def single(self, name: str, model: str, ks: tuple[int, ...]) -> tuple[Rightness, float]:
        """Judge the test rows with a model: how right one sample is, on average over the largest of `ks`, and its tokens."""
        from rlsys.evaluation.ladder import rightness
        from rlsys.judging.voting import find

        self.evaluate(name, model, tuple(sorted(set(ks))))
        drawn = self.rows(name, "samples")
        right = rightness(drawn, self.gold, find("vote"), 1, ks[-1], self.config.ladder.draws, self.config.seed)
        return right, _tokens(drawn, len(right), 1, ks[-1])

    def judge(self) -> dict[str, Any]:
        """All rungs on the test rows; what ladder.json holds."""
        from rlsys.evaluation.benchmarks import load
        from rlsys.evaluation.ladder import rightness, rung
        from rlsys.judging.voting import find

        ladder, seed = self.config.ladder, self.config.seed
        records = self.records_to_test()
        with atomic_output(self.tests) as aside:
            aside.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records), encoding="utf-8")
        gold = self.gold = {item.id: item.record.best for item in load(BENCHMARK, self.tests).items}
        rungs: list[dict[str, Any]] = []
        before: Rightness | None = None
        single: Rightness | None = None
        for name, model, title in (
            ("base", self.base, "base model"),
            ("rft", str(self.folder / "rft"), "after rejective fine-tuning"),
            ("rl", str(self.folder / "rl"), "after RL"),
        ):
            self.singles[name], tokens = self.single(name, model, ladder.k if name == "rl" else (1, ladder.single_samples))
            greedy = self.rows(name, "greedy")
            right = rightness(greedy, gold, find("vote"), 1, 1, 1, seed)
            rungs.append(rung(name, f"{title}, greedy", right, seed, before, _tokens(greedy, len(records), 1, 1)))
            one = "vote@1" if name == "rl" else f"{name}@1"
            rungs.append(rung(one, f"{title}, one sample", self.singles[name], seed, single, tokens))
            before, single = right, self.singles[name]
        drawn, most = self.rows("rl", "samples"), ladder.k[-1]
        votes = {1: self.singles["rl"]}
        for k in ladder.k[1:]:
            votes[k] = rightness(drawn, gold, find("vote"), k, most, ladder.draws, seed)
            rungs.append(rung(f"vote@{k}", f"vote, k = {k}", votes[k], seed, votes[1], _tokens(drawn, len(records), k, most)))
        for k in ladder.k[1:]:
            guided = rightness(drawn, gold, find("meta"), k, most, ladder.draws, seed)
            rungs.append(rung(f"meta@{k}", f"guided vote, k = {k}", guided, seed, votes[k], _tokens(drawn, len(records), k, most)))
        baseline = dict(zip(gold, self.bradley_terry(records), strict=True))
        rungs.append(rung("bt", "Bradley-Terry baseline", baseline, seed, before, None))
        return {"benchmark": "test rows", "n": len(records), "rungs": rungs, "notes": NOTES}

    def records_to_test(self) -> list[Record]:
        """Rows of two or more responses after those that the stages report on."""
        from rlsys.data.mixtures import open_mixture

        data, ladder = self.config.data, self.config.ladder
        later = islice(open_mixture(data, "heldout", self.config.seed).scan(), data.heldout_rows, None)
        records = list(islice((record for _, record in later if record.n > 1), ladder.test_rows))
        if len(records) < ladder.test_rows:
            raise UserError(
                f"data.heldout={data.heldout}: {len(records)} rows of two or more responses after the first {data.heldout_rows}, "
                f"ladder.test_rows={ladder.test_rows} are wanted; lower one of the two numbers."
            )
        return records

    def evaluate(self, name: str, model: str, ks: tuple[int, ...]) -> None:
        """`rlsys eval` of one model on the test rows, with the meta reward of each sample where votes are wanted."""
        from launch.commands.eval import evaluate

        guided = name == "rl"
        self.say(f"{name}: judging the test rows")
        evaluate(
            model=model,
            benchmark=[f"{BENCHMARK}={self.tests}"],
            output=self.folder / f"eval-{name}",
            settings=[f"run.actor_timeout_s={self.config.run.actor_timeout_s}", f"rollout.kv_cache_gib={self.config.rollout.kv_cache_gib}"],
            k=",".join(map(str, ks)),
            strategy=["vote", "meta", "majority"] if guided else ["vote"],
            meta_rm=str(self.folder / "meta") if guided else None,
            temperature=self.config.ladder.temperature,
            draws=self.config.ladder.draws,
            seed=self.config.seed,
            limit=None,
            swap=guided,
            text=False,
            again=False,
            check=False,
            as_json=False,
        )

    def rows(self, name: str, part: str) -> list[dict[str, Any]]:
        from rlsys.data.readers import strict_rows

        path = self.folder / f"eval-{name}" / f"{BENCHMARK.replace(':', '_')}.{part}.jsonl"
        return [row for _, row in strict_rows(path, lines=True)]

    def bradley_terry(self, records: list[Record]) -> list[float]:
        """By row, whether the baseline gives the best response the highest score; a tie at the top is shared out."""
        import numpy as np
        import torch
        from transformers import AutoTokenizer

        from rlsys.data.scalar_data import preference_group
        from rlsys.models.scalar import load_scalar_model, score_texts
        from rlsys.prompts.chat import ChatError
        from rlsys.prompts.rendering import Prompter

        path = self.folder / "bt" / "model"
        model = load_scalar_model(path, getattr(torch, self.config.model.dtype), packing=self.config.learner.packing).eval()
        prompter = Prompter.of(AutoTokenizer.from_pretrained(path), self.config.prompt)
        groups = []
        for record in records:
            with suppress(ChatError):  # no verdict, which is no right one
                groups.append(preference_group(record, prompter))
        prompts = [group.prompt for group in groups for _ in group.texts]
        with torch.no_grad():
            scores = iter(score_texts(model, prompts, [text for group in groups for text in group.texts], self.config.learner.token_budget))
        judged = {group.row for group in groups}
        right = []
        for record in records:
            if (record.source, record.id) not in judged:
                right.append(0.0)
                continue
            found = np.array([next(scores) for _ in range(record.n)])
            top = found == found.max()
            right.append(float(top[record.best] / top.sum()))
        return right

    def write(self, document: dict[str, Any]) -> None:
        with atomic_output(self.folder / "ladder.json") as aside:
            aside.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    def say(self, text: str) -> None:
        print_text(self.console, f"\n== {text}", "bold")


def _tokens(rows: list[dict[str, Any]], count: int, k: int, drawn: int) -> float:
    """Tokens generated for a row with k of the samples that were drawn of it, on average."""
    return sum(row["tokens"] for row in rows) * k / drawn / count
