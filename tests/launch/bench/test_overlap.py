"""`rlsys bench overlap`: every case is run by the real loop, no sample is older than allowed, and the seconds of a step are all told."""

from __future__ import annotations

import pytest

from launch.bench.overlap import RATIOS, WAYS, render


@pytest.mark.nightly
def test_every_case_is_run(bench, record_ratio) -> None:
    document = bench("overlap", "--seconds", 0.05, "--steps", 5)
    cases = document["cases"]
    assert [(case["staleness"], case["in_flight_updates"]) for case in cases] == list(WAYS) * len(RATIOS)
    assert [case["generate_s"] / case["train_s"] for case in cases] == pytest.approx([ratio for ratio in RATIOS for _ in WAYS])
    for case in cases:
        assert 0 <= case["lag"] <= case["staleness"]
        assert case["share"] == pytest.approx(case["step_s"] / 0.05)
        # Nobody waits less than it takes: not even the overlapped loop.
        assert case["wall_s"] >= 5 * max(case["generate_s"], case["train_s"])
        assert case["wall_s"] >= 5 * case["floor_s"] or case["staleness"]
    assert render(document).row_count == len(cases)
    overlapped = [case["share"] for case in cases if case["staleness"] == 1 and not case["in_flight_updates"]]
    record_ratio("overlap: step at staleness 1 over the longer phase, worst of the ratios", max(overlapped))


def test_the_seconds_of_a_step_are_all_told(ray_session, tmp_path) -> None:
    from launch.bench.loop import StandIns, reinforce, stand_in_config

    shape = ("rl.steps=3", "rl.prompts_per_step=3", "rl.group_size=4", "checkpoint.every=2", "prompt.template=compact")
    actors = StandIns(engines=2, processes=1)
    actors.start()
    _, metrics = reinforce(stand_in_config(tmp_path, f"model.path={tmp_path / 'tiny-random'}", *shape), actors)
    actors.close()
    for row in metrics:
        told = {name.removeprefix("seconds/"): value for name, value in row.items() if name.startswith("seconds/")}
        collecting = sum(told.pop(name) for name in ("draw", "generate", "judge"))
        assert sum(told.values()) == pytest.approx(2 * told["step"])
        assert collecting <= told["wait_for_samples"]
        assert {"train", "send_weights", "write_trajectories", "other"} <= set(told)
    # The checkpoint after step 2 belongs to the time before the next report.
    assert ["seconds/checkpoint" in row for row in metrics] == [False, False, True]
