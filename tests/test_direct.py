from hypothesis import given
from hypothesis import strategies as st

from drot_utils import direct


@given(st.integers(0, 60), st.floats(0, 1, exclude_max=True))
def test_backing_off_doubles_spreads_and_ends(attempt, draw):
    pause = direct.back_off(attempt, draw)
    full = min(direct.LONGEST_BACKOFF, direct.BACKOFF * 2**attempt)
    assert full / 2 <= pause <= full
