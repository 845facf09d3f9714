"""Tree attention against an explicit softmax per token along its own path: float64, gradients included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers.masking_utils import chunked_causal_mask_function, sliding_window_causal_mask_function

import rlsys.models.tree_layout
from rlsys.models.tree_attention import Scoring, flex_tree_attention, tree_attention
from rlsys.models.tree_layout import Node, TreeMask, build_layout

NODES = [Node(0, 5, -1), Node(5, 3, 0), Node(8, 6, 1), Node(14, 5, 1), Node(19, 1, 1), Node(20, 4, 0), Node(24, 2, 5)]
HEADS, KEY_HEADS, WIDTH, VALUE_WIDTH = 4, 2, 6, 3
RULES = {
    "everything": None,
    "window 1": sliding_window_causal_mask_function(1),
    "window 4": sliding_window_causal_mask_function(4),
    "window 99": sliding_window_causal_mask_function(99),
    "chunks of 3": chunked_causal_mask_function(3, torch.zeros(1, dtype=torch.long)),
}
SEES: dict[str, Callable[[int, int], bool]] = {
    "everything": lambda i, j: True,
    "window 1": lambda i, j: j == i,
    "window 4": lambda i, j: i - j < 4,
    "window 99": lambda i, j: True,
    "chunks of 3": lambda i, j: i // 3 == j // 3,
}


def paths() -> list[list[int]]:
    """Return, for each token, the path from the root to itself."""
    found = []
    for node in NODES:
        above = found[NODES[node.parent].start + NODES[node.parent].length - 1] if node.parent >= 0 else []
        for token in range(node.start, node.start + node.length):
            found.append([*above, *range(node.start, token + 1)])
    return found


def written_out(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, rule: str, scale: float, cap: float | None) -> Tensor:
    out = torch.empty(1, q.shape[2], HEADS, VALUE_WIDTH, dtype=q.dtype)
    for token, path in enumerate(paths()):
        seen = [other for position, other in enumerate(path) if SEES[rule](len(path) - 1, position)]
        for head in range(HEADS):
            key_head = head // (HEADS // KEY_HEADS)
            scores = k[0, key_head, seen] @ q[0, head, token] * scale
            if cap is not None:
                scores = cap * torch.tanh(scores / cap)
            if sinks is not None:
                scores = torch.cat([scores, sinks[head : head + 1]])
            out[0, token, head] = torch.softmax(scores, 0)[: len(seen)] @ v[0, key_head, seen]
    return out


def inputs(with_sinks: bool) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(1, HEADS, 26, WIDTH), (1, KEY_HEADS, 26, WIDTH), (1, KEY_HEADS, 26, VALUE_WIDTH)] + [(HEADS,)] * with_sinks
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("cap", "with_sinks"), [(None, False), (0.7, False), (None, True), (0.7, True)])
def test_values_and_gradients_equal_the_explicit_softmax(
    rule: str, cap: float | None, with_sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rlsys.models.tree_layout, "MAX_NODE", 4)
    given, layout = inputs(with_sinks), build_layout(NODES)
    q, k, v, sinks = [*given, None][:4]
    expected = written_out(q, k, v, sinks, rule, 1.3, cap)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, given, upstream)
    mask, scoring = TreeMask(layout, RULES[rule]), Scoring(1.3, cap, sinks)
    found = tree_attention(q, k, v, mask, scoring)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(torch.autograd.grad(found, given, upstream), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(tree_attention(q, k, v, mask, scoring), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("cap", "with_sinks"), [(None, False), (0.7, True)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_the_same(rule: str, cap: float | None, with_sinks: bool) -> None:
    q, k, v, sinks = [*(x.detach() for x in inputs(with_sinks)), None][:4]
    with torch.no_grad():
        found = flex_tree_attention(q, k, v, TreeMask(build_layout(NODES), RULES[rule]), Scoring(1.3, cap, sinks))
    torch.testing.assert_close(found, written_out(q, k, v, sinks, rule, 1.3, cap), rtol=1e-6, atol=1e-6)


def test_a_window_longer_than_any_path_costs_nothing() -> None:
    layout = build_layout(NODES)
    assert all(a is b for a, b in zip(layout.rows(4, 2, torch.float64), TreeMask(layout, RULES["window 99"]).rows(4, 2, torch.float64)))


def test_keys_far_outside_a_window_are_not_gathered() -> None:
    rows = TreeMask(build_layout([Node(0, 100, -1), Node(100, 5, 0)]), sliding_window_causal_mask_function(3)).rows(1, 1, torch.float64)
    assert [block.shape[-1] for block in rows] == [0, 2]


def test_noncausal_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="not causal"):
        TreeMask(build_layout(NODES), lambda batch, head, i, j: (j - i) < 2).rows(4, 2, torch.float64)


def random_tree(generator: torch.Generator, depth: int, parent: int, nodes: list[Node]) -> None:
    """Append nodes below `parent`, depth first; some are longer than a block of the mask."""
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        length = int(torch.randint(1, 300, (), generator=generator))
        nodes.append(Node(sum(node.length for node in nodes), length, parent))
        if depth:
            random_tree(generator, depth - 1, len(nodes) - 1, nodes)


@pytest.mark.parametrize("rule", ["everything", "window 4", "window 99", "chunks of 3"])
@pytest.mark.parametrize("seed", range(4))
def test_the_block_mask_equals_the_one_built_from_all_pairs(rule: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlsys.models.tree_layout, "PAIRS", 3)
    nodes: list[Node] = []
    random_tree(torch.Generator().manual_seed(seed), 2, -1, nodes)
    layout, sees = build_layout(nodes), RULES[rule]
    until, position = layout.until, layout.position

    def within(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        path = (j <= i) & (i < until[j])
        return path if sees is None else path & sees(batch, head, position[i], position[j])

    expected, found = create_block_mask(within, None, None, layout.length, layout.length, "cpu"), layout.mask(sees)
    assert layout.length > 3 * 128
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    # Only the listed blocks of a row count.
    for kind in ("", "full_"):
        counts, ours, theirs = (
            getattr(mask, f"{kind}kv_{what}") for mask, what in ((found, "num_blocks"), (found, "indices"), (expected, "indices"))
        )
        for count, left, right in zip(counts.flatten().tolist(), ours[0, 0].tolist(), theirs[0, 0].tolist(), strict=True):
            assert left[:count] == right[:count]
    assert found.shape == expected.shape


def test_a_row_of_a_quarter_of_a_million_tokens_has_a_small_mask() -> None:
    """All pairs would take 64 GiB."""
    layout = build_layout([Node(0, 2**17, -1), *(Node(2**17 + i * 2**14, 2**14, 0) for i in range(8))])
    mask = layout.mask()
    assert mask.shape[-1] == 2**18 and mask.kv_num_blocks.max() == 1 and mask.full_kv_num_blocks.max() == 2**10 + 2**7 - 1
