"""The watchdog: a run whose metrics stay out of bounds stops, and no other does."""

import pytest

from rlsys.algorithms.watchdog import RULES, StepWatchdog, WatchdogError
from rlsys.config.schema import Watchdog

GOOD = {
    "samples": 16,
    "truncated": 1,
    "parse_failure_share": 0.1,
    "groups_equal_share": 0.5,
    "groups_trained": 4,
    "kl": 0.01,
    "entropy": 0.1,
    "skipped": 0,
}
BAD = {
    "max_kl": {"kl": 5.5},
    "min_entropy": {"entropy": 1e-4},
    "max_parse_failures": {"parse_failure_share": 1.0},
    "max_cut_off": {"truncated": 16},
    # Nothing was trained on, so that the step has no figures of an update.
    "max_equal_groups": {"groups_equal_share": 1.0, "groups_trained": 0, "skipped": 1, "kl": None, "entropy": None},
    "not_finite": {"skipped": 1, "kl": None, "entropy": None},
}


def test_every_rule_has_a_setting_and_a_bad_step_here():
    assert {rule.setting for rule in RULES} == BAD.keys() == Watchdog.model_fields.keys() - {"steps"}


@pytest.mark.parametrize("setting", BAD)
def test_only_consecutive_bad_steps_end_a_run(setting):
    watchdog = StepWatchdog(Watchdog(steps=3))
    bad = GOOD | BAD[setting]
    for step in range(0, 30, 3):
        assert watchdog.check(step, GOOD) == []
        (warning,) = watchdog.check(step + 1, bad)
        assert warning.startswith(f"step {step + 1}: ") and f"watchdog.{setting}" in warning
        assert watchdog.check(step + 2, bad) == []
    with pytest.raises(WatchdogError, match=rf"step 31: .*watchdog\.{setting} .* for 3 consecutive step\(s\)\. Probably "):
        watchdog.check(31, bad)


@pytest.mark.parametrize("setting", BAD)
def test_a_rule_can_be_off(setting):
    watchdog = StepWatchdog(Watchdog(steps=1, **{setting: False if setting == "not_finite" else None}))
    assert watchdog.check(1, GOOD | BAD[setting]) == []


def test_a_step_without_an_update_neither_counts_nor_resets():
    watchdog = StepWatchdog(Watchdog(steps=2, max_equal_groups=None))
    assert len(watchdog.check(1, GOOD | BAD["max_kl"])) == 1
    assert watchdog.check(2, GOOD | BAD["max_equal_groups"]) == []
    with pytest.raises(WatchdogError):
        watchdog.check(3, GOOD | BAD["max_kl"])


def test_nan_is_out_of_every_bound():
    watchdog = StepWatchdog(Watchdog(steps=2))
    bad = GOOD | {"kl": float("nan"), "entropy": float("nan")}
    assert len(watchdog.check(1, bad)) == 2
    with pytest.raises(WatchdogError):
        watchdog.check(2, bad)


def test_values_at_the_bound():
    watchdog = StepWatchdog(Watchdog(max_kl=0.5, min_entropy=0.2, max_parse_failures=0.5))
    assert watchdog.check(1, GOOD | {"kl": 0.5, "entropy": 0.2, "parse_failure_share": 0.499}) == []
    assert len(watchdog.check(2, GOOD | {"kl": 0.51, "entropy": 0.19, "parse_failure_share": 0.5})) == 3
