"""How new weights reach the rollout engines: vLLM's weight-transfer protocol, driven from the learners over Ray.

    learner ranks                      rollout actors (Ray)              engine processes (vLLM)
    start                          ->  drain or freeze requests      ->  begin
    cast parts into a slot         ->  "bucket i is there"           ->  load it out of the slot       (per bucket)
    finish(version)                ->  reset prefix cache, resume    <-  end

Backend "cpu" is ours (`actors.weights.engine`, registered in every vLLM process through `register`); "nccl" and "ipc" are
vLLM's own, for GPUs. With "cpu" a learner never imports vLLM, which would cost each rank 13 s and half a gigabyte.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from actors.weights.buckets import Segment, Table, attach, lay_out, one_thread, table_bytes, views
from actors.weights.checks import Digest, compare
from actors.weights.source import DeepSpeedSource, WeightSource
from rlsys.system.timing import PhaseTimer

__all__ = ["CpuSender", "DeepSpeedSource", "RayClient", "Trainer", "WeightTransferError", "make_trainer", "register"]


class WeightTransferError(RuntimeError):
    """Weights did not arrive as they should; the message names the rollout actor and, where it is about them, the tensors."""


def register() -> None:
    """Entry point of group `vllm.general_plugins`: makes backend "cpu" known to a vLLM process. May run more than once."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    try:
        WeightTransferEngineFactory.register_engine("cpu", "actors.weights.engine", "CpuWeightTransferEngine")
    except ValueError:
        pass  # An earlier call in this process did it: vLLM may load plugins several times.


class RayClient:
    """vLLM's `VLLMWeightSyncClient` over our rollout actors: every call goes to all of them and waits at most `timeout_s`."""

    def __init__(self, actors: Sequence[Any], timeout_s: float):
        self.actors, self.timeout_s = list(actors), timeout_s
        self.version = 0
        self.names = [f"rollout actor {i} of {len(self.actors)}" for i in range(len(self.actors))]
        told = self.all("identity")
        self.names = [each["name"] for each in told]
        self.nodes = [each["node"] for each in told]
        self.world_sizes = [each["tensor_parallel"] for each in told]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos, offset = [], init_info.get("rank_offset", 0)
        for size in self.world_sizes:
            # vLLM numbers the workers of ONE engine; with several, each engine's ranks begin where the last one's ended.
            infos.append({**init_info, "rank_offset": offset} if "rank_offset" in init_info else init_info)
            offset += size
        self.wait(self.begin("init_weight_transfer", [(info,) for info in infos]))

    def start_weight_update(self) -> None:
        self.all("start_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.all("update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.all("finish_update", self.version if weight_version is None else int(weight_version))

    def checksums(self) -> dict[str, list[list[Digest]]]:
        return dict(zip(self.names, self.all("checksums"), strict=True))

    def all(self, method: str, *arguments: Any) -> list[Any]:
        """Call `method` on every actor and wait for all answers."""
        return self.wait(self.begin(method, [arguments] * len(self.actors)))

    def begin(self, method: str, arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Call `method` on every actor, each with arguments of its own; returns at once what to `wait` for."""
        return [self.begin_one(number, method, *own) for number, own in enumerate(arguments)]

    def begin_one(self, number: int, method: str, *arguments: Any) -> Any:
        """Call `method` on actor `number`; returns at once what to `wait` for."""
        # Late, as every vLLM process loads this module (`register`), and has no use for Ray.
        from actors.cluster.waiting import Pending

        return Pending(getattr(self.actors[number], method).remote(*arguments), self.names[number], method)

    def wait(self, calls: list[Any]) -> list[Any]:
        """The answers to `calls`. Raises WeightTransferError, naming the actor, where one failed or is late."""
        from actors.cluster.waiting import ActorFailed, wait

        try:
            return wait(calls, self.timeout_s)
        except ActorFailed as error:
            raise WeightTransferError(str(error)) from error


class Sender(Protocol):
    """What brings one round of weights over: our CpuSender, or a trainer engine of vLLM's."""

    def send_weights(self) -> None: ...


class CpuSender:
    """Buckets through memory that the engines of a machine share.

    On the learner's machine a parameter is copied once, cast on the way, into the slot that the engines load it from: by every
    rank the part that it brings, where all ranks are on this machine, so that nothing is gathered; otherwise by rank 0, which
    gathers. For other machines each bucket goes into Ray's object store once, and one rollout actor per machine fetches it into
    the slot there, however many engines that machine has.

    Where learner and engines have cores of their own, a slot is filled while the engines load the one before. Where they share
    them, that would take longer than one after the other, so there is one slot of twice the size, and they take turns.
    """

    def __init__(self, source: WeightSource, client: RayClient | None, bucket_bytes: int, node: str | None = None, layerwise: bool = False):
        """Collective.

        Args:
            client: None on ranks other than 0.
            bucket_bytes: of one of two slots; a tensor larger than that makes the slots as large.
            node: Ray's id of the learner's machine; None: look it up.
            layerwise: load through vLLM's layerwise reload even where copying into the live model would do.
        """
        import ray

        self.source, self.client = source, client
        self.clock = PhaseTimer()
        self.fill_cpu_seconds = 0.0
        self.node = node or ray.get_runtime_context().get_node_id()
        self.together = len(set(self._from_all_ranks(self.node))) == 1
        told = self._open(client, bucket_bytes, layerwise) if client else None
        if self.together:
            told = self._from_all_ranks(told)[0]
        if told:
            self.tables, self.threads = told["tables"], told["threads"]
            memory = self._segment.bytes if client else attach(told["path"], told["slots"] * told["slot_bytes"])
            self.slots = memory.split(told["slot_bytes"])

    def _open(self, client: RayClient, bucket_bytes: int, layerwise: bool) -> dict[str, Any]:
        """Lay the buckets out, open the slots on every machine, and tell the engines. Returns what every rank that writes has to know."""
        threads, writers = torch.get_num_threads(), self.source.ranks if self.together else 1
        # A worker of an engine loads with one thread.
        loaders = sum(workers for workers, of in zip(client.world_sizes, client.nodes, strict=True) if of == self.node)
        left = len(os.sched_getaffinity(0)) - loaders
        taking_turns = loaders > 0 and left < writers
        slots = 1 if taking_turns else 2
        tables = lay_out(self.source.metadata(), 2 * bucket_bytes // slots)
        size = max(table_bytes(table) for table in tables)
        self._segment = Segment(slots * size)
        # The first actor of every other machine keeps the slots there.
        self.keepers = {node: client.nodes.index(node) for node in client.nodes if node != self.node}
        opened = client.wait([client.begin_one(keeper, "open_segment", slots * size) for keeper in self.keepers.values()])
        paths = {**dict(zip(self.keepers, opened, strict=True)), self.node: self._segment.path}
        info = {"slots": slots, "slot_bytes": size, "tables": tables, "layerwise": layerwise}
        client.wait(client.begin("init_weight_transfer", [({**info, "path": paths[node]},) for node in client.nodes]))
        return {**info, "path": self._segment.path, "threads": threads if taking_turns else min(threads, max(1, left // writers))}

    def send_weights(self) -> None:
        """Collective. Raises WeightTransferError where an engine failed or is late."""
        self.clock = PhaseTimer()
        self.fill_cpu_seconds = 0.0
        if self.client is None:
            self._take_part()
            return
        with self.clock.phase("start"):
            started = self.client.begin("start_update", [()] * len(self.client.actors))
        parts = self.source.parts() if self.together else ((name, 0, whole.reshape(-1)) for name, whole in self.source)
        under_way: deque[list[Any]] = deque()
        for number, table in enumerate(self.tables):
            if len(under_way) == len(self.slots):
                with self.clock.phase("load"):
                    self.client.wait(under_way.popleft())
            with self.clock.phase("fill"):
                slot = self._fill(number, table, parts)
            if number == 0:
                with self.clock.phase("start"):
                    self.client.wait(started)
            with self.clock.phase("put"):
                under_way.append(self._hand_over(number, slot))
        with self.clock.phase("load"):
            while under_way:
                self.client.wait(under_way.popleft())
        with self.clock.phase("finish"):
            self.client.finish_weight_update()

    def _take_part(self) -> None:
        """What ranks other than 0 do: write their parts, or, on other machines, join in the gathers."""
        if not self.together:
            for _ in self.source:
                pass
            return
        parts = self.source.parts()
        for number, table in enumerate(self.tables):
            self._fill(number, table, parts)

    def _fill(self, number: int, table: Table, parts: Iterator[tuple[str, int, Tensor]]) -> Tensor:
        """Write this rank's part of bucket `number` into its slot; returns that. Collective where all ranks write."""
        slot = self.slots[number % len(self.slots)][: table_bytes(table)]
        self._all_ranks_are_here()  # Rank 0 comes when the engines have loaded what was in the slot.
        began = time.process_time()
        with one_thread(), ThreadPoolExecutor(self.threads) as pool:
            copies = []  # what was gathered for them lives until they are done: a bucket's worth at most
            for wanted, place in views(table, slot):
                name, first, values = next(parts)
                assert name == wanted, f"{name} came where {wanted} was announced"
                copies.append(pool.submit(place.view(-1)[first : first + values.numel()].copy_, values))
            for copy in copies:
                copy.result()
        self.fill_cpu_seconds += time.process_time() - began
        self._all_ranks_are_here()
        return slot

    def _all_ranks_are_here(self) -> None:
        if self.together and self.source.ranks > 1:
            torch.distributed.barrier()

    def _from_all_ranks(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order."""
        if self.source.ranks == 1:
            return [value]
        # Late, as every vLLM process loads this module (`register`), and has no use for DeepSpeed.
        from actors.learner.deepspeed_engine import from_all_ranks

        return from_all_ranks(value)

    def _hand_over(self, number: int, slot: Tensor) -> list[Any]:
        """Tell every engine that bucket `number` is there; returns what to wait for."""
        fetched = {}
        if self.keepers:
            import ray

            payload = ray.put(slot.numpy())
            start = number % len(self.slots) * self.slots[0].numel()
            fetched = {node: self.client.begin_one(keeper, "fetch", start, payload).ref for node, keeper in self.keepers.items()}
        # Ray starts a call when its arguments are there: on other machines after `fetch` is done.
        return self.client.begin("update", [({"bucket": number}, fetched.get(node)) for node in self.client.nodes])


class Trainer:
    """One learner rank's end of the transfer; every rank calls the same methods, rank 0 alone talks to the engines."""

    def __init__(self, sender: Sender, source: WeightSource, client: RayClient | None):
        self.sender, self.source, self.client = sender, source, client

    def send_weights(self, version: int, verify: bool = False) -> dict[str, Any]:
        """Bring the present weights to every engine as `version`; `verify` then compares checksums with the live engines.

        Returns:
            seconds (of the transfer) and verify_seconds (0 without it). From rank 0 with backend "cpu", too: stages, the seconds that
            it spent on start, fill (gather, cast, copy), put (handing over), load (waiting for engines) and finish, and
            fill_cpu_seconds, which grow less than those of fill where an engine loads on the same core meanwhile.
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
        return {
            "seconds": sent - began,
            "verify_seconds": time.monotonic() - sent if verify else 0.0,
            "stages": dict(self.sender.clock.seconds) if isinstance(self.sender, CpuSender) else {},
            "fill_cpu_seconds": getattr(self.sender, "fill_cpu_seconds", 0.0),
        }

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
