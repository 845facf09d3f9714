"""The machines that a plan is for, and which actor gets which device."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.config.schema import Config
from rlsys.system.placement import Machine, place

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

    def listed(self) -> list[Machine]:
        """Return them as the placement sees them."""
        return [Machine(f"node {node}", 64, self.gpus) for node in range(self.nodes)]


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
        PlacementError: the job cannot be placed; the message names what to change.
    """
    placed = place(config, machines.listed())
    devices: dict[tuple[int, int | None], tuple[list[int], list[int]]] = {
        (node, gpu): ([], []) for node in range(machines.nodes) for gpu in (range(machines.gpus) if machines.gpus else [None])
    }
    for name, slot in placed.slots.items():
        kind, _, number = name.partition("-")
        for place_of in [(slot.machine, placed.bundles[gpu].gpu) for gpu in slot.gpus] or [(slot.machine, None)]:
            devices[place_of][kind == "rollout"].append(int(number))
    return [
        Device(*where, tuple(ranks), tuple(engines)) for where, (ranks, engines) in devices.items()
    ], placed.colocated or not machines.gpus
