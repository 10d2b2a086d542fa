from drot_utils.cache import Cache
from drot_utils.ledger import IGNORED, METERED, UNMETERED, Line, enter, read_ignored, read_ledger


def test_lines_add_up_over_restarts(cache):
    enter(cache, Line("m", "direct", METERED, 1, 10, 5))
    enter(Cache(cache.path), Line("m", "direct", METERED, 2, 20, 6))
    enter(cache, Line("m", "batch", METERED, 1, 1, 1))
    enter(cache, Line("o", "direct", UNMETERED, 1, 7, 0))
    assert read_ledger(cache) == [
        Line("m", "batch", METERED, 1, 1, 1), Line("m", "direct", METERED, 3, 30, 11), Line("o", "direct", UNMETERED, 1, 7, 0),
    ]  # fmt: skip
    assert read_ledger(cache, "o") == [Line("o", "direct", UNMETERED, 1, 7, 0)]


def test_what_was_ignored_is_counted_over_transports(cache):
    for transport in ("direct", "batch", "direct"):
        enter(cache, Line("m", transport, f"{IGNORED}n"))
    enter(cache, Line("o", "direct", f"{IGNORED}seed"))
    enter(cache, Line("m", "direct", METERED, 1, 1, 1))
    assert read_ignored(cache, "m") == {"n": 3} and read_ignored(cache, "o") == {"seed": 1}
