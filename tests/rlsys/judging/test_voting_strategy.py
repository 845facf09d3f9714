"""The registry of strategies, user-defined strategies, and errors in options and samples."""

from __future__ import annotations

import numpy as np
import pytest

from rlsys.judging import voting
from rlsys.judging.voting import STRATEGIES, Options, Samples, find_strategy, strategy

NAN = float("nan")
BUILT_IN = tuple(STRATEGIES)
PAPER = Samples(np.array([[8.0, 8.0], [5.0, 9.0], [7.0, 10.0]]), meta_reward=np.array([-15.7781, 1.3126, 1.6739]))
OWN = """
import numpy as np
from rlsys.judging.voting import strategy

@strategy("median-{tag}", source="mine")
def median(samples, options):
    '''Median of the scores.'''
    return np.nanmedian(samples.scores, axis=-2)
"""


def test_a_user_defined_strategy_is_loaded_once(tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN.format(tag="a"))
    try:
        own = find_strategy(f"{path}:median-a")
        assert own(PAPER).totals.tolist() == [7.0, 9.0]
        assert find_strategy(f"{path}:median-a") is own
        with pytest.raises(ValueError, match="median-b: no such strategy.*median-a"):
            find_strategy(f"{path}:median-b")
    finally:
        STRATEGIES.pop("median-a", None)


@pytest.mark.parametrize(
    ("name", "message"), [("votes", "votes: no such strategy; expected one of vote,"), ("absent.py:x", "absent.py: no such file")]
)
def test_unknown_strategies(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_strategy(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vote", "source": ""}, "strategy vote: already registered"),
        ({"name": "own", "source": "", "needs": ["metareward"]}, "strategy own: needs metareward, expected some of meta_reward"),
        ({"name": "own", "source": "", "counts": "votes"}, "strategy own: counts 'votes', expected scores or winners"),
    ],
)
def test_invalid_registrations_are_rejected(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strategy(**arguments)(lambda samples, options: samples.scores[..., 0, :])
    assert tuple(STRATEGIES) == BUILT_IN


def test_totals_of_the_wrong_shape_are_an_error() -> None:
    own = voting.Strategy("own", "", (), "scores", lambda samples, options: samples.scores)
    with pytest.raises(ValueError, match=r"strategy own: returned totals of shape \[3, 2\], expected \[2\]"):
        own(PAPER)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if STRATEGIES[name].needs])
def test_required_fields_must_be_known_for_every_parsed_sample(name: str) -> None:
    scores = np.array([[1.0, 2.0], [NAN, NAN]])
    needed = STRATEGIES[name].needs
    STRATEGIES[name](Samples(scores, **{field: np.array([-1.0, NAN]) for field in needed}))
    for missing in ({}, {field: np.array([NAN, 1.0]) for field in needed}):
        with pytest.raises(ValueError, match=f"strategy {name}: needs a finite {needed[0]}"):
            STRATEGIES[name](Samples(scores, **missing))


def test_k_meta_above_k_is_an_error() -> None:
    with pytest.raises(ValueError, match="k_meta = 4: expected at most k = 3"):
        voting.meta(PAPER, Options(k_meta=4))


@pytest.mark.parametrize("wrong", [{"k_meta": 0}, {"power": -1}, {"power": NAN}, {"error_rate": 1.0}, {"round_size": 0}, {"margin": -0.1}])
def test_options_out_of_range(wrong: dict) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name} = {value}: expected"):
        Options(**wrong)


def test_inconsistent_shapes() -> None:
    with pytest.raises(ValueError, match=r"meta_reward: expected shape \[3\].*found \[2\]"):
        Samples(PAPER.scores, meta_reward=np.zeros(2))
    with pytest.raises(ValueError, match=r"scores: expected shape \[\.\.\., k, n\]"):
        Samples(np.zeros((0, 2)))
