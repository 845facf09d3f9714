"""Micro-batch planning: which tokens are encoded where. Checked by reconstructing the original rows from the tree."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_batches import learner_batch

from rlsys.data.chain import LearnerBatch
from rlsys.models.packing import MicroBatch, plan_micro_batches
from rlsys.models.tree_layout import MAX_NODE, Node, build_layout

token = st.integers(0, 3)


@st.composite
def batches(draw: st.DrawFn) -> LearnerBatch:
    """Groups of 1 to 4 samples; prompts with a common prefix, possibly empty, possibly all of one prompt."""
    opening = draw(st.lists(token, max_size=5))
    rows = []
    for group in range(draw(st.integers(1, 5))):
        prompt = opening + draw(st.lists(token, min_size=0 if opening else 1, max_size=5))
        for _ in range(draw(st.integers(1, 4))):
            rows.append(row(group, prompt, draw(st.lists(token, min_size=1, max_size=6)), float(len(rows))))
    return learner_batch(rows)


def row(group: int, prompt: list[int], tokens: list[int], advantage: float = 1.0) -> dict[str, object]:
    return {
        "group": group,
        "prompt_token_ids": prompt,
        "token_ids": tokens,
        "rollout_logprobs": [-float(i + 1) for i in range(len(tokens))],
        "advantage": advantage,
    }


def visible(micro: MicroBatch) -> torch.Tensor:
    """Return bool [B * T, B * T], which token attends to which, from the layout or (if plain) the mask."""
    total = micro.input_ids.numel()
    seen = torch.zeros(total, total, dtype=torch.bool)
    if micro.layout is None:
        width = micro.input_ids.shape[1]
        for i, length in enumerate(micro.attention_mask.sum(1).tolist()):
            start = i * width
            seen[start : start + length, start : start + length] = torch.ones(length, length).tril().bool()
        return seen
    for block in micro.layout.blocks:
        for own, length in zip(block.tokens, block.lengths.tolist(), strict=True):
            for i in range(length):
                assert not seen[own[i]].any(), "a token in two blocks"
                seen[own[i], block.prefix] = True
                seen[own[i], own[: i + 1]] = True
    return seen


def all_micros(ranks: list[list[MicroBatch]]) -> list[MicroBatch]:
    return [micro for rank in ranks for micro in rank]


@given(batches(), st.integers(1, 3), st.integers(1, 60), st.booleans())
@settings(deadline=None)
def test_every_completion_token_sees_exactly_its_own_row(batch: LearnerBatch, ranks: int, budget: int, packing: bool) -> None:
    rows, found = batch.to_pylist(), {}
    for micro in all_micros(plan_micro_batches(batch, ranks, budget, packing)):
        seen, ids, positions = visible(micro), micro.input_ids.flatten(), micro.position_ids.flatten()
        for source, target, sample in zip(micro.source.tolist(), micro.target.tolist(), micro.sample.tolist(), strict=True):
            context = seen[source].nonzero()[:, 0]
            context = context[positions[context].argsort()]
            assert positions[context].tolist() == list(range(len(context)))
            done = found.setdefault(sample, [])
            assert ids[context].tolist() == rows[sample]["prompt_token_ids"] + done
            done.append(target)
    assert found == {i: r["token_ids"] for i, r in enumerate(rows)}


@given(batches(), st.integers(1, 3), st.integers(1, 60), st.booleans())
@settings(deadline=None)
def test_values_travel_with_their_tokens_and_weights_sum_to_one(batch: LearnerBatch, ranks: int, budget: int, packing: bool) -> None:
    micros = all_micros(plan_micro_batches(batch, ranks, budget, packing))
    sample = torch.cat([m.sample for m in micros])
    for i, r in enumerate(batch.to_pylist()):
        own = sample == i
        assert torch.cat([m.rollout_logprob for m in micros])[own].tolist() == r["rollout_logprobs"]
        assert torch.cat([m.advantage for m in micros])[own].tolist() == [r["advantage"]] * len(r["token_ids"])
        assert torch.cat([m.weight for m in micros])[own].sum().item() == pytest.approx(1 / batch.num_rows)


@given(batches(), st.integers(1, 3), st.integers(8, 60), st.booleans())
@settings(deadline=None)
def test_the_budget_holds_and_ranks_get_equal_counts(batch: LearnerBatch, ranks: int, budget: int, packing: bool) -> None:
    shares = plan_micro_batches(batch, ranks, budget, packing)
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1
    groups = batch.rows["group"].to_pylist()
    for micro in all_micros(shares):
        alone = len({groups[s] for s in micro.sample.tolist()}) == 1 if packing else micro.input_ids.shape[0] == 1
        assert micro.input_ids.numel() <= budget or alone
        assert micro.tokens <= micro.input_ids.numel()


@given(batches(), st.integers(1, 2), st.integers(1, 60), st.booleans())
@settings(deadline=None)
def test_no_two_micro_batches_of_a_rank_would_fit_into_one(batch: LearnerBatch, ranks: int, budget: int, packing: bool) -> None:
    rows = batch.to_pylist()
    for share in plan_micro_batches(batch, ranks, budget, packing):
        filled = [sorted(set(micro.sample.tolist())) for micro in share if len(micro.sample)]
        for one, two in combinations(filled, 2):
            both = learner_batch([rows[i] for i in (*one, *two)])
            ((together,),) = plan_micro_batches(both, 1, 10**9, packing)
            assert together.input_ids.numel() > budget


@pytest.mark.parametrize("packing", [True, False])
@given(batches(), st.data())
@settings(deadline=None)
def test_rows_of_exactly_the_budget_are_one_micro_batch(packing: bool, batch: LearnerBatch, data: st.DataObject) -> None:
    ((whole,),) = plan_micro_batches(batch, 1, 10**9, packing)
    budget = whole.input_ids.numel()
    ((again,),) = plan_micro_batches(batch, 1, budget, packing)
    assert again.input_ids.numel() == budget
    units = len(set(batch.rows["group"].to_pylist())) if packing else batch.num_rows
    if units > 1 and budget > 1:
        assert len(plan_micro_batches(batch, 1, budget - 1, packing)[0]) > 1


def test_the_example_in_the_docstring() -> None:
    rows = [row(0, [1, 2, 3], [7, 8, 9]), row(0, [1, 2, 3], [7, 6]), row(1, [1, 2, 4, 5], [8, 9])]
    ((micro,),) = plan_micro_batches(learner_batch(rows), 1, 100)
    assert micro.input_ids.tolist() == [[1, 2, 3, 7, 8, 7, 4, 5, 8]]
    assert micro.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 2, 3, 4]]
    assert micro.sample.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert micro.source.tolist() == [2, 3, 4, 2, 5, 7, 8]
    assert micro.target.tolist() == [7, 8, 9, 7, 6, 8, 9]


@pytest.mark.parametrize("packing", [True, False])
def test_the_longest_are_placed_first(packing: bool) -> None:
    """Packed, 6 + 4 and 5 + 3 + 2 fill 10 tokens each; shortest first would give 2 + 3 + 4, 5 and 6. Padded: 3 + 3, 3 + 2, 2 + 2."""
    lengths = [2, 3, 4, 5, 6] if packing else [2, 2, 2, 3, 3, 3]
    rows = [row(i, [i] * length, [1]) for i, length in enumerate(lengths)]
    ((*micros,),) = plan_micro_batches(learner_batch(rows), 1, 10 if packing else 6, packing)
    found = sorted(sorted(lengths[i] for i in micro.sample.tolist()) for micro in micros)
    assert found == ([[2, 3, 5], [4, 6]] if packing else [[2, 2], [2, 3], [3, 3]])
    assert [micro.input_ids.numel() for micro in micros] == ([10, 10] if packing else [6, 6, 4])


@pytest.mark.parametrize(("ranks", "budget"), [(0, 8), (-1, 8), (1, 0), (1, -8)])
def test_zero_ranks_or_budget_are_rejected(ranks: int, budget: int) -> None:
    batch = learner_batch([row(0, [1], [2])])
    with pytest.raises(ValueError, match=f"must be at least 1, found {ranks} and {budget}"):
        plan_micro_batches(batch, ranks, budget)
    assert len(plan_micro_batches(batch, 1, 1)[0]) == 1  # one of each will do


def test_weights_use_the_total_number_of_samples() -> None:
    batch = learner_batch([row(0, [1], [2, 3]), row(0, [1], [4])])
    ((micro,),) = plan_micro_batches(batch, 1, 100, total_samples=8)
    assert dict(zip(micro.target.tolist(), micro.weight.tolist())) == {2: 1 / 16, 3: 1 / 16, 4: 1 / 8}
    ((micro,),) = plan_micro_batches(batch, 1, 100, total_samples=2)
    assert sorted(micro.weight.tolist()) == [1 / 4, 1 / 4, 1 / 2]
    with pytest.raises(ValueError, match="2 rows cannot come from 1 samples"):
        plan_micro_batches(batch, 1, 100, total_samples=1)


def test_prompts_and_their_common_prefix_are_encoded_once() -> None:
    rows = [row(g, [9] * 10 + [g] * 5, [1] * 4) for g in (1, 2) for _ in range(8)]
    batch = learner_batch(rows)
    ((packed,),) = plan_micro_batches(batch, 1, 10_000)
    assert packed.tokens == 10 + 2 * (5 + 8 * 3)  # a completion's last token predicts nothing
    ((plain,),) = plan_micro_batches(batch, 1, 10_000, packing=False)
    assert plain.tokens == 16 * (15 + 3)


def test_a_group_is_never_split_when_packing() -> None:
    rows = [row(g, [g, 7], [1, 2, 3]) for g in range(6) for _ in range(3)]
    for micro in all_micros(plan_micro_batches(learner_batch(rows), 2, 10)):
        samples = micro.sample.tolist()
        assert set(samples) == {3 * (s // 3) + k for s in samples for k in range(3)}


def test_planning_is_deterministic_and_balances_work() -> None:
    rows = [row(g, [g] * (3 + 5 * g), [1] * (1 + g)) for g in range(12) for _ in range(2)]
    batch = learner_batch(rows)
    first, second = plan_micro_batches(batch, 3, 64), plan_micro_batches(batch, 3, 64)
    for a, b in zip(all_micros(first), all_micros(second), strict=True):
        assert torch.equal(a.input_ids, b.input_ids)
        assert torch.equal(a.sample, b.sample)
    loads = [sum(micro.tokens for micro in share) for share in first]
    assert max(loads) < 1.2 * min(loads)


def test_a_rank_without_work_gets_dummies() -> None:
    batch = learner_batch([row(0, [1, 2], [3, 4])])
    for packing in (True, False):
        (real,), (dummy,) = plan_micro_batches(batch, 2, 100, packing, pad_token_id=5)
        assert real.source.numel() == 2
        assert dummy.source.numel() == 0
        assert set(dummy.input_ids.flatten().tolist()) == {5}


def test_long_nodes_become_chains() -> None:
    layout = build_layout([Node(0, 3 * MAX_NODE + 1, -1)])
    assert [block.tokens.shape[1] for block in layout.blocks] == [MAX_NODE] * 3 + [1]
    assert [len(block.prefix) for block in layout.blocks] == [i * MAX_NODE for i in range(4)]


@pytest.mark.parametrize(
    "nodes",
    [
        [Node(0, 0, -1)],
        [Node(0, 2, -1), Node(3, 1, 0)],  # a gap
        [Node(0, 2, -1), Node(2, 1, 1)],  # its own parent
        [Node(0, 2, -1), Node(2, 1, 0), Node(3, 1, 0), Node(4, 1, 1)],  # below a node that has ended
    ],
)
def test_nodes_out_of_depth_first_order_are_refused(nodes: list[Node]) -> None:
    with pytest.raises(ValueError, match=f"node {len(nodes) - 1}: expected tokens from"):
        build_layout(nodes)


def test_supervised_rows_need_no_rollout_logprobs() -> None:
    batch = learner_batch([row(0, [1], [2, 3]) | {"rollout_logprobs": None}])
    assert plan_micro_batches(batch, 1, 100)[0][0].rollout_logprob.isnan().all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ([row(0, [1], [2]), row(1, [1], [])], "row 1 .*: token_ids is empty"),
        ([row(0, [], [2])], "row 0 .*: its prompt is empty"),
        ([row(0, [1], [2, 3]) | {"rollout_logprobs": [-1.0]}], r"row 0 \(group 0\): 2 tokens but 1 rollout_logprobs"),
        ([row(0, [1], [2]) | {"advantage": None}], "row 0 .*: advantage is null"),
    ],
)
def test_bad_rows_are_named(rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_micro_batches(learner_batch(rows), 1, 100)


def test_a_row_whose_group_has_no_prompt_is_an_error() -> None:
    batch = learner_batch([row(0, [1], [2]), row(1, [1], [2])])
    with pytest.raises(ValueError, match="row 1 .*: no prompt has this group"):
        plan_micro_batches(replace(batch, prompts=batch.prompts.slice(0, 1)), 1, 100)


def test_moving_a_micro_batch_moves_all_its_tensors() -> None:
    batch = learner_batch([row(0, [1, 2], [3, 4])])
    moved = plan_micro_batches(batch, 1, 100)[0][0].to("meta")
    assert {moved.input_ids.device.type, moved.weight.device.type, moved.layout.blocks[0].tokens.device.type} == {"meta"}
