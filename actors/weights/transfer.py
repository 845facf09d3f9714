"""Transfer of new weights to the rollout engines: vLLM's weight-transfer protocol, driven by the learners over Ray.

    learner ranks                      rollout actors (Ray)              engine processes (vLLM)
    start                          ->  drain or freeze requests      ->  begin
    cast parts into a slot         ->  "bucket i is ready"           ->  load it from the slot         (per bucket)
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
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from actors.weights.buckets import Segment, Table, attach, lay_out, one_thread, table_bytes, views
from actors.weights.checks import Digest, compare
from actors.weights.nccl import nccl_sender
from actors.weights.source import DeepSpeedSource, ParamMeta, WeightSource
from rlsys.system.timing import PhaseTimer

if TYPE_CHECKING:
    from actors.cluster.waiting import Pending

__all__ = ["CpuSender", "DeepSpeedSource", "RayClient", "Trainer", "WeightTransferError", "make_trainer", "register"]


class WeightTransferError(RuntimeError):
    """A weight transfer failed; the message names the rollout actor and, where tensors differ, the tensors.

    Args:
        recoverable: the rollout actor died or failed, so that a new one may succeed.
    """

    def __init__(self, message: str, recoverable: bool = False):
        super().__init__(message)
        self.recoverable = recoverable


def register() -> None:
    """Register backend "cpu" in a vLLM process (entry point of group `vllm.general_plugins`). May run more than once."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    try:
        WeightTransferEngineFactory.register_engine("cpu", "actors.weights.engine", "CpuWeightTransferEngine")
    except ValueError:
        pass  # Registered already: vLLM may load plugins several times in a process.


class RayClient:
    """vLLM's `VLLMWeightSyncClient` for rollout actors: a call goes to all of them and waits at most `timeout_s` seconds.

    The `begin_*` methods call the method of that name of `actors.rollout.rollout.RolloutActor` and return what to `wait` for.
    """

    def __init__(self, actors: Sequence[Any], timeout_s: float):
        self.actors, self.timeout_s = list(actors), timeout_s
        self.version = 0
        self.names = [f"rollout actor {i} of {len(self.actors)}" for i in range(len(self.actors))]
        identities = self._all("identity")
        self.names = [identity["name"] for identity in identities]
        self.nodes = [identity["node"] for identity in identities]
        self.world_sizes = [identity["tensor_parallel"] for identity in identities]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos, offset = [], init_info.get("rank_offset", 0)
        for size in self.world_sizes:
            # vLLM numbers the workers of ONE engine; with several, each engine's ranks follow those of the one before.
            infos.append({**init_info, "rank_offset": offset} if "rank_offset" in init_info else init_info)
            offset += size
        self.wait(self.begin_init_weight_transfer(infos))

    def start_weight_update(self) -> None:
        self.wait(self.begin_start_update())

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._all("update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_update", self.version if weight_version is None else int(weight_version))

    def checksums(self) -> dict[str, list[list[Digest]]]:
        return dict(zip(self.names, self._all("checksums"), strict=True))

    def begin_init_weight_transfer(self, infos: Iterable[dict[str, Any]]) -> list[Pending]:
        """Initialise every engine, each with its own info."""
        return [self._begin(number, "init_weight_transfer", info) for number, info in enumerate(infos)]

    def begin_start_update(self) -> list[Pending]:
        return [self._begin(number, "start_update") for number in range(len(self.actors))]

    def begin_update(self, update_info: dict[str, Any], fetched: Iterable[Any]) -> list[Pending]:
        """Load a bucket on every engine once its `fetched` reference (None: nothing to fetch) is ready."""
        return [self._begin(number, "update", update_info, ready) for number, ready in enumerate(fetched)]

    def begin_open_segment(self, number: int, size: int) -> Pending:
        """Open shared memory on the machine of actor `number`."""
        return self._begin(number, "open_segment", size)

    def begin_fetch(self, number: int, start: int, payload: Any) -> Pending:
        """Fetch a bucket to the machine of actor `number`."""
        return self._begin(number, "fetch", start, payload)

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        return self.wait([self._begin(number, method, *arguments) for number in range(len(self.actors))])

    def _begin(self, number: int, method: str, *arguments: Any) -> Pending:
        # Imported late, as every vLLM process loads this module (`register`) and does not need Ray.
        from actors.cluster.waiting import Pending

        return Pending(getattr(self.actors[number], method).remote(*arguments), self.names[number], method)

    def wait(self, calls: list[Pending]) -> list[Any]:
        """Return the results of `calls`. Raises WeightTransferError, naming the actor, if one fails or times out."""
        from actors.cluster.waiting import ActorFailed, wait

        try:
            return wait(calls, self.timeout_s, "run.timeouts_s.weights")
        except ActorFailed as error:
            raise WeightTransferError(str(error), error.recoverable) from error


class Sender(Protocol):
    """Sends one round of weights: our CpuSender, or one of vLLM's trainer engines."""

    def send_weights(self) -> None: ...


class CpuSender:
    """Sends buckets through memory shared by the engines of a machine.

    On the learner's machine each parameter is cast and copied once, into the slot that the engines load it from. If all ranks are on
    that machine, each copies its own part and nothing is gathered; otherwise rank 0 gathers and copies. For other machines each bucket
    is put into Ray's object store once, and one rollout actor per machine fetches it into the slot there, whatever the number of engines.

    If learner and engines have separate cores, a slot is filled while the engines load the previous one. If they share cores, overlap
    would be slower, so there is one slot of twice the size, and they take turns.
    """

    def __init__(self, source: WeightSource, client: RayClient | None, bucket_bytes: int, node: str | None = None):
        """Collective.

        Args:
            client: None on ranks other than 0.
            bucket_bytes: size of one of two slots; a larger tensor enlarges the slots.
            node: Ray's node id of the learner's machine; None: look it up.
        """
        import ray

        self.source, self.client = source, client
        self.clock = PhaseTimer()
        self.fill_cpu_seconds = 0.0
        self.node = node or ray.get_runtime_context().get_node_id()
        self.together = len(set(self._from_all_ranks(self.node))) == 1
        layout = self._open(client, bucket_bytes) if client else None
        if self.together:
            layout = self._from_all_ranks(layout)[0]
        if layout:
            self.tables, self.threads = layout["tables"], layout["threads"]
            memory = self._segment.bytes if client else attach(layout["path"], layout["slots"] * layout["slot_bytes"])
            self.slots = memory.split(layout["slot_bytes"])

    def _open(self, client: RayClient, bucket_bytes: int) -> dict[str, Any]:
        """Lay out the buckets, open the slots on every machine, and initialise the engines. Returns the layout for the writing ranks."""
        threads, writers = torch.get_num_threads(), self.source.ranks if self.together else 1
        # An engine worker loads with one thread.
        loaders = sum(workers for workers, of in zip(client.world_sizes, client.nodes, strict=True) if of == self.node)
        left = len(os.sched_getaffinity(0)) - loaders
        taking_turns = loaders > 0 and left < writers
        slots = 1 if taking_turns else 2
        tables = lay_out(self.source.metadata(), 2 * bucket_bytes // slots)
        size = max(table_bytes(table) for table in tables)
        self._segment = Segment(slots * size)
        # The first actor of every other machine holds the slots there.
        self.keepers = {node: client.nodes.index(node) for node in client.nodes if node != self.node}
        opened = client.wait([client.begin_open_segment(keeper, slots * size) for keeper in self.keepers.values()])
        paths = {**dict(zip(self.keepers, opened, strict=True)), self.node: self._segment.path}
        info = {"slots": slots, "slot_bytes": size, "tables": tables}
        client.wait(client.begin_init_weight_transfer([{**info, "path": paths[node]} for node in client.nodes]))
        return {**info, "path": self._segment.path, "threads": threads if taking_turns else min(threads, max(1, left // writers))}

    def send_weights(self) -> None:
        """Send the current weights. Collective. Raises WeightTransferError if an engine fails or times out."""
        self.clock = PhaseTimer()
        self.fill_cpu_seconds = 0.0
        client = self.client
        if client is None:
            self._send_parts()
            return
        with self.clock.phase("start"):
            started = client.begin_start_update()
        parts = self.source.parts() if self.together else ((name, 0, whole.reshape(-1)) for name, whole in self.source)
        loading: deque[list[Pending]] = deque()
        for number, table in enumerate(self.tables):
            if len(loading) == len(self.slots):
                with self.clock.phase("load"):
                    client.wait(loading.popleft())
            with self.clock.phase("fill"):
                slot = self._fill(number, table, parts)
            if number == 0:
                with self.clock.phase("start"):
                    client.wait(started)
            with self.clock.phase("put"):
                loading.append(self._begin_load(client, number, slot))
        with self.clock.phase("load"):
            while loading:
                client.wait(loading.popleft())
        with self.clock.phase("finish"):
            client.finish_weight_update()

    def _send_parts(self) -> None:
        """On ranks other than 0: write this rank's parts, or, on other machines, take part in the gathers."""
        if not self.together:
            for _ in self.source:
                pass
            return
        parts = self.source.parts()
        for number, table in enumerate(self.tables):
            self._fill(number, table, parts)

    def _fill(self, number: int, table: Table, parts: Iterator[tuple[str, int, Tensor]]) -> Tensor:
        """Write this rank's part of bucket `number` into its slot and return the slot. Collective if all ranks write."""
        slot = self.slots[number % len(self.slots)][: table_bytes(table)]
        self._barrier()  # Rank 0 enters it once the engines have loaded the slot's previous bucket.
        began = time.process_time()
        with one_thread(), ThreadPoolExecutor(self.threads) as pool:
            copies = []  # gathered tensors stay allocated until their copies are done: one bucket at most
            for wanted, place in views(table, slot):
                name, first, values = next(parts)
                assert name == wanted, f"{name} was sent where {wanted} is in the layout"
                copies.append(pool.submit(place.view(-1)[first : first + values.numel()].copy_, values))
            for copy in copies:
                copy.result()
        self.fill_cpu_seconds += time.process_time() - began
        self._barrier()
        return slot

    def _barrier(self) -> None:
        if self.together and self.source.ranks > 1:
            torch.distributed.barrier()

    def _from_all_ranks(self, value: Any) -> list[Any]:
        """Return every rank's `value`, in rank order."""
        if self.source.ranks == 1:
            return [value]
        # Imported late, as every vLLM process loads this module (`register`) and does not need DeepSpeed.
        from actors.learner.deepspeed_engine import from_all_ranks

        return from_all_ranks(value)

    def _begin_load(self, client: RayClient, number: int, slot: Tensor) -> list[Pending]:
        """Make every engine load bucket `number`; returns the pending calls."""
        fetched: dict[str, Any] = {}
        if self.keepers:
            import ray

            payload = ray.put(slot.numpy())
            start = number % len(self.slots) * self.slots[0].numel()
            fetched = {node: client.begin_fetch(keeper, start, payload).ref for node, keeper in self.keepers.items()}
        # Ray starts a call once its arguments are ready: on other machines after `fetch` is done.
        return client.begin_update({"bucket": number}, [fetched.get(node) for node in client.nodes])


class Trainer:
    """One learner rank's side of the transfer; every rank calls the same methods, and only rank 0 calls the engines."""

    def __init__(self, sender: Sender, source: WeightSource, client: RayClient | None):
        self.sender, self.source, self.client = sender, source, client

    def send_weights(self, version: int, verify: bool = False) -> dict[str, Any]:
        """Send the current weights to every engine as `version`; `verify` then compares checksums with the live engines.

        Returns:
            bytes (that each engine gets), seconds (of the transfer) and verify_seconds (0 without `verify`). On rank 0 with backend
            "cpu" also stages, its seconds in start, fill (gather, cast, copy), put (calling the engines), load (waiting for engines) and
            finish, and fill_cpu_seconds, which stay below those of fill while an engine loads on the same core.
        Raises:
            WeightTransferError: an engine failed, timed out, or has different weights; the message names it.
        """
        began = time.monotonic()
        if self.client:
            self.client.version = version
        self.sender.send_weights()
        sent = time.monotonic()
        if verify:
            self.verify()
        return {
            "bytes": sum(torch.Size(shape).numel() * dtype.itemsize for _, dtype, shape in self.source.metadata()),
            "seconds": sent - began,
            "verify_seconds": time.monotonic() - sent if verify else 0.0,
            "stages": dict(self.sender.clock.seconds) if isinstance(self.sender, CpuSender) else {},
            "fill_cpu_seconds": getattr(self.sender, "fill_cpu_seconds", 0.0),
        }

    def verify(self) -> None:
        """Raise WeightTransferError, naming actors and tensors, unless every live engine has exactly these weights. Collective."""
        if self.client is None:
            for _ in self.source:
                pass
            return
        differences = compare(self.source, self.client.checksums())
        if differences:
            more = f"\n... and {len(differences) - 20} more" if len(differences) > 20 else ""
            raise WeightTransferError("weights of learner and engines differ after a transfer:\n" + "\n".join(differences[:20]) + more)


def make_trainer(
    backend: str, rank: int, source: WeightSource, rollout_actors: Sequence[Any], bucket_mib: int, timeout_s: float
) -> Trainer:
    """Open the transfer from learner `rank` to the (ready) rollout actors. Call it on every rank; rank 0 is the sender.

    Args:
        backend: "cpu", "nccl" or "ipc", as the rollout actors' `weight_backend`.
        bucket_mib: size of one packed bucket, MiB; at least that of the largest tensor.
        timeout_s: maximum wait for one call to a rollout actor, in seconds.
    """
    client = RayClient(rollout_actors, timeout_s) if rank == 0 else None
    if backend == "cpu":
        return Trainer(CpuSender(source, client, bucket_mib * 2**20), source, client)
    bucket_bytes = packed_bytes(source.metadata(), bucket_mib)
    if backend == "nccl":
        return Trainer(nccl_sender(client, source, bucket_bytes, _address()), source, client)
    if backend != "ipc":
        raise ValueError(f"weights.backend {backend!r}: expected cpu, nccl or ipc.")
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    source.everywhere = True  # Each rank sends a handle to the memory of its own GPU.
    info = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=bucket_bytes)
    return Trainer(WeightTransferTrainerFactory.trainer_init(info, client=client, source=source), source, client)


def _address() -> str:
    import ray

    return ray.util.get_node_ip_address()


def packed_bytes(metadata: Sequence[ParamMeta], bucket_mib: int) -> int:
    """Return the size of a bucket that fits every tensor: vLLM's ipc transfer refuses a tensor that is larger than its bucket."""
    return max(bucket_mib * 2**20, *(torch.Size(shape).numel() * dtype.itemsize for _, dtype, shape in metadata))
