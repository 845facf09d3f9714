"""How new weights reach the rollout engines: vLLM's weight-transfer protocol, driven from the learners over Ray.

    learner ranks                     rollout actors (Ray)              engine processes (vLLM)
    start                         ->  drain requests, pause         ->  begin layerwise reload
    pack bucket, ray.put once     ->  write a shared-memory file    ->  map it, load_weights      (per bucket)
    finish(version)               ->  reset prefix cache, resume    <-  end layerwise reload

Backend "cpu" is ours (`actors.weight_engine`, registered in every vLLM process through `register`); "nccl" and "ipc" are
vLLM's own, for GPUs. With "cpu" a learner never imports vLLM, which would cost each rank 13 s and half a gigabyte.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from actors.weight_source import DeepSpeedSource, WeightSource

__all__ = ["DeepSpeedSource", "Trainer", "WeightTransferError", "checksum", "compare", "make_trainer", "pack", "register", "unpack"]

ALIGNMENT = 64
"""Bytes; tensors in a bucket begin at multiples of it, so that views of any dtype are aligned."""

Table = list[tuple[str, str, list[int], int]]
"""A bucket's table of contents: (name, dtype name, shape, offset in bytes) of each tensor."""

Digest = tuple[str, int, int, int, str, str]
"""What an engine process holds: (Hugging Face name, dimension, start, length, checksum, where); see `WorkerExtension`."""


class WeightTransferError(RuntimeError):
    """Weights did not arrive as they should; the message names the rollout actor and, where it is about them, the tensors."""


def register() -> None:
    """Entry point of group `vllm.general_plugins`: makes backend "cpu" known to a vLLM process. May run more than once."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    try:
        WeightTransferEngineFactory.register_engine("cpu", "actors.weight_engine", "CpuWeightTransferEngine")
    except ValueError:
        pass  # An earlier call in this process did it: vLLM may load plugins several times.


# --- the wire format -------------------------------------------------------------------------------------------------


def pack(weights: Iterable[tuple[str, Tensor]], bucket_bytes: int) -> Iterator[tuple[Table, Tensor]]:
    """Pack tensors into buckets: (table, uint8 tensor of at most `bucket_bytes`).

    A tensor larger than that gets a bucket of its own. A bucket is valid until the next one is asked for.
    """
    table: Table = []
    buffer = torch.empty(bucket_bytes, dtype=torch.uint8)
    end = 0
    for name, tensor in weights:
        size = tensor.numel() * tensor.element_size()
        start = -(-end // ALIGNMENT) * ALIGNMENT
        if table and start + size > bucket_bytes:
            yield table, buffer[:end]
            table, start = [], 0
        end = start + size
        if end > buffer.numel():
            buffer = torch.empty(end, dtype=torch.uint8)
        buffer[start:end].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        table.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), start))
    if table:
        yield table, buffer[:end]


def unpack(table: Table, buffer: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The inverse of `pack`: views into `buffer`, nothing is copied."""
    for name, dtype_name, shape, offset in table:
        dtype = getattr(torch, dtype_name)
        size = torch.Size(shape).numel() * dtype.itemsize
        yield name, buffer[offset : offset + size].view(dtype).view(shape)


# --- checksums -------------------------------------------------------------------------------------------------------


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


# --- the learner's side ----------------------------------------------------------------------------------------------


class RayClient:
    """vLLM's `VLLMWeightSyncClient` over our rollout actors: every call goes to all of them and waits at most `timeout_s`."""

    def __init__(self, actors: Sequence[Any], timeout_s: float):
        self.actors, self.timeout_s = list(actors), timeout_s
        self.version = 0
        self.names = [f"rollout actor {i} of {len(self.actors)}" for i in range(len(self.actors))]
        told = self._all("identity", [actor.identity.remote() for actor in self.actors])
        self.names = [each["name"] for each in told]
        self.world_sizes = [each["tensor_parallel"] for each in told]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        refs, offset = [], init_info.get("rank_offset", 0)
        for actor, size in zip(self.actors, self.world_sizes, strict=True):
            # vLLM numbers the workers of ONE engine; with several, each engine's ranks begin where the last one's ended.
            info = {**init_info, "rank_offset": offset} if "rank_offset" in init_info else init_info
            refs.append(actor.init_weight_transfer.remote(info))
            offset += size
        self._all("init_weight_transfer", refs)

    def start_weight_update(self) -> None:
        self._all("start_update", [actor.start_update.remote() for actor in self.actors])

    def update_weights(self, update_info: dict[str, Any], payload: Any = None) -> None:
        self._all("update", [actor.update.remote(update_info, payload) for actor in self.actors])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        version = self.version if weight_version is None else int(weight_version)
        self._all("finish_update", [actor.finish_update.remote(version) for actor in self.actors])

    def checksums(self) -> dict[str, list[list[Digest]]]:
        answers = self._all("checksums", [actor.checksums.remote() for actor in self.actors])
        return dict(zip(self.names, answers, strict=True))

    def _all(self, call: str, refs: list[Any]) -> list[Any]:
        # Late, as every vLLM process loads this module (`register`), and has no use for Ray.
        from actors.waiting import ActorFailed, Pending, wait

        try:
            return wait([Pending(ref, name, call) for ref, name in zip(refs, self.names, strict=True)], self.timeout_s)
        except ActorFailed as error:
            raise WeightTransferError(str(error)) from error


class Sender(Protocol):
    """What brings one round of weights over: our CpuSender, or a trainer engine of vLLM's."""

    def send_weights(self) -> None: ...


class CpuSender:
    """Packed buckets through Ray's object store: one `ray.put` each, however many engines there are, on any machine."""

    def __init__(self, source: WeightSource, client: RayClient | None, bucket_bytes: int):
        self.source, self.client, self.bucket_bytes = source, client, bucket_bytes
        if client:
            client.init_weight_transfer_engine({})

    def send_weights(self) -> None:
        if self.client is None:
            for _ in self.source:  # Only to take part in the gathers.
                pass
            return
        import ray

        self.client.start_weight_update()
        for table, bucket in pack(self.source, self.bucket_bytes):
            self.client.update_weights({"table": table}, ray.put(bucket.numpy()))
        self.client.finish_weight_update()


class Trainer:
    """One learner rank's end of the transfer; every rank calls the same methods, rank 0 alone talks to the engines."""

    def __init__(self, sender: Sender, source: WeightSource, client: RayClient | None):
        self.sender, self.source, self.client = sender, source, client

    def send_weights(self, version: int, verify: bool = False) -> dict[str, Any]:
        """Bring the present weights to every engine as `version`; `verify` then compares checksums with the live engines.

        Returns:
            seconds (of the transfer) and verify_seconds (0 without it).
        Raises:
            WeightTransferError: an engine failed or did not answer in time, or its weights differ; it is named.
        """
        began = time.monotonic()
        if self.client:
            self.client.version = version
        self.sender.send_weights()
        sent = time.monotonic()
        if verify:
            self.verify()
        return {"seconds": sent - began, "verify_seconds": time.monotonic() - sent if verify else 0.0}

    def verify(self) -> None:
        """Raise WeightTransferError, naming actors and tensors, unless every live engine holds exactly these weights. Collective."""
        if self.client is None:
            for _ in self.source:
                pass
            return
        complaints = compare(self.source, self.client.checksums())
        if complaints:
            more = f"\n... and {len(complaints) - 20} more" if len(complaints) > 20 else ""
            raise WeightTransferError("weights of learner and engines differ after a transfer:\n" + "\n".join(complaints[:20]) + more)


def make_trainer(
    backend: str, rank: int, source: WeightSource, rollout_actors: Sequence[Any], bucket_mib: int, timeout_s: float
) -> Trainer:
    """Open the transfer from learner `rank` to the (ready) rollout actors. Called on every rank; rank 0 is the sender.

    Args:
        backend: "cpu", "nccl" or "ipc", the same as the rollout actors' `weight_backend`.
        bucket_mib: size of one packed bucket, MiB.
        timeout_s: longest wait for one call to a rollout actor, in seconds.
    """
    bucket_bytes = bucket_mib * 2**20
    client = RayClient(rollout_actors, timeout_s) if rank == 0 else None
    if backend == "cpu":
        return Trainer(CpuSender(source, client, bucket_bytes), source, client)
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    if backend == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        # Ranks other than the sender never use the address.
        host, port = _rendezvous() if client else ("", 0)
        world_size = 1 + sum(client.world_sizes) if client else 0
        info: Any = NCCLTrainerInitInfo(host, port, world_size, rank=rank, packed=True, packed_buffer_size_bytes=bucket_bytes)
    elif backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        source.everywhere = True  # Each rank hands over a handle to the memory of its own card.
        info = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=bucket_bytes)
    else:
        raise ValueError(f"weights.backend {backend!r}: expected cpu, nccl or ipc.")
    return Trainer(WeightTransferTrainerFactory.trainer_init(info, client=client, source=source), source, client)


def _rendezvous() -> tuple[str, int]:
    """This node's address and a free port below the ephemeral range, where no outgoing connection can take it meanwhile."""
    import random
    import socket

    import ray

    host = ray.util.get_node_ip_address()
    for port in random.SystemRandom().sample(range(20000, 30000), 50):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return host, port
    raise WeightTransferError(f"no free port between 20000 and 30000 on {host} for the nccl rendezvous.")
