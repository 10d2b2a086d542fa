"""Rates, pauses and the window: on a clock of our own, so that nothing sleeps."""

import asyncio
from datetime import UTC, datetime

import pytest
from conftest import make_endpoint
from hypothesis import given
from hypothesis import strategies as st

from drot_utils.limits import LONGEST_WAIT, Bucket, Limits, read_delay, read_duration, read_retry_after


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def open_limits(clock, **changes):
    limits = Limits(make_endpoint(**changes), clock)
    asyncio.run(limits.acquire(1))
    limits.release(1, None, {}, answered=True)
    return limits


@given(st.integers(1, 5000), st.lists(st.floats(0.1, 500), min_size=1, max_size=200))
def test_no_sixty_seconds_see_more_than_the_rate(per_minute, amounts):
    bucket, now, taken = Bucket(per_minute, 0.0), 0.0, []
    for amount in amounts:
        amount = min(amount, bucket.size)
        now += bucket.wait(amount, now)
        assert bucket.wait(amount, now) < 1e-6
        bucket.take(amount, now)
        taken.append((now, amount))
    for start, _ in taken:
        assert sum(a for t, a in taken if start <= t < start + 60) <= per_minute + 1 + 1e-6


def test_what_is_larger_than_the_bucket_passes_from_a_full_one_and_leaves_a_debt():
    bucket = Bucket(610, 0.0)  # 10 a second
    assert bucket.wait(50, 0.0) == 0
    bucket.take(50, 0.0)
    assert bucket.wait(1, 0.0) == pytest.approx(4.1)
    bucket.take(-30, 0.0)  # it had been fewer
    assert bucket.wait(1, 0.0) == pytest.approx(1.1)


def test_no_more_are_under_way_than_the_window_is_wide():
    limits = Limits(make_endpoint(concurrency=3), Clock())
    for _ in range(3):
        assert limits.pause(1) <= 0
        asyncio.run(limits.acquire(1))
    assert limits.pause(1) == float("inf")
    limits.release(1, None, {}, answered=False)
    assert limits.pause(1) <= 0


def test_refusals_for_load_halve_the_window_once_a_second_and_answers_raise_it():
    clock = Clock()
    limits = open_limits(clock, concurrency=64)
    limits.slow_down(None)
    limits.slow_down(None)
    assert limits.window == 32
    clock.now += 1
    for _ in range(10):
        limits.slow_down(None)
        clock.now += 1
    assert limits.window == 1
    for _ in range(5000):
        limits.under_way += 1
        limits.release(1, None, {}, answered=True)
    assert limits.window == 64


def test_retry_after_holds_everybody():
    clock = Clock()
    limits = open_limits(clock)
    limits.slow_down(7.5)
    assert limits.pause(1) == 7.5
    limits.slow_down(2)  # a shorter one does not shorten it
    clock.now += 7
    assert limits.pause(1) == 0.5


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6s"}, 6),
        ({"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0s"}, 61 / 60),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "6s"}, 0),
        ({"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "10s"}, 1),
        ({"x-ratelimit-remaining-tokens": "99", "x-ratelimit-reset-tokens": "250ms"}, 0.25),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9999h"}, LONGEST_WAIT),
        ({"x-ratelimit-remaining-requests": "many", "x-ratelimit-reset-requests": "soon"}, 0),
    ],
)  # fmt: skip
def test_the_servers_own_count_is_heeded(headers, expected):
    limits = open_limits(Clock())
    asyncio.run(limits.acquire(100))
    limits.release(100, None, headers, answered=True)
    assert max(0, limits.pause(100)) == pytest.approx(expected)


def test_who_met_the_limit_goes_on_at_the_servers_rate():
    clock = Clock()
    limits = open_limits(clock)
    headers = {
        "x-ratelimit-limit-requests": "20",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1s",
    }
    limits.under_way += 1
    limits.release(1, None, headers, answered=False)
    gone = 0
    for _ in range(1000):  # ten seconds
        clock.now += 0.01
        if limits.pause(1) <= 0:
            asyncio.run(limits.acquire(1))
            limits.release(1, None, {}, answered=True)
            gone += 1
    assert 190 <= gone <= 200


def test_limits_per_minute_are_kept_and_corrected():
    clock = Clock()
    limits = open_limits(clock, requests_per_minute=61, tokens_per_minute=610)
    assert limits.pause(1) == pytest.approx(1)  # one went out already
    clock.now += 100
    asyncio.run(limits.acquire(200))
    clock.now += 1
    assert limits.pause(1) == pytest.approx(18.1)
    limits.release(200, 10, {}, answered=True)  # it took 10 tokens, not 200
    assert limits.pause(1) <= 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("120ms", 0.12), ("17.5", 17.5), ("1h2m3s", 3723), ("2d", 172800), ("", None), ("soon", None),
     ("1s?", None), ("-3", None), ("inf", None), ("nan", None), (None, None)],
)  # fmt: skip
def test_durations(text, seconds):
    assert read_duration(text) == (None if seconds is None else pytest.approx(seconds))


@given(st.text())
def test_no_text_is_a_surprise_for_the_readers_of_headers(text):
    for value in (read_duration(text), read_retry_after({"retry-after": text})):
        assert value is None or 0 <= value < float("inf")


def test_retry_after_in_seconds_milliseconds_and_as_a_date():
    now = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
    assert read_retry_after({"retry-after": "20"}) == 20
    assert read_retry_after({"retry-after-ms": "1500", "retry-after": "20"}) == 1.5
    assert read_retry_after({"retry-after": "Wed, 25 Nov 2026 12:00:30 GMT"}, now) == 30
    assert read_retry_after({"retry-after": "Wed, 25 Nov 2026 11:00:00 GMT"}, now) == 0
    assert read_retry_after({}) is None


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ("Please retry in 24s.", 24), ("Please try again in 1m2.5s. Visit", 62.5), ("Please retry after 24 seconds.", 24),
        ("Try again in 480ms", 0.48), ("Please wait 2 minutes and", 120), ("try again in 1 hour 3 minutes", 3780),
        ('{"error": {"message": "Please try again in 20s."}}', 20),
        ('[{"error": {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "24s"}]}}]', 24),
        ('{"error": {"details": [{"retryDelay": "24.5s"}], "message": "Please retry in 9h."}}', 24.5),
        ('{"retry_after": 7}', 7), ('{"retry_delay": {"seconds": 24}}', 24),
        ("The server had an error", None), ("Limit 3 requests a minute; retry later", None), ("", None), ("\xff{", None),
    ],
)  # fmt: skip
def test_delays_that_a_body_names(body, seconds):
    assert read_delay(body.encode("latin-1")) == pytest.approx(seconds)
