"""Settings that are right alone and wrong together, or for what a command does."""

from __future__ import annotations

from rlsys.config.schema import Config, ConfigError
from rlsys.data.datasets import TASKS


def find_conflicts(config: Config, command: str) -> list[str]:
    """All of them, each with what to do."""
    return [told for wrong, told in _rules(config, command) if wrong]


def require_consistent_settings(config: Config, command: str) -> None:
    """See that there are none.

    Raises:
        ConfigError: all that were found.
    """
    if found := find_conflicts(config, command):
        raise ConfigError(*found)


def _rules(config: Config, command: str) -> list[tuple[bool, str]]:
    rl, rollout, learner, eval_, meta, rft = config.rl, config.rollout, config.learner, config.eval, config.meta_rm, config.rft
    trains, loop = command in ("train", "ladder"), command in ("train", "sft", "ladder")
    endless = [str(source.path) for source in config.data.sources("train") if str(source.path).startswith(TASKS)]
    return [
        (
            trains and rl.group_size == 1,
            "rl.group_size=1: an advantage is the reward relative to the group's, so that of a single sample is always 0 and nothing would "
            "be learned. Take 4 to 16.",
        ),
        (
            trains and bool(rollout.sleep) and rl.staleness > 0,
            f"rollout.sleep=true wants rl.staleness=0, found {rl.staleness}: above it engines sample while the learner trains, and never "
            "sleep. Leave one of the two out.",
        ),
        (
            loop and eval_.samples > 1 and eval_.temperature == 0,
            f"eval.samples={eval_.samples} with eval.temperature=0: greedy samples of a row are all the same. Set eval.temperature, for "
            "example to 1, or eval.samples=1.",
        ),
        (
            command == "sft" and not config.sft.rows,
            "sft.rows=0: there is nothing to tune on. Set sft.rows, for example to 512.",
        ),
        (
            command in ("rft", "ladder") and not (rft.non_hinted or rft.hinted),
            "rft.non_hinted and rft.hinted are both false: nothing would be sampled. Set one of them to true.",
        ),
        (
            command in ("rft", "ladder") and rft.non_hinted and not rft.hinted and rft.samples == 1,
            "rft.samples=1 without hinted samples: a row with all of its samples right is too easy and one with none teaches nothing, so "
            "nothing would be kept. Take rft.samples=3.",
        ),
        (
            command == "ladder" and not rft.non_hinted,
            "rft.non_hinted=false: the ladder's meta reward model learns from samples without a hint. Set rft.non_hinted=true.",
        ),
        (
            command == "ladder" and (config.ladder.k[:1] != (1,) or list(config.ladder.k) != sorted(set(config.ladder.k))),
            f"ladder.k={list(config.ladder.k)}: expected increasing numbers from 1, for example [1, 2, 4, 8].",
        ),
        (
            command == "meta-rm" and meta.objective == "bt" and not learner.packing,
            "meta_rm.objective=bt compares responses within a packed micro-batch: set learner.packing=true.",
        ),
        (
            command == "meta-rm" and meta.objective == "bt" and bool(endless) and meta.rows is None,
            f"data.train={', '.join(endless)} goes on for ever: say how many rows to train on, for example meta_rm.rows=2000.",
        ),
        (
            command == "meta-rm" and meta.objective == "bt" and tuple(config.data.responses) == (1,),
            "meta_rm.objective=bt compares responses, and data.responses=[1] makes rows of one. Take [2].",
        ),
    ]
