"""The machines that a plan is for, and which actor gets which device."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.config.schema import Config
from rlsys.system.placement import place

GIB = 2**30


@dataclass(frozen=True)
class Machines:
    """Equal machines of a cluster."""

    nodes: int = 1
    gpus: int = 8
    """Per machine; 0: learners and engines run on its cores."""
    memory_gib: float = 80.0
    """Of each GPU; of the machine if it has none."""
    host_gib: float | None = None
    """Memory of a machine, if known."""
    bandwidth: float = 25.0
    """Between two machines, in GB/s."""
    local_bandwidth: float = 200.0
    """Between two GPUs of a machine, in GB/s."""
    reserve_gib: float = 2.0
    """Kept free per process and device, for what no formula covers: contexts, NCCL's and cuBLAS's buffers, fragmentation."""

    @property
    def device(self) -> str:
        return "gpu" if self.gpus else "cpu"

    @property
    def devices(self) -> int:
        """GPUs of the cluster; without any, each machine is one device."""
        return self.nodes * max(self.gpus, 1)


@dataclass(frozen=True)
class Device:
    """A GPU, or a machine without any, and who works on it."""

    node: int
    gpu: int | None
    ranks: tuple[int, ...]
    engines: tuple[int, ...]

    @property
    def kind(self) -> tuple[int, int]:
        """Devices of one kind have the same memory."""
        return len(self.ranks), len(self.engines)


def lay_out(config: Config, machines: Machines) -> tuple[list[Device], bool]:
    """Return every device with its actors, and whether learners and engines share devices.

    Raises:
        ValueError: too few GPUs; the message names what to change.
    """
    ranks, engines, width = config.learner.ranks, config.rollout.actors, config.rollout.tensor_parallel
    colocated = place(config, 64 * machines.nodes, machines.nodes * machines.gpus, machines.nodes).colocated
    if not machines.gpus:
        of = [[number % machines.nodes for number in range(count)] for count in (ranks, engines)]
        rows = [tuple(tuple(i for i, node in enumerate(nodes) if node == n) for nodes in of) for n in range(machines.nodes)]
        return [Device(node, None, *row) for node, row in enumerate(rows)], True
    # Engines on GPUs of their own take the last ones, so that few machines hold both.
    first = 0 if colocated else machines.devices - engines * width
    engine_of = {first + number: number // width for number in range(engines * width)}
    return [
        Device(
            number // machines.gpus,
            number % machines.gpus,
            (number,) if number < ranks else (),
            (engine_of[number],) if number in engine_of else (),
        )
        for number in range(machines.devices)
    ], colocated
