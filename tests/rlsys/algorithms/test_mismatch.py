"""The live guard's rule."""

from __future__ import annotations

import math

import pytest

from rlsys.algorithms.mismatch import DRIFT, MismatchError, MismatchGuard
from rlsys.config.schema import Config


def guard(limit: float | None = 0.1, steps: int = 3, **settings: float) -> MismatchGuard:
    return MismatchGuard(limit, steps, "rl.mismatch_float32", **settings)


def test_it_warns_at_the_first_step_and_stops_at_the_last_of_several() -> None:
    one = guard()
    assert one.check(1, 0.1) is None
    assert "step 2" in (one.check(2, 0.4) or "")
    assert one.check(3, 0.4) is None  # said already
    with pytest.raises(MismatchError) as error:
        one.check(4, 0.5)
    for part in (
        "step 4",
        "0.5",
        "rl.mismatch_float32",
        "0.1",
        "3 consecutive step(s)",
        "RoPE",
        "docs/models.md",
        "chat template",
        "weights.verify",
    ):
        assert part in str(error.value)


def test_only_steps_in_a_row_count() -> None:
    one = guard()
    for step in range(0, 30, 3):
        assert one.check(step, 9.0) is not None
        assert one.check(step + 1, 9.0) is None
        assert one.check(step + 2, 0.05) is None


def test_a_step_without_training_says_nothing_either_way() -> None:
    one = guard(steps=2)
    one.check(1, 9.0)
    assert one.check(2, None) is None
    with pytest.raises(MismatchError):
        one.check(3, 9.0)


def test_what_is_not_a_number_is_too_large() -> None:
    with pytest.raises(MismatchError):
        guard(steps=1).check(1, math.nan)


def test_older_samples_and_a_nucleus_get_the_room_that_they_explain() -> None:
    assert guard(steps=1).check(1, 0.1 + 2 * DRIFT, lag=2) is None
    with pytest.raises(MismatchError):
        guard(steps=1).check(1, 0.11 + DRIFT, lag=1)
    settings = {"rollout": {"top_p": 0.5}, "rl": {"mismatch_steps": 1}, "model": {"dtype": "float32"}}
    nucleus = MismatchGuard.from_config(Config.model_validate(settings))
    # Half of the probability is left out, so that each token's own doubles.
    assert nucleus.check(1, math.log(2) + nucleus.limit * 0.99) is None
    with pytest.raises(MismatchError):
        nucleus.check(1, math.log(2) + nucleus.limit * 1.01)


def test_the_limit_is_that_of_the_dtype_and_can_be_taken_away() -> None:
    for dtype in ("bfloat16", "float32"):
        config = Config.model_validate({"model": {"dtype": dtype}})
        assert MismatchGuard.from_config(config).limit == getattr(config.rl, f"mismatch_{dtype}")
    config = Config.model_validate({"model": {"dtype": "float32"}, "rl": {"mismatch_float32": None, "mismatch_steps": 1}})
    assert MismatchGuard.from_config(config).check(1, 50.0) is None
