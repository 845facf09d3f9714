"""What a step sends over the wires: new weights to the engines, and the learners' own collectives.

Volumes of the collectives are those of the ZeRO paper (arXiv 1910.02054, section 7): an all-reduce moves twice, an all-gather and a
reduce-scatter once the size of the data times (N - 1) / N. ZeRO-2 and ZeRO-3 reduce in every micro-batch, ZeRO-3 gathers the weights
for each pass; the others communicate once per optimizer step; a sharded reference is gathered for its own pass. Seconds are bytes
divided by the stated bandwidth of the slowest wire involved: a lower bound, without latency, and without overlap with computation.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.config.schema import Config
from rlsys.planning.batch import Step
from rlsys.planning.cluster import Device, Machines
from rlsys.planning.learner import element_bytes
from rlsys.planning.settings import Resolved
from rlsys.planning.shape import ModelShape
from rlsys.system.devices import reference_kind


@dataclass(frozen=True)
class Transfer:
    """One kind of traffic of a step."""

    name: str
    size: float
    """Bytes per step and wire."""
    seconds: float
    wire: str
    """`between machines`, `between GPUs`, or `in memory`."""


def bucket_bytes(shape: ModelShape, config: Config, resolved: Resolved) -> float:
    """Return the buckets that one side of the weight transfer holds: two, each at least as large as the largest tensor."""
    return 2.0 * max(resolved.bucket, element_bytes(config) * shape.largest)


def transfers_of(
    shape: ModelShape, config: Config, resolved: Resolved, machines: Machines, devices: list[Device], step: Step
) -> list[Transfer]:
    """Return the traffic of one step."""
    nodes = {name: {device.node for device in devices if getattr(device, name)} for name in ("ranks", "engines")}
    model, ranks = element_bytes(config) * float(shape.parameters), step.ranks
    inner = _wire(len(nodes["ranks"]) > 1, machines)
    found = []
    if ranks > 1:
        size = _collective_bytes(shape, config, step) * (ranks - 1) / ranks
        found.append(Transfer("gradients and weights among the learners", size, size / (inner[1] * 1e9), inner[0]))
    if config.learner.zero_stage == 3 and resolved.backend != "cpu" and ranks > 1:
        found.append(Transfer("weights gathered to be sent", model, model / (inner[1] * 1e9), inner[0]))
    if resolved.backend == "nccl":
        outer = _wire(len(nodes["ranks"] | nodes["engines"]) > 1, machines)
        found.append(Transfer("new weights from rank 0 to the engines", model, model / (outer[1] * 1e9), outer[0]))
    elif resolved.backend == "cpu" and len(nodes["ranks"] | nodes["engines"]) > 1:
        found.append(Transfer("new weights to each other machine", model, model / (machines.bandwidth * 1e9), "between machines"))
    else:
        found.append(Transfer("new weights to the engines", model, 0.0, "in memory"))
    return found


def _wire(between_machines: bool, machines: Machines) -> tuple[str, float]:
    return ("between machines", machines.bandwidth) if between_machines else ("between GPUs", machines.local_bandwidth)


def _collective_bytes(shape: ModelShape, config: Config, step: Step) -> float:
    """Return the volume of a step's collectives, apart from the factor (N - 1) / N."""
    stage, model = config.learner.zero_stage, element_bytes(config) * float(shape.parameters)
    passes = config.rl.updates_per_batch
    gathered = config.rl.beta > 0 and reference_kind(config.learner) == "sharded"
    reference = step.micro_batches * model if gathered else 0.0
    if stage == 3:
        return step.micro_batches * model * passes * 3 + reference
    reduced = 2 * (4.0 * shape.parameters if stage == 1 else model)
    return passes * (reduced * (step.micro_batches if stage == 2 else 1) + (model if stage else 0)) + reference
