"""The scalar model's ranks and its scorer, in real Ray actors with real DeepSpeed, against a plain PyTorch loop and transformers alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.learner import deepspeed_engine as ds
from actors.learner.scalar_learner import ScalarLearner
from actors.scalar_scorer import ScalarScorer
from rlsys.config.schema import Learner
from rlsys.data.chain import TOKENS
from rlsys.models.scalar import Group, load_scalar_model, scalar_batch
from rlsys.models.zoo import FAMILIES, build

WAIT_S = 600
LR = 2e-4
LENGTHS = ((9, (5, 12, 3, 8)), (17, (7, 1)), (4, (15, 6, 2)))
"""Prompt length and text lengths of each group."""


class Probe(ScalarLearner):
    """A learner whose engine can be rebuilt with other settings, and that tells its weights."""

    def rebuild(self, objective: str, learner: dict[str, Any], dtype: str = "float32") -> None:
        self.objective = objective
        self.learner = Learner(token_budget=64, max_grad_norm=0.5, betas=(0.9, 0.95), weight_decay=0.1).model_copy(update=learner)
        self.dtype = getattr(torch, dtype)
        self._build()
        self.start_stage(LR, 0)

    def weights(self) -> dict[str, np.ndarray]:
        return {name: whole.float().numpy().copy() for name, whole in ds.full_weights(self.engine.module.model)}


@pytest.fixture(scope="module")
def ranks(start_ranks, tiny_model, tmp_path_factory):
    logs = tmp_path_factory.mktemp("scalar_logs")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    actor = ray.remote(Probe).options(num_cpus=0)

    def start(world_size: int):
        common = {"world_size": world_size, "model_path": str(tiny_model), "learner": Learner(ranks=world_size), "dtype": "float32"}
        common |= {"seed": 5, "log_dir": str(logs), "threads": 1, "timeout_s": WAIT_S}
        return start_ranks(lambda rank: actor.remote("bce", rank=rank, **common), world_size)

    return {world_size: start(world_size) for world_size in (1, 2)}


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    generator = np.random.default_rng(1)
    return [
        Group(str(g), tokens(generator, prompt), tuple(tokens(generator, n) for n in lengths), (0.0, 1.0, *[0.0] * (len(lengths) - 2)))
        for g, (prompt, lengths) in enumerate(LENGTHS)
    ]


def tokens(generator: np.random.Generator, length: int) -> np.ndarray:
    return generator.integers(3, 500, length).astype(np.int32)


class Plain:
    """The two losses as the papers write them, row by row over transformers' own classifier, with torch's own clipping and AdamW."""

    def __init__(self, model_path: Path, folder: Path):
        load_scalar_model(model_path, torch.float32, seed=5).model.save_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1)

    def scores(self, group: Group) -> list[torch.Tensor]:
        return [self.model(torch.tensor(np.concatenate([group.prompt, text])[None]).long()).logits[0, 0] for text in group.texts]

    def step(self, groups: list[Group], objective: str) -> dict[str, float]:
        self.optimizer.zero_grad()
        losses, right = [], []
        for group in groups:
            scores = self.scores(group)
            best = scores[1]
            if objective == "bce":
                losses += [-torch.log(torch.sigmoid(s if label else -s)) for s, label in zip(scores, group.labels)]
                right += [(s.item() > 0) == bool(label) for s, label in zip(scores, group.labels)]
            else:
                others = [s for s in scores if s is not best]
                losses.append(-sum(torch.log(torch.sigmoid(best - s)) for s in others) / len(others))
                right.append(np.mean([best.item() > s.item() for s in others]))
        loss = sum(losses) / len(losses)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5).item()
        self.optimizer.step()
        return {"loss": loss.item(), "accuracy": float(np.mean(right)), "grad_norm": norm}

    def weights(self) -> dict[str, np.ndarray]:
        return {name: p.detach().numpy().copy() for name, p in self.model.named_parameters()}


def distance(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> float:
    """Norm of the difference, over the norm of `right`."""
    assert left.keys() == right.keys()
    return np.sqrt(sum(np.square(left[n] - right[n]).sum() for n in left) / sum(np.square(right[n]).sum() for n in right))


def batch_of(groups: list[Group], objective: str) -> pa.RecordBatch:
    return scalar_batch(groups, 64 if objective == "bce" else None)


@pytest.mark.parametrize("objective", ["bce", "bt"])
@pytest.mark.parametrize(("stage", "world_size"), [(0, 1), (2, 1), (0, 2), (1, 2), (2, 2), (3, 2)])
def test_two_steps_equal_the_plain_loop(ranks, groups, tiny_model, tmp_path, stage, world_size, objective):
    """So any number of ranks gives what one gives: the head is the same on all, and losses of micro-batches add up."""
    ranks[world_size]("rebuild", objective, {"zero_stage": stage})
    plain = Plain(tiny_model, tmp_path)
    for _ in range(2):
        before = plain.weights()
        expected = plain.step(groups, objective)
        metrics = ranks[world_size].first("train", batch_of(groups, objective))
        for name in ("loss", "accuracy", "grad_norm"):
            assert metrics[name] == pytest.approx(expected[name], rel=2e-5, abs=1e-7), name
        weights = ranks[world_size].first("weights")
        moved = {name: weights[name] - before[name] for name in weights}
        assert distance(moved, {name: value - before[name] for name, value in plain.weights().items()}) < 2e-3
    assert metrics["tokens"] == sum(sum(lengths) for _, lengths in LENGTHS)
    scores = ranks[world_size].first("score", batch_of(groups, objective))
    assert scores == pytest.approx([s.item() for group in groups for s in plain.scores(group)], abs=2e-3)


@pytest.mark.parametrize(("stage", "world_size"), [(2, 1), (3, 2)])
def test_training_goes_on_from_a_checkpoint_bit_for_bit(ranks, groups, stage, world_size, tmp_path):
    learner = ranks[world_size]
    learner("rebuild", "bce", {"zero_stage": stage})
    learner("decay_over", 4)
    learner("train", batch_of(groups, "bce"))
    learner("save", str(tmp_path))
    uninterrupted = learner.first("train", batch_of(groups, "bce"))
    expected = learner.first("weights")

    learner("rebuild", "bce", {"zero_stage": stage})
    learner("decay_over", 4)
    learner("load", str(tmp_path))
    resumed = learner.first("train", batch_of(groups, "bce"))
    assert (resumed["loss"], resumed["lr"]) == (uninterrupted["loss"], uninterrupted["lr"])
    weights = learner.first("weights")
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)


def test_nothing_that_is_not_finite_reaches_the_weights(ranks, groups):
    ranks[2]("rebuild", "bce", {"zero_stage": 2})
    before = ranks[2].first("weights")
    poisoned = [Group(g.id, g.prompt, g.texts, (float("nan"), *g.labels[1:])) for g in groups[:1]] + groups[1:]
    metrics = ranks[2].first("train", batch_of(poisoned, "bce"))
    assert metrics["skipped"] == 1 and "not finite" in metrics["skip_reason"]
    after = ranks[2].first("weights")
    assert all(np.array_equal(after[name], before[name]) for name in before)


@pytest.fixture(scope="module")
def trained(ranks, groups, tmp_path_factory):
    """A saved model after a few steps on two ZeRO-3 ranks, and the scores that the ranks gave."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    ranks[2]("rebuild", "bce", {"zero_stage": 3})
    losses = [ranks[2].first("train", batch_of(groups, "bce"))["loss"] for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]
    ranks[2]("save_model", str(folder))
    return folder, ranks[2].first("score", batch_of(groups, "bce"))


@torch.no_grad()
def test_a_saved_model_loads_in_transformers_with_the_same_scores(trained, groups, tiny_model):
    folder, scores = trained
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 1 and model.dtype == torch.float32 and model.config.pad_token_id is not None
    whole = [np.concatenate([group.prompt, text]) for group in groups for text in group.texts]
    assert [model(torch.tensor(row[None]).long()).logits.item() for row in whole] == pytest.approx(scores, abs=1e-5)
    text = "Scores: \\boxed{9, 2}"
    assert AutoTokenizer.from_pretrained(folder).encode(text) == AutoTokenizer.from_pretrained(tiny_model).encode(text)


def tables(prompts: Sequence[Any], texts: Sequence[Any]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Return PROMPTS and SAMPLES, as far as a scorer reads them, with one text per prompt."""
    asked = {"group": pa.array(range(len(prompts)), pa.int32()), "prompt_token_ids": pa.array(list(prompts), TOKENS)}
    given = {"group": pa.array(range(len(texts)), pa.int32()), "token_ids": pa.array(list(texts), TOKENS)}
    return pa.record_batch(asked), pa.record_batch(given)


def test_the_scorer_gives_the_trained_models_scores(ray_session, trained, groups, tmp_path):
    folder, scores = trained
    scorer = ray.remote(ScalarScorer).options(num_cpus=0).remote("scorer-0", str(folder), "float32", 1, str(tmp_path), token_budget=32)
    description = ray.get(scorer.ready.remote(), timeout=WAIT_S)
    assert (description["name"], description["objective"], description["packing"]) == ("scorer-0", "bce", True)

    def score(prompts: list[Any], texts: list[Any]) -> list[float]:
        return ray.get(scorer.score.remote(*tables(prompts, texts)), timeout=WAIT_S)

    rows = [(group.prompt, text) for group in groups for text in group.texts]
    order = np.random.default_rng(0).permutation(len(rows))
    found = score(*zip(*[rows[i] for i in order]))
    assert found == pytest.approx([scores[i] for i in order], abs=1e-5)

    # An engine's tokens end with the end of the turn, and the tiny model pads with another special token.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ended = [np.append(text, [tokenizer.eos_token_id, tokenizer.pad_token_id]) for _, text in rows]
    assert score([prompt for prompt, _ in rows], ended) == pytest.approx(scores, abs=1e-5)
    (nothing,), (end,) = score([rows[0][0]], [[]]), score([rows[0][0]], [[tokenizer.eos_token_id]])
    assert nothing == end
    assert score([], []) == []
    with pytest.raises(ray.exceptions.RayTaskError, match="scorer-0: group 1: prompt_token_ids is empty"):
        score([[5], []], [[6], [7]])
    ray.kill(scorer)


def test_the_scorer_takes_part_of_a_table(trained, groups, tmp_path):
    """A slice shares its table's memory and begins elsewhere in it."""
    folder, scores = trained
    scorer = ScalarScorer("scorer", str(folder), "float32", 1)
    rows = [(group.prompt, text) for group in groups for text in group.texts]
    prompts, samples = tables(*zip(*rows))
    assert scorer.score(prompts.slice(3, 4), samples.slice(3, 4)) == pytest.approx(scores[3:7], abs=1e-5)


def test_the_scorer_reads_samples_by_their_group(trained, groups):
    folder, scores = trained
    scorer = ScalarScorer("scorer", str(folder), "float32", 1)
    texts = [(7 * place, text) for place, group in enumerate(groups) for text in group.texts]
    prompts, _ = tables([group.prompt for group in groups], [])
    prompts = prompts.set_column(0, "group", pa.array([7 * place for place in range(len(groups))], pa.int32()))
    order = np.random.default_rng(1).permutation(len(texts))
    columns = {"group": pa.array([texts[i][0] for i in order], pa.int32()), "token_ids": pa.array([texts[i][1] for i in order], TOKENS)}
    assert scorer.score(prompts, pa.record_batch(columns)) == pytest.approx([scores[i] for i in order], abs=1e-5)


def test_tokens_of_another_vocabulary_are_encoded_anew(tiny_model, tmp_path):
    """The scorer's tokenizer has two letters the other way round: ids of the judge's would be other words to it."""
    load_scalar_model(tiny_model, torch.float32, seed=5).model.save_pretrained(tmp_path)
    judge = AutoTokenizer.from_pretrained(tiny_model)
    judge.save_pretrained(tmp_path)
    form = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = form["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(form))
    own = AutoTokenizer.from_pretrained(tmp_path)

    def batch(tokenizer) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        columns = (["Is A or B better?", "B?"], ["A is. \\boxed{9, 3}", "AB"])
        return tables(*([tokenizer.encode(text, add_special_tokens=False) for text in column] for column in columns))

    scorer = ScalarScorer("scorer", str(tmp_path), "float32", 1, judge_path=str(tiny_model))
    assert "2 of the first have another id" in scorer.ready()["tokens_differ"]
    alike = ScalarScorer("scorer", str(tmp_path), "float32", 1)
    assert alike.ready()["tokens_differ"] is None
    assert scorer.score(*batch(judge)) == pytest.approx(alike.score(*batch(own)), abs=1e-5)
    assert scorer.score(*batch(judge)) != pytest.approx(alike.score(*batch(judge)), abs=1e-3)


def test_the_scorer_takes_a_model_that_was_trained_without_packing(groups, tiny_model, tmp_path):
    """Its attention cannot be packed, and nothing in its folder says so."""
    folder = tmp_path / "scorer"
    build(next(family for family in FAMILIES if family.name == "GPT-Neo"), vocab_size=512).save_pretrained(tmp_path / "base")
    load_scalar_model(tmp_path / "base", torch.float32, packing=False).model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    scorer = ScalarScorer("scorer", str(folder), "float32", 1)
    description = scorer.ready()
    assert description["packing"] is False and description["self_check"]["logprob_error"] < 1e-4
    rows = [(group.prompt, text) for group in groups for text in group.texts]
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    alone = [model(torch.tensor(np.concatenate(row)[None]).long()).logits.item() for row in rows]
    assert scorer.score(*tables(*zip(*rows))) == pytest.approx(alone, abs=1e-4)
