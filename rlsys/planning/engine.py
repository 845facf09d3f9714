"""Memory of one rollout engine per GPU, by part, and what its cache holds.

The cache keeps, per token and layer, keys and values of every key head: 2 x key heads x head dimension x bytes (vLLM's
`FullAttentionSpec.page_size_bytes` divided by its block size); with latent attention one latent vector and one rotary key. Layers with a
window are counted like the others: vLLM gives all layers pages of one size. A tensor-parallel engine divides weights and key heads by its
GPUs; with fewer key heads than GPUs each GPU keeps one whole, and so it does with a latent vector. On a GPU the engine takes
`rollout.gpu_memory_utilization` of the memory, and the cache gets what weights and the activations of its largest step leave; on a CPU
the cache has a size of its own.
"""

from __future__ import annotations

from rlsys.config.schema import Config
from rlsys.planning.cluster import GIB, Machines
from rlsys.planning.learner import element_bytes
from rlsys.planning.settings import Resolved
from rlsys.planning.shape import ModelShape


def token_bytes(shape: ModelShape, config: Config, resolved: Resolved) -> float:
    """Return the cache's bytes per token on one GPU."""
    heads = max(1, shape.cache_heads // config.rollout.tensor_parallel)  # replicated where there are fewer than GPUs
    return resolved.cache_width * shape.cached * heads / shape.cache_heads


def engine_bytes(shape: ModelShape, config: Config, resolved: Resolved, machines: Machines) -> dict[str, float]:
    """Return what an awake engine holds on each of its GPUs; a negative cache means that the rest alone is too large."""
    # Kernels for CPUs have a packed copy of a tied embedding, as the output layer.
    copied = shape.hidden * shape.vocabulary if shape.tied and not machines.gpus else 0
    parts = {
        "engine weights": element_bytes(config) * (shape.parameters + copied) / config.rollout.tensor_parallel,
        "engine activations": _activation_bytes(shape, config, resolved),
    }
    budget = config.rollout.gpu_memory_utilization * machines.memory_gib * GIB
    cache = budget - sum(parts.values()) if resolved.kv_cache_bytes is None else float(resolved.kv_cache_bytes)
    return parts | {"KV cache": cache}


def _activation_bytes(shape: ModelShape, config: Config, resolved: Resolved) -> float:
    """Return the peak of a step: two hidden states, the widest layer's intermediate values, and the logits of one token per sequence, which
    the sampler keeps in fp32 beside their log-softmax.
    """
    width, parallel = element_bytes(config), config.rollout.tensor_parallel
    widest = max(3 * shape.mlp, 2 * shape.query + shape.key + shape.value) / parallel
    layer = resolved.max_num_batched_tokens * width * (2 * shape.hidden + widest)
    return layer + resolved.max_num_seqs * shape.vocabulary * (width + 2 * 4)
