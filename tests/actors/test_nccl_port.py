"""The rendezvous of the NCCL weight transfer: its port stays bound. vLLM's process group and its store are real, NCCL is not."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from actors.weights import nccl


class Communicator:
    """Stands in for NCCL: the group exchanges the ranks' numbers."""

    def __init__(self, group: Any, device: Any):
        self.ranks = group.all_gather_obj(group.rank)


class Engine:
    """Stands in for the client of one engine with two workers: they join the group as the engine's workers do."""

    world_sizes = (2,)

    def __init__(self):
        self.port, self.taken, self.ranks = 0, None, []

    def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        from vllm.distributed.utils import StatelessProcessGroup

        address, self.port = (info["master_address"], info["master_port"]), info["master_port"]
        # Nobody else can take the port at any time.
        with socket.socket() as other:
            try:
                other.bind(address)
            except OSError as error:
                self.taken = error

        def worker(rank: int) -> list[int]:
            return Communicator(StatelessProcessGroup.create(*address, rank, info["world_size"]), None).ranks

        with ThreadPoolExecutor() as pool:
            self.ranks = list(pool.map(worker, range(info["rank_offset"], info["world_size"])))


def test_all_workers_meet_at_a_port_that_stays_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.device_communicators import pynccl

    monkeypatch.setattr(pynccl, "PyNcclCommunicator", Communicator)
    monkeypatch.setattr("torch.accelerator.current_device_index", lambda: 0)
    senders, engines = [], [Engine(), Engine()]
    for engine in engines:  # as two jobs on one machine
        senders.append(nccl.nccl_sender(engine, [], 2**20, "127.0.0.1"))
    for sender, engine in zip(senders, engines, strict=True):
        assert sender.model_update_group.ranks == [0, 1, 2] and engine.ranks == [[0, 1, 2]] * 2
        assert engine.taken is not None
    assert engines[0].port != engines[1].port
    assert nccl.nccl_sender(None, [], 2**20, "").model_update_group is None
