"""The limit of restarts, against a count over the whole history."""

from hypothesis import given
from hypothesis import strategies as st

from rlsys.system.restarts import Restarts


@given(st.lists(st.floats(0, 50), max_size=30), st.integers(0, 4), st.floats(1, 100))
def test_no_window_holds_more_restarts_than_allowed(pauses, limit, window_s):
    now, admitted = 0.0, []
    restarts = Restarts(limit, window_s, lambda: now)
    for pause in pauses:
        now += pause
        expected = sum(now - earlier < window_s for earlier in admitted) < limit
        assert restarts.admit() is expected
        admitted += [now] * expected
    assert restarts.total == len(admitted)
