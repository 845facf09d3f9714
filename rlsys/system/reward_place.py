"""The machine of the reward actor, which reserves neither cores nor GPUs."""

from __future__ import annotations

from rlsys.system.placement import Machine, Placement


def reward_machine(placement: Placement) -> Machine | None:
    """Return a machine without engines and ranks that has a free core, else the one with the most free cores; of equals the first.

    None: no machine has a free core; then the actor runs on the machine of the job itself.
    """
    free = [float(machine.cpus) for machine in placement.machines]
    for bundle in placement.bundles:
        free[bundle.machine] -= bundle.cpus
    busy = {slot.machine for slot in placement.slots.values()}
    candidates = [index for index, cores in enumerate(free) if cores >= 1]
    best = max(candidates, key=lambda index: (index not in busy, free[index], -index), default=None)
    return None if best is None else placement.machines[best]
