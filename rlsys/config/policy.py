"""The sections `policy` and `judge` of `rlsys policy`: what a policy is rewarded for, and the judge that rewards it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from rlsys.config.section import Section


class RewardTerm(Section):
    """A further reward of each sample."""

    function: str
    """`tokens`, `words` or `cut_off`, or MODULE:FUNCTION, a function of (record, sample) that returns a number (docs/policy.md)."""
    weight: float
    """What the function's value is multiplied by; negative for a penalty."""
    sources: tuple[str, ...] = ()
    """Sources of rows (their `source`, or NAME of a mixture) to which it applies. Empty: all."""


class Policy(Section):
    """Training a policy (`rlsys policy`): model, data, rollout, learner and rl describe the policy; `judge` the judge."""

    reward: Literal["judge", "gold", "bt"] = "judge"
    """What is trained on. judge: the scores of `judge`. gold: 1 if the answer passes the row's checks, else 0. bt: the Bradley-Terry
    model's score. Whatever else is configured is measured at every step and never trained on."""
    weight: float = 1.0
    """Weight of this reward beside those of `policy.rewards`. It does not matter without any: advantages are relative to the group."""
    rewards: tuple[RewardTerm, ...] = ()
    """Further rewards, added to it: {function, weight, sources}, for example [{function: tokens, weight: -0.01}]."""
    bt: str | None = None
    """Bradley-Terry model (meta_rm.objective=bt): run or model folder. null: none."""


class Judge(Section):
    """The judge of `rlsys policy`: a pool of engines beside those of the policy."""

    model: str | None = None
    """Run or model folder, or hub name. Template, score format and length of a judgement are those of its run. null: no judge, for
    policy.reward=gold or bt."""
    k: PositiveInt = 4
    """Judgements per group, each with a fresh order of the responses."""
    strategy: Literal["vote", "mean", "majority", "meta", "meta_weighted"] = "vote"
    """Voting strategy over the judgements that parsed (docs/voting.md)."""
    meta_rm: str | None = None
    """Meta reward model for the strategies `meta` and `meta_weighted`: run or model folder."""
    k_meta: PositiveInt | None = None
    """Judgements that the strategy `meta` keeps. null: half of k."""
    reward: Literal["mean", "rank", "win_rate"] = "mean"
    """Reward of a response. mean: its score by the strategy, a mean over judgements. rank: the rank of that score in the group, 0 to 1.
    win_rate: the share of the other responses that it beats within a judgement, a tie counting half."""
    max_responses: int = Field(default=4, ge=2)
    """Most responses in one judgement. More are split into parts that share `judge.anchors` responses."""
    anchors: PositiveInt = 1
    """Responses that all parts of a group share. The scores of a part are shifted so that the anchors' mean is the same in all parts."""
    temperature: PositiveFloat = 0.5
    """Sampling temperature of the judgements."""
    prompt_tokens: PositiveInt = 1024
    """Longest prompt of a judgement, in tokens. A group with a longer one is counted and left out, never truncated."""
    actors: PositiveInt = 1
    """Number of judge engines. On GPUs they need their own; on CPUs they share all cores with the policy's engines and learners."""
    cpus: PositiveInt | None = None
    """CPU threads per judge engine. null: the machine's cores divided by its number of judge engines."""
    max_num_seqs: PositiveInt | None = None
    """As rollout.max_num_seqs."""
    kv_cache_gib: PositiveFloat | None = None
    """As rollout.kv_cache_gib."""

    @field_validator("anchors")
    @classmethod
    def _check_anchors(cls, anchors: int, others: ValidationInfo) -> int:
        if anchors >= others.data.get("max_responses", anchors + 1):
            raise ValueError(f"expected less than judge.max_responses ({others.data['max_responses']}), so that a part has other responses")
        return anchors
