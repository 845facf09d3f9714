"""The settings under which a run computes the same bits whenever it is repeated, and however often it is interrupted: `run.deterministic`.

Rounding depends on the number of threads and on which requests share a batch, a cached prompt, or a moment; none of these varies here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from rlsys.config.schema import Config

REQUIRED: dict[str, Any] = {
    "model.dtype": "float32",
    "rollout.tensor_parallel": 1,
    "rollout.cpus": 1,
    "rollout.max_num_seqs": 1,
    "learner.cpus": 1,
    "rl.staleness": 0,
}
"""What `run.deterministic` sets where the user sets nothing else."""
COMMANDS = ("train", "sft")


def fill_in(tree: Any) -> Any:
    """Return the settings of a config, by section, with those of `REQUIRED` that are not given if run.deterministic is true."""
    run = tree.get("run") if isinstance(tree, dict) else None
    if not isinstance(run, dict) or not _is_true(run.get("deterministic", False)):
        return tree
    filled = dict(tree)
    for key, value in REQUIRED.items():
        section, _, name = key.partition(".")
        given = filled.get(section, {})
        if isinstance(given, dict) and given.get(name) is None:
            filled[section] = given | {name: value}
    return filled


def _is_true(value: Any) -> bool:
    """Read a switch as its field will."""
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        return False


def deterministic_conflicts(config: Config, command: str) -> list[str]:
    """Return a message for each setting with which run.deterministic cannot be kept."""
    if not config.run.deterministic:
        return []
    found = [] if command in COMMANDS else [f"run.deterministic=true: only `rlsys train` and `rlsys sft` have it, found `rlsys {command}`."]
    for key, value in REQUIRED.items():
        section, _, name = key.partition(".")
        if (given := getattr(getattr(config, section), name)) != value:
            found.append(f"{key}={given}: run.deterministic=true requires {key}={value}; leave it out, or set run.deterministic=false.")
    return found
