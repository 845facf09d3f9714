"""Settings that are valid on their own but conflict with each other or with the command."""

from __future__ import annotations

from rlsys.config.deterministic import deterministic_conflicts
from rlsys.config.passthrough import deepspeed_option_mistakes, engine_option_mistakes
from rlsys.config.schema import Config, ConfigError
from rlsys.data.datasets import GENERATED


def find_conflicts(config: Config, command: str) -> list[str]:
    """Return a message for each conflict, including how to resolve it."""
    options = deepspeed_option_mistakes(config.learner.deepspeed) + engine_option_mistakes(config.rollout.engine)
    rules = _rules(config, command) + (_policy_rules(config) if command == "policy" else [])
    return [message for violated, message in rules if violated] + deterministic_conflicts(config, command) + options


def require_consistent_settings(config: Config, command: str) -> None:
    """Check that there are no conflicts.

    Raises:
        ConfigError: lists all conflicts.
    """
    if conflicts := find_conflicts(config, command):
        raise ConfigError(*conflicts)


def _rules(config: Config, command: str) -> list[tuple[bool, str]]:
    rl, rollout, learner, eval_, meta, rft = config.rl, config.rollout, config.learner, config.eval, config.meta_rm, config.rft
    trains, evaluates = command in ("train", "ladder", "policy"), command in ("train", "sft", "ladder", "policy")
    unbounded = [str(source.path) for source in config.data.sources("train") if str(source.path).startswith(GENERATED)]
    return [
        (
            trains and rl.group_size == 1,
            "rl.group_size=1: advantages are relative to the group, so the advantage of a single sample is always 0 and nothing would be "
            "learned. Use 4 to 16.",
        ),
        (
            trains and bool(rollout.sleep) and rl.staleness > 0,
            f"rollout.sleep=true requires rl.staleness=0, found {rl.staleness}: otherwise engines sample during training and never "
            "sleep. Change one of the two.",
        ),
        (
            evaluates and eval_.samples > 1 and eval_.temperature == 0,
            f"eval.samples={eval_.samples} with eval.temperature=0: greedy samples of a row are identical. Set eval.temperature, for "
            "example to 1, or eval.samples=1.",
        ),
        (
            config.run.copy_to is not None and command not in ("train", "sft", "policy"),
            f"run.copy_to={config.run.copy_to}: only `rlsys train`, `rlsys sft` and `rlsys policy` keep a copy. Remove the setting.",
        ),
        (
            command == "sft" and not config.sft.rows,
            "sft.rows=0: there is nothing to train on. Set sft.rows, for example to 512.",
        ),
        (
            command in ("rft", "ladder") and not (rft.non_hinted or rft.hinted),
            "rft.non_hinted and rft.hinted are both false: nothing would be sampled. Set one of them to true.",
        ),
        (
            command == "rft" and rft.teacher.url is not None and rft.teacher.model is None,
            f"rft.teacher.url={rft.teacher.url}: name its model, rft.teacher.model, so that a resumed run asks the same one.",
        ),
        (
            command == "ladder" and rft.teacher.url is not None,
            f"rft.teacher.url={rft.teacher.url}: the ladder measures what a model learns from its own samples. Use `rlsys rft`.",
        ),
        (
            command in ("rft", "ladder") and rft.non_hinted and not rft.hinted and rft.samples == 1,
            "rft.samples=1 without hinted samples: a row with a correct sample is too easy then, and one without has nothing to keep, so "
            "nothing would be kept. Use rft.samples=3.",
        ),
        (
            command == "ladder" and not rft.non_hinted,
            "rft.non_hinted=false: the ladder's meta reward model is trained on samples without a hint. Set rft.non_hinted=true.",
        ),
        (
            command == "ladder" and (config.ladder.k[:1] != (1,) or list(config.ladder.k) != sorted(set(config.ladder.k))),
            f"ladder.k={list(config.ladder.k)}: expected increasing numbers starting with 1, for example [1, 2, 4, 8].",
        ),
        (
            command == "meta-rm" and meta.objective == "bt" and not learner.packing,
            "meta_rm.objective=bt compares responses within a packed micro-batch: set learner.packing=true.",
        ),
        (
            command == "meta-rm" and meta.objective == "bt" and bool(unbounded) and meta.rows is None,
            f"data.train={', '.join(unbounded)} is unbounded: set the number of rows to train on, for example meta_rm.rows=2000.",
        ),
        (
            command == "meta-rm" and meta.objective == "bt" and tuple(config.data.responses) == (1,),
            "meta_rm.objective=bt compares responses, but with data.responses=[1] every row has only one. Use [2].",
        ),
    ]


def _policy_rules(config: Config) -> list[tuple[bool, str]]:
    policy, judge = config.policy, config.judge
    return [
        (
            policy.reward == "judge" and judge.model is None,
            "policy.reward=judge requires a judge: set judge.model, for example to the folder of a run of `rlsys train`, or train on the "
            "checks of the rows with policy.reward=gold.",
        ),
        (
            policy.reward == "bt" and policy.bt is None,
            "policy.reward=bt requires policy.bt, the folder of a run of `rlsys meta-rm` with meta_rm.objective=bt.",
        ),
        (
            judge.strategy.startswith("meta") and judge.meta_rm is None,
            f"judge.strategy={judge.strategy} needs a meta reward model: set judge.meta_rm to the folder of a run of `rlsys meta-rm`.",
        ),
        (
            judge.k_meta is not None and judge.k_meta > judge.k,
            f"judge.k_meta={judge.k_meta}: expected at most judge.k={judge.k}.",
        ),
        (
            config.sft.rows > 0,
            f"sft.rows={config.sft.rows}: `rlsys policy` has no cold start. Set sft.rows=0; model.path may be a fine-tuned model.",
        ),
    ]
