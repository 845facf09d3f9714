"""Reserve a placement in the Ray cluster, and create actors in it."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actors.cluster.waiting import ActorFailed, Pending, wait
from rlsys.system.placement import Machine, Placement
from rlsys.system.terminal import print_text, stderr

PROMPT_S = 10.0
"""Seconds after which a reservation that is not granted yet is reported."""


def cluster_machines() -> list[Machine]:
    """Return the machines of the Ray cluster, this process' own first."""
    own = ray.get_runtime_context().get_node_id()
    alive = sorted((node["NodeID"] != own, node["NodeManagerAddress"], node["NodeID"], node) for node in ray.nodes() if node["Alive"])
    return [
        Machine(address, int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)), node_id)
        for _, address, node_id, node in alive
    ]


def location() -> dict[str, Any]:
    """Return where the calling actor runs: its machine (the address), Ray's id of the node, and the ids of the GPUs assigned to it."""
    context = ray.get_runtime_context()
    gpus = sorted(context.get_accelerator_ids()["GPU"])
    return {"machine": ray.util.get_node_ip_address(), "node": context.get_node_id(), "gpus": gpus}


class Reservation:
    """The bundles of a placement, if it has any, reserved in the Ray cluster.

    Raises:
        ActorFailed: not granted within `timeout_s` seconds.
    """

    def __init__(self, placement: Placement, timeout_s: float):
        self.placement, self.timeout_s = placement, timeout_s
        self._group: Any = None
        if not placement.bundles:
            return
        bundles = [{"CPU": bundle.cpus} | ({} if bundle.gpu is None else {"GPU": 1}) for bundle in placement.bundles]
        machines = [placement.machines[bundle.machine] for bundle in placement.bundles]
        selectors = [{"ray.io/node-id": machine.node_id} for machine in machines]
        self._group = placement_group(bundles, strategy="PACK", bundle_label_selector=selectors)
        if not self._group.wait(min(PROMPT_S, timeout_s)):
            requested = ", ".join(f"{bundle} on {machine.name}" for bundle, machine in zip(bundles, machines, strict=True))
            state = f"requested: {requested}; free in the whole cluster: {_cpus_and_gpus(ray.available_resources())}"
            print_text(stderr(), f"waiting up to {timeout_s:.0f} s for resources that other jobs hold; {state}", "yellow")
            if not self._group.wait(max(0.0, timeout_s - PROMPT_S)):
                self.release()
                raise ActorFailed(f"the cluster did not grant the job's resources within {timeout_s:.0f} s; {state}.")
        try:
            self._gpus = self._gpu_ids()
        except ActorFailed:
            self.release()
            raise

    def create(self, actor: type, slot_name: str, **arguments: Any) -> Any:
        """Create the actor `slot_name` of the placement with `arguments` and its `threads`; returns its handle."""
        slot = self.placement.slots[slot_name]
        strategy: Any = NodeAffinitySchedulingStrategy(self.placement.machines[slot.machine].node_id, soft=False)
        if slot.bundle is not None:
            strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=slot.bundle)
        options = {"num_cpus": slot.cpus, "num_gpus": slot.gpu_share, "scheduling_strategy": strategy}
        return ray.remote(actor).options(name=slot_name, **options).remote(threads=slot.threads, **arguments)

    def gpu_ids(self, name: str) -> list[str] | None:
        """Return the ids of the GPUs of an actor that has several, which Ray cannot assign it across bundles; None for others."""
        slot = self.placement.slots[name]
        return [self._gpus[bundle] for bundle in slot.gpus] if len(slot.gpus) > 1 else None

    def release(self) -> None:
        """Return the resources to the cluster."""
        if self._group is not None:
            remove_placement_group(self._group)

    def _gpu_ids(self) -> dict[int, str]:
        """Ask for the GPU of every bundle that belongs to an actor with several."""
        bundles = sorted({bundle for slot in self.placement.slots.values() if len(slot.gpus) > 1 for bundle in slot.gpus})
        calls = []
        for bundle in bundles:
            strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
            call = ray.remote(location).options(num_cpus=0, num_gpus=1, scheduling_strategy=strategy).remote()
            calls.append(Pending(call, f"GPU bundle {bundle}", "location"))
        places = wait(calls, self.timeout_s, "run.timeouts_s.start")
        return {bundle: place["gpus"][0] for bundle, place in zip(bundles, places, strict=True)}


def _cpus_and_gpus(resources: dict[str, float]) -> dict[str, float]:
    return {name: resources.get(name, 0) for name in ("CPU", "GPU")}
