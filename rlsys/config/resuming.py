"""Which settings may change when a run is resumed, and why."""

from __future__ import annotations

from rlsys.config.files import known_keys

MAY_CHANGE = {
    "run": "where a run writes, how long it waits, and who watches",
    "recovery": "what happens after a failure or a signal",
    "watchdog": "when a run is stopped",
    "checkpoint": "what is saved, and how often",
    "rl.steps": "how long a run lasts; with `learner.lr_decay=linear` the learning rate decays to zero at the new end",
    "rl.eval_every": "what is measured, and how often",
    "weights.verify": "a check",
    "data.may_change": "a permission",
    "rft.teacher.api_key_env": "how the teacher is reached",
    "rft.teacher.concurrency": "how the teacher is reached",
    "rft.teacher.timeout_s": "how the teacher is reached",
    "rft.teacher.retries": "how the teacher is reached",
    "rft.teacher.price_prompt": "what is reported",
    "rft.teacher.price_completion": "what is reported",
}
"""Keys and whole sections, and what they determine, which is not what a step computes."""
FIXED = ("run.deterministic",)
"""Keys of these sections that may not change."""


def may_change(key: str) -> bool:
    """Return whether the setting `key` (dotted) may change when a run is resumed."""
    return key not in FIXED and _reason(key) is not None


def changeable() -> dict[str, list[str]]:
    """Return every key that may change when a run is resumed, by what it determines."""
    keys, found = known_keys(), dict[str, list[str]]()
    for key in keys:
        if may_change(key) and not any(other.startswith(f"{key}.") for other in keys):
            found.setdefault(_reason(key) or "", []).append(key)
    return found


def _reason(key: str) -> str | None:
    parts = key.split(".")
    return next((why for count in range(1, len(parts) + 1) if (why := MAY_CHANGE.get(".".join(parts[:count])))), None)
