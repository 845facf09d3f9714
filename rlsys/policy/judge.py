"""The config of the judge's engines in `rlsys policy`."""

from __future__ import annotations

from rlsys.config.schema import Config
from rlsys.judging.setup import judge_config


def pool_config(config: Config) -> Config:
    """Return the config of the engines of `judge.model`: template, score format and lengths of its run, sizes of `config.judge`.

    Raises:
        rlsys.config.schema.ConfigError: the run of the judge has no model yet.
    """
    judge = config.judge
    assert judge.model is not None
    own, _ = judge_config(judge.model, config.seed, None)
    sizes = {"actors": judge.actors, "cpus": judge.cpus, "kv_cache_gib": judge.kv_cache_gib}
    if judge.max_num_seqs is not None:
        sizes["max_num_seqs"] = judge.max_num_seqs
    return own.model_copy(
        update={
            "run": config.run,
            "judge": judge,
            "prompt": own.prompt.model_copy(update={"max_tokens": judge.prompt_tokens}),
            "rollout": own.rollout.model_copy(update=sizes),
        }
    )
