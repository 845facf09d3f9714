"""Memory of one learner rank, by part.

Psi parameters on N ranks, in bytes (ZeRO: Rajbhandari et al., arXiv 1910.02054, section 3 and figure 1, with the fp32 gradients that
`actors.learner.deepspeed_engine` accumulates; b = 2 in bfloat16, 4 in float32):

    part            stage 0     stage 1             stage 2         stage 3
    weights         b Psi       b Psi               b Psi           b Psi / N
    gradients       b Psi       4 Psi + 4 Psi / N   4 Psi / N       4 Psi / N
    optimizer       12 Psi      12 Psi / N          12 Psi / N      12 Psi / N      master weights and AdamW's two moments, fp32
    reference       b Psi       b Psi               b Psi           b Psi / N       without beta: none

`learner.reference` may shard the reference at every stage, or keep it on the host. The gradients of a micro-batch pass through a bucket
before they are reduced. ZeRO-3 gathers the weights that a layer needs and keeps up to stage3_max_live_parameters of them, 1e9 by default.
"""

from __future__ import annotations

from rlsys.config.schema import Config
from rlsys.planning.activations import activation_bytes, logits_bytes, recomputed_bytes, softmax_entries
from rlsys.planning.batch import Step
from rlsys.planning.settings import Resolved
from rlsys.planning.shape import ModelShape
from rlsys.system.devices import reference_kind


def state_bytes(shape: ModelShape, config: Config, ranks: int) -> dict[str, float]:
    """Return a rank's states between steps, wherever they are."""
    size, stage, width = shape.parameters, config.learner.zero_stage, element_bytes(config)
    share = size / ranks
    plain = stage == 0 and width == 4  # torch's own AdamW on the weights
    states = {"weights": width * (share if stage == 3 else size), "optimizer": (8 if plain else 12) * (share if stage else size)}
    if config.rl.beta:
        states["reference"] = width * (share if reference_kind(config.learner) == "sharded" else size)
    return states


def states_on_host(config: Config, resolved: Resolved, phase: str) -> set[str]:
    """Return which states are in host memory in a phase.

    Those of `learner.offload` always are, a reference of kind `host` except in training, and what `learner.release` gives back while
    engines wake up and sample.
    """
    learner = config.learner
    found = {"optimizer", "gradients"} if learner.offload != "none" else set()
    if learner.offload == "all":
        found.add("weights")
    if phase != "train" and reference_kind(learner) == "host":
        found.add("reference")
    if phase != "train" and resolved.releases:
        found |= {"optimizer", "gradients"} | ({"reference"} if reference_kind(learner) == "whole" else set())
    return found


def step_bytes(shape: ModelShape, config: Config, resolved: Resolved, step: Step) -> dict[str, float]:
    """Return what a rank needs in addition while it trains."""
    learner, width = config.learner, element_bytes(config)
    pairs = step.micro_batch_groups * softmax_entries(
        config.prompt.max_tokens, config.rl.group_size if learner.packing else 1, config.rollout.max_tokens
    )
    chunk = logits_bytes(shape, resolved.chunk, width, step)
    recomputed = recomputed_bytes(shape, learner, resolved.attention, width, step, pairs)
    parts = {
        "gradients": gradient_bytes(shape, config, step.ranks),
        "gradient buckets": _bucket_bytes(shape, config, resolved),
        "activations": activation_bytes(shape, learner, resolved.attention, width, step, pairs),
        "logits chunk": chunk,
        "recomputed layer": max(recomputed - chunk, 0.0),  # beyond the chunk, whose place it takes
    }
    if learner.zero_stage == 3:
        parts["gathered weights"] = width * min(shape.parameters, resolved.max_live)
    return parts


def gradient_bytes(shape: ModelShape, config: Config, ranks: int) -> float:
    """Return the size of the accumulated gradients of a rank, in bytes."""
    share, stage = shape.parameters / ranks, config.learner.zero_stage
    return (element_bytes(config) * shape.parameters, 4 * (shape.parameters + share), 4 * share, 4 * share)[stage]


def _bucket_bytes(shape: ModelShape, config: Config, resolved: Resolved) -> float:
    """Return the size of the buckets, and of the largest gradient, which exists whole before it enters one."""
    stage, width = config.learner.zero_stage, element_bytes(config)
    whole = width * shape.largest * (2 if shape.tied else 1)  # of a tied embedding, one from each use
    if not stage:
        return whole
    return whole + resolved.gradient_buckets * (4 if stage == 1 else width) * resolved.gradient_bucket


def element_bytes(config: Config) -> int:
    """Return the bytes of a weight of model and activations."""
    return 2 if config.model.dtype == "bfloat16" else 4
