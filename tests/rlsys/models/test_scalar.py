"""The scalar reward model against transformers' own classifier, one unpacked row at a time, and losses against loops over `math`."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlsys.models.loading import build_tiny
from rlsys.models.packing import plan_micro_batches
from rlsys.models.scalar import (
    Group,
    ScalarModel,
    bce_loss,
    bradley_terry_loss,
    load_classifier,
    load_scalar_model,
    scalar_batch,
    score_texts,
    text_ends,
)

ARCHITECTURES = ("llama", "qwen2", "qwen3")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def classifier(request, tmp_path_factory):
    """Folder of a tiny classifier with a head, as saved by training."""
    folder = tmp_path_factory.mktemp(request.param)
    model = load_scalar_model(build_tiny(folder / "tiny", request.param), torch.float32, seed=3)
    model.model.save_pretrained(folder / "classifier")
    return folder / "classifier"


def numbers(generator: np.random.Generator, length: int) -> np.ndarray:
    return generator.integers(3, 500, length).astype(np.int32)


def rows(seed: int = 0) -> tuple[list[Group], list[np.ndarray], list[np.ndarray]]:
    """Build groups whose prompts have a common prefix, with texts of 0 to 30 tokens; and the prompt and text of each row."""
    generator = np.random.default_rng(seed)
    opening = numbers(generator, 11)
    groups = []
    for length, own in ((0, (0, 1, 17, 3, 30)), (4, (8,)), (9, tuple(generator.integers(1, 30, 8)))):
        texts = tuple(numbers(generator, size) for size in own)
        groups.append(Group("", np.concatenate([opening, numbers(generator, length)]), texts, (0.0,) * len(own)))
    return groups, [group.prompt for group in groups for _ in group.texts], [text for group in groups for text in group.texts]


@torch.no_grad()
def plain_scores(folder, prompts, texts) -> list[float]:
    """Compute scores row by row with transformers, without packing or padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return [model(torch.tensor(np.concatenate(row)[None]).long()).logits.item() for row in zip(prompts, texts, strict=True)]


@pytest.mark.parametrize("token_budget", [8, 64, 4096])
@pytest.mark.parametrize("packing", [True, False])
def test_scores_are_those_of_transformers(classifier, packing, token_budget):
    groups, prompts, texts = rows()
    model = load_scalar_model(classifier, torch.float32, packing=packing)
    scores = score_texts(model, groups, token_budget)
    assert scores.tolist() == pytest.approx(plain_scores(classifier, prompts, texts), abs=2e-5)
    assert np.ptp(scores) > 0.1


def test_transformers_reads_the_same_token_of_a_padded_batch(classifier):
    """Transformers' head reads the last token that is not padding, which is the last token of a text here."""
    groups, prompts, texts = rows()
    model = AutoModelForSequenceClassification.from_pretrained(classifier, dtype=torch.float32)
    whole = [torch.tensor(np.concatenate(row)).long() for row in zip(prompts, texts, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=model.config.pad_token_id)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(one) for one in whole])[:, None]
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
    assert score_texts(load_scalar_model(classifier, torch.float32), groups, 64).tolist() == pytest.approx(padded, abs=2e-5)


def test_a_prompt_is_encoded_once_for_all_of_its_texts():
    generator = np.random.default_rng(0)
    group = Group("a", numbers(generator, 40), tuple(numbers(generator, 5) for _ in range(8)), (1.0,) * 8)
    ((part,),) = plan_micro_batches(scalar_batch([group]), 1, 4096)
    assert part.tokens == 40 + 8 * 5
    assert part.sample[text_ends(part)].tolist() == list(range(8))


def test_scores_are_finer_than_bfloat16(classifier):
    """Hundreds of nearly equal texts get distinct scores; products in bfloat16 would tie."""
    model = load_scalar_model(classifier, torch.bfloat16)
    generator = np.random.default_rng(1)
    prompt = numbers(generator, 20)
    scores = score_texts(model, [Group("", prompt, tuple(numbers(generator, 3) for _ in range(256)), (0.0,) * 256)], 4096)
    assert len(set(scores.tolist())) == 256
    assert len(set(torch.tensor(scores).bfloat16().tolist())) < 256


def test_a_new_head_depends_on_the_seed_alone_and_a_trained_one_stays(tmp_path, classifier):
    tiny = build_tiny(tmp_path / "tiny")
    one, same, other = (load_scalar_model(tiny, torch.float32, seed).model.score.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    trained = [load_scalar_model(classifier, torch.float32, seed).model.score.weight for seed in (1, 2)]
    assert torch.equal(*trained)


@pytest.mark.parametrize(("eos", "pad"), [(2, 2), ([1, 2], 1), (None, None)])
def test_a_model_without_a_padding_token_pads_with_its_eos_token(tmp_path, eos, pad):
    folder = build_tiny(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": eos, "pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_scalar_model(folder, torch.float32).model.config.pad_token_id == pad


def packed_gradient(model: ScalarModel, groups, objective: str, token_budget: int) -> dict[str, torch.Tensor]:
    batch = scalar_batch(groups, token_budget if objective == "bce" else None)
    numbers_ = torch.tensor(batch.rows["group"].to_pylist())
    for part in plan_micro_batches(batch, 1, token_budget)[0]:
        at = text_ends(part)
        score, label = model(part), part.advantage[at]
        if objective == "bce":
            loss, _ = bce_loss(score, label, batch.num_rows)
        else:
            loss, _ = bradley_terry_loss(score, label > 0.5, numbers_[part.sample[at]], len(groups))
        loss.backward()
    return {name: p.grad for name, p in model.model.named_parameters()}


@pytest.mark.parametrize("token_budget", [40, 4096])
@pytest.mark.parametrize("objective", ["bce", "bt"])
def test_gradients_are_those_of_separate_rows(classifier, objective, token_budget):
    generator = np.random.default_rng(2)
    groups = [
        Group(str(g), numbers(generator, 6 + g), tuple(numbers(generator, length) for length in lengths), labels)
        for g, (lengths, labels) in enumerate((((5, 9), (1.0, 0.0)), ((7, 3, 8), (0.0, 0.0, 1.0)), ((4, 6, 5, 9), (0.0, 1.0, 0.0, 0.0))))
    ]
    found = packed_gradient(load_scalar_model(classifier, torch.float32), groups, objective, token_budget)

    plain = AutoModelForSequenceClassification.from_pretrained(classifier, dtype=torch.float32)
    losses = []
    for group in groups:
        score = [plain(torch.tensor(np.concatenate([group.prompt, text])[None]).long()).logits[0, 0] for text in group.texts]
        if objective == "bce":
            losses += [-torch.log(torch.sigmoid(s)) if label else -torch.log(1 - torch.sigmoid(s)) for s, label in zip(score, group.labels)]
        else:
            best = score[group.labels.index(1.0)]
            losses.append(-sum(torch.log(torch.sigmoid(best - s)) for s in score if s is not best) / (len(score) - 1))
    (sum(losses) / len(losses)).backward()
    for name, p in plain.named_parameters():
        assert torch.allclose(found[name], p.grad, rtol=1e-3, atol=1e-6), name


def test_binary_cross_entropy_by_hand():
    loss, metrics = bce_loss(torch.tensor([0.0, math.log(3), math.log(3)]), torch.tensor([1.0, 1.0, 0.0]), 4)
    # probabilities 1/2, 3/4, 3/4; of four texts in all, the fourth on another rank
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3) + math.log(4)) / 4)
    assert metrics["accuracy"] == 1 / 4  # a score of 0 does not say that a critique is correct


def test_bradley_terry_by_hand():
    score = torch.tensor([1.0, 0.0, 2.0, 2.0, 3.0])
    best = torch.tensor([True, False, False, True, False])
    group = torch.tensor([7, 7, 2, 2, 2])
    loss, metrics = bradley_terry_loss(score, best, group, 2)
    first = math.log(1 + math.exp(-1))
    second = (math.log(2) + math.log(1 + math.exp(1))) / 2
    assert loss.item() == pytest.approx((first + second) / 2)
    assert metrics["accuracy"] == pytest.approx((1 + (0.5 + 0) / 2) / 2)


@given(st.lists(st.tuples(st.floats(-20, 20), st.lists(st.floats(-20, 20), min_size=1, max_size=4)), min_size=1, max_size=5))
@settings(deadline=None)
def test_bradley_terry_shares_add_up_to_the_mean_over_rows(rows_):
    """Groups in one micro-batch or in one each give the same sum, equal to a plain loop's mean."""
    parts, total = [], 0.0
    for number, (best, others) in enumerate(rows_):
        score = torch.tensor([*others, best], dtype=torch.float64)
        parts.append((score, torch.tensor([False] * len(others) + [True]), torch.full((len(score),), number)))
        total += sum(math.log1p(math.exp(other - best)) for other in others) / len(others)
    whole = bradley_terry_loss(*(torch.cat(column) for column in zip(*parts)), len(rows_))[0].item()
    assert whole == pytest.approx(total / len(rows_))
    assert sum(bradley_terry_loss(*part, len(rows_))[0].item() for part in parts) == pytest.approx(whole)


def test_a_dummy_micro_batch_has_zero_loss_and_gradient(classifier):
    model = load_scalar_model(classifier, torch.float32)
    group = Group("a", np.array([5, 6], np.int32), (np.array([7], np.int32),), (1.0,))
    _, (dummy,) = plan_micro_batches(scalar_batch([group]), 2, 100)
    none = torch.empty(0, dtype=torch.long)
    for loss in (bce_loss(model(dummy), torch.empty(0), 1), bradley_terry_loss(model(dummy), none.bool(), none, 1)):
        loss[0].backward()
        assert loss[0].item() == 0
    assert all(not p.grad.any() for p in model.model.parameters())


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5), st.integers(1, 40))
@settings(deadline=None)
def test_long_groups_are_split_without_loss(lengths, token_budget):
    prompt = np.arange(1, 8, dtype=np.int32)
    groups = [
        Group(str(g), prompt, tuple(np.full(n, 9, np.int32) for n in own), tuple(float(n % 2) for n in own))
        for g, own in enumerate(lengths)
    ]
    batch = scalar_batch(groups, token_budget)
    flat = [n for own in lengths for n in own]
    assert [len(tokens) - 1 for tokens in batch.rows["token_ids"].to_pylist()] == flat
    assert batch.rows["advantage"].to_pylist() == [n % 2 for n in flat]
    for micro in plan_micro_batches(batch, 1, token_budget)[0]:
        assert micro.tokens <= token_budget or len(text_ends(micro)) == 1
    whole = scalar_batch(groups)
    assert [whole.rows["group"].to_pylist().count(g) for g in range(len(lengths))] == [len(own) for own in lengths]


SIZES = dict(vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)


def build(family: str, **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, num_labels=1, pad_token_id=0, attn_implementation="eager", **settings)
    return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mistral", {"sliding_window": 5}),
        ("gemma2", {"attn_logit_softcapping": 0.01, "head_dim": 32, "query_pre_attn_scalar": 1, "sliding_window": 4}),
    ],
)
def test_windowed_and_capped_attention_is_correct(family, settings, packing):
    groups, prompts, texts = rows()
    reference = build(family, **settings).eval()
    with torch.no_grad():
        whole = [torch.tensor(np.concatenate(row)[None]).long() for row in zip(prompts, texts)]
        expected = [reference(row).logits.item() for row in whole]
    found = score_texts(ScalarModel(build(family, **settings), packing).eval(), groups, 64)
    assert found.tolist() == pytest.approx(expected, abs=2e-5)


def test_a_model_without_a_linear_head_is_refused():
    config = AutoConfig.for_model("bert", hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
    with pytest.raises(ValueError, match="BertForSequenceClassification: expected a causal model with a linear head"):
        ScalarModel(AutoModelForSequenceClassification.from_config(config))


def test_packed_models_refuse_plain_micro_batches(classifier):
    batch = scalar_batch([Group("a", np.array([5, 6], np.int32), (np.array([7], np.int32),), (1.0,))])
    ((plain,),) = plan_micro_batches(batch, 1, 100, packing=False)
    with pytest.raises(ValueError, match="packing=True was given a plain micro-batch"):
        load_scalar_model(classifier, torch.float32)(plain)


def test_a_scorer_needs_a_head_of_its_own(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"its files lack score\.weight"):
        load_classifier(build_tiny(tmp_path / "tiny"), torch.float32, seed=None)
