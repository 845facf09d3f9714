"""Do the engines hold what the learner sent? Checksums of both sides, tensor by tensor, shard by shard."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

Digest = tuple[str, int, int, int, str, str]
"""What an engine process holds: (Hugging Face name, dimension, start, length, checksum, where); see `WorkerExtension`."""


def checksum(name: str, tensor: Tensor) -> str:
    """SHA-256 over name, dtype, shape and values, in hex. Minus zero counts as zero, NaNs never equal a finite value."""
    # Adding zero turns -0.0 into 0.0: an engine may read its packed weights back through a product with the identity.
    plain = (tensor.detach() + 0.0).cpu().contiguous()
    digest = hashlib.sha256(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
    digest.update(plain.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def compare(source: Iterable[tuple[str, Tensor | None]], held: dict[str, list[list[Digest]]]) -> list[str]:
    """Compare the learner's tensors with what the live engines hold; returns complaints, none if all is equal.

    Args:
        source: the learner's (name, whole tensor), e.g. a WeightSource.
        held: per rollout actor, per engine process, the digests of its (shards of) tensors.
    """
    wanted: dict[str, list[tuple[str, Digest]]] = defaultdict(list)
    for actor, processes in held.items():
        for digests in processes:
            for digest in digests:
                wanted[digest[0]].append((actor, digest))
    complaints = []
    for name, tensor in source:
        expected: dict[tuple[int, int, int], str] = {}
        covered: dict[str, set[tuple[int, int]]] = defaultdict(set)
        dimension = 0
        for actor, (_, dimension, start, length, found, where) in wanted.pop(name, []):
            covered[actor].add((start, length))
            part = (dimension, start, length)
            if part not in expected:
                expected[part] = checksum(name, tensor.narrow(*part))
            if found != expected[part]:
                complaints.append(f"{actor}: {name} (in {where}, {start}..{start + length} of dimension {dimension}) differs")
        size = tensor.shape[dimension]
        complaints += [f"{actor}: {name} is not held in full" for actor in held if sum(length for _, length in covered[actor]) != size]
    complaints += [f"{actor}: {digest[5]} is a tensor the learner does not have" for rest in wanted.values() for actor, digest in rest]
    return complaints
