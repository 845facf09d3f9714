"""Verification of a transfer: checksums of learner and engines, tensor by tensor, shard by shard."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

Digest = tuple[str, int, int, int, str, str]
"""A tensor (shard) of an engine process: (Hugging Face name, dimension, start, length, checksum, where); see `WorkerExtension`."""


def checksum(name: str, tensor: Tensor) -> str:
    """Return the SHA-256 of name, dtype, shape and values, in hex. Minus zero counts as zero; NaN differs from every finite value."""
    # Adding zero turns -0.0 into 0.0: an engine may read its packed weights back through a product with the identity matrix.
    plain = (tensor.detach() + 0.0).cpu().contiguous()
    digest = hashlib.sha256(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
    digest.update(plain.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def compare(source: Iterable[tuple[str, Tensor | None]], held: dict[str, list[list[Digest]]]) -> list[str]:
    """Compare the learner's tensors with those of the live engines; returns the differences as messages.

    Args:
        source: the learner's tensors as (name, full tensor), e.g. a WeightSource.
        held: for each rollout actor, for each engine process, the digests of its tensors or shards.
    """
    wanted: dict[str, list[tuple[str, Digest]]] = defaultdict(list)
    for actor, processes in held.items():
        for digests in processes:
            for digest in digests:
                wanted[digest[0]].append((actor, digest))
    differences = []
    for name, tensor in source:
        assert tensor is not None, "rank 0 has every tensor"
        expected: dict[tuple[int, int, int], str] = {}
        covered: dict[str, set[tuple[int, int]]] = defaultdict(set)
        dimension = 0
        for actor, (_, dimension, start, length, found, where) in wanted.pop(name, []):
            covered[actor].add((start, length))
            part = (dimension, start, length)
            if part not in expected:
                expected[part] = checksum(name, tensor.narrow(*part))
            if found != expected[part]:
                differences.append(f"{actor}: {name} (in {where}, {start}..{start + length} of dimension {dimension}) differs")
        size = tensor.shape[dimension]
        differences += [f"{actor}: {name} is incomplete" for actor in held if sum(length for _, length in covered[actor]) != size]
    differences += [f"{actor}: {digest[5]} does not exist in the learner" for rest in wanted.values() for actor, digest in rest]
    return differences
