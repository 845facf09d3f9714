"""vLLM's NCCL weight transfer over a rendezvous port that the system chooses and that stays bound, for several jobs on one machine.

vLLM's own `trainer_init` takes a port number, so that another process could take the port between the choice and its use.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from actors.weights.source import WeightSource
    from actors.weights.transfer import RayClient


def nccl_sender(client: RayClient | None, source: WeightSource, bucket_bytes: int, host: str) -> Any:
    """Open vLLM's sender on learner rank 0, which has a `client`; the other ranks only take part in gathering the weights.

    Args:
        bucket_bytes: size of one packed bucket.
        host: this machine's address, as the engines reach it.
    """
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    sender: Any = NCCLTrainerWeightTransferEngine(
        client=client, source=source, is_sender=client is not None, packed=True, packed_buffer_size_bytes=bucket_bytes
    )
    if client is not None:
        sender.model_update_group = _connect(client, sender, host)
    return sender


def _connect(client: RayClient, sender: Any, host: str) -> Any:
    """Form the NCCL group of this rank and all workers of all engines; returns its communicator."""
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload
    from vllm.utils.nccl import unpinned_nccl_env

    world_size = 1 + sum(client.world_sizes)
    listening = socket.create_server((host, 0))  # the group's store takes it over
    port = listening.getsockname()[1]
    info = NCCLWeightTransferInitInfo(
        master_address=host,
        master_port=port,
        rank_offset=1,
        world_size=world_size,
        packed=sender.packed,
        packed_buffer_size_bytes=sender.packed_buffer_size_bytes,
        packed_num_buffers=sender.packed_num_buffers,
    )
    with ThreadPoolExecutor(max_workers=1) as pool:
        joined = pool.submit(client.init_weight_transfer_engine, worker_init_payload(info))
        group = StatelessProcessGroup.create(host, port, 0, world_size, listen_socket=listening)
        with unpinned_nccl_env():
            communicator = PyNcclCommunicator(group, device=torch.accelerator.current_device_index())
        joined.result()
    return communicator
