"""How fast a server may be asked: what the parameters say, what its headers say, and what it turns out to bear."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from drot_utils.settings import Endpoint

#: A server that asks for a longer pause than this is not waited for: a daily limit is used up.
LONGEST_WAIT = 900.0
CUT_EVERY = 1.0  # seconds between two cuts of the window: the requests under way all meet the same overload

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
#: A duration in an error's words: "retry in 24s", "try again in 1m2.5s", "retry after 24 seconds".
_AMOUNT = r"\d+(?:\.\d+)?\s?(?:ms|milliseconds?|[smhd]|sec(?:ond)?s?|min(?:ute)?s?|hours?|days?)(?![a-z])"
_SAID = re.compile(rf"(?:try again|retry|wait)\D{{0,30}}?((?:{_AMOUNT}\s?)+)", re.IGNORECASE)
_WORDS = re.compile(r"\s|(?<=m)illi(?=s)|(?<=[smhd])(?:ec(?:ond)?s?|in(?:ute)?s?|ours?|ays?)", re.IGNORECASE)
_DELAYS = ("retrydelay", "retryafter", "retryafterseconds")


class Bucket:
    """An amount per minute: requests or tokens.

    It refills evenly and holds a second's worth, so that no 60 seconds see more than the amount. What is larger than the
    bucket is taken from a full one, which then is in debt: a request of more tokens than a second's worth goes through.

    Parameters
    ----------
    per_minute : float
    now : float
        Seconds on the caller's clock.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self.rate = (
            per_minute / 61
        )  # a second: 60 seconds' refill and the bucket itself make one minute's amount
        self.size = max(1.0, self.rate)
        self.level, self.at = self.size, now

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` may be taken, 0 when it may at once."""
        self._refill(now)
        missing = min(amount, self.size) - self.level
        return max(0.0, missing / self.rate) if missing > 1e-9 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Take `amount`; a negative one gives back what was taken too much."""
        self._refill(now)
        self.level = min(self.size, self.level - amount)

    def _refill(self, now: float) -> None:
        self.level = min(self.size, self.level + (now - self.at) * self.rate)
        self.at = now


class Limits:
    """The gate that every request of a run passes.

    As many as `concurrency` are let through at a time. A server that refuses for load halves that number; every answer raises
    it again a little. Where the server says when to come back, nobody asks before.

    Parameters
    ----------
    endpoint : Endpoint
        Its concurrency and its limits per minute.
    clock : callable
        Seconds that never run backwards; tests bring their own.
    """

    def __init__(self, endpoint: Endpoint, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.most, self.window = clock, endpoint.concurrency, float(endpoint.concurrency)
        now = clock()
        self.under_way, self.not_before, self.cut_at = 0, now, now - CUT_EVERY
        self.requests = (
            Bucket(endpoint.requests_per_minute, now) if endpoint.requests_per_minute is not None else None
        )
        self.tokens = (
            Bucket(endpoint.tokens_per_minute, now) if endpoint.tokens_per_minute is not None else None
        )
        self.first, self.changed = asyncio.Lock(), asyncio.Event()

    async def acquire(self, tokens: int) -> None:
        """Wait until a request of about `tokens` tokens may go out, in the order of asking."""
        async with self.first:  # one waits for the gate, the others for it
            while (pause := self.pause(tokens)) > 0:
                self.changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), None if pause == float("inf") else pause)
            now = self.clock()
            self.under_way += 1
            if self.requests:
                self.requests.take(1, now)
            if self.tokens:
                self.tokens.take(tokens, now)

    def pause(self, tokens: int) -> float:
        """Return the seconds to wait before a request of `tokens` tokens; infinite while too many are under way."""
        if self.under_way >= int(self.window):
            return float("inf")
        now = self.clock()
        waits = [self.not_before - now]
        if self.requests:
            waits.append(self.requests.wait(1, now))
        if self.tokens:
            waits.append(self.tokens.wait(tokens, now))
        return max(waits)

    def release(self, reserved: int, used: int | None, headers: Mapping[str, str], answered: bool) -> None:
        """Say that a request came back.

        Parameters
        ----------
        reserved, used : int
            Tokens given to `acquire`, and those it really took (None: not known).
        headers : mapping
            Of the response, empty when there was none.
        answered : bool
            Whether it was answered: the gate opens a little further.
        """
        self.under_way -= 1
        if self.tokens and used is not None:
            self.tokens.take(used - reserved, self.clock())
        if answered:
            self.window = min(self.most, self.window + 1 / self.window)
        self._heed(headers, reserved)
        self.changed.set()

    def slow_down(self, wait: float | None) -> None:
        """Halve the requests under way after a refusal for load, and let nobody ask for `wait` seconds."""
        now = self.clock()
        if now - self.cut_at >= CUT_EVERY:
            self.window, self.cut_at = max(1.0, self.window / 2), now
        if wait:
            self.not_before = max(self.not_before, now + wait)

    def _heed(self, headers: Mapping[str, str], tokens: int) -> None:
        # The server's own count. Its reset is when the limit is whole again: a part of it comes back sooner, in proportion.
        for kind, needed in (("requests", 1), ("tokens", max(1, tokens))):
            limit, remaining = (
                _number(headers.get(f"x-ratelimit-{what}-{kind}")) for what in ("limit", "remaining")
            )
            reset = read_duration(headers.get(f"x-ratelimit-reset-{kind}"))
            if remaining is None or not reset or remaining >= needed:
                continue
            now, share = self.clock(), 1.0
            if limit and limit > remaining:
                share = (min(needed, limit) - remaining) / (limit - remaining)
                self._slow_to(kind, 60 * (limit - remaining) / reset, now)
            self.not_before = max(self.not_before, now + min(reset * share, LONGEST_WAIT))

    def _slow_to(self, kind: str, per_minute: float, now: float) -> None:
        # From now on at the rate at which the limit comes back, else all who waited would meet it again together.
        bucket = getattr(self, kind)
        if bucket is None or per_minute < bucket.rate * 60:
            bucket = Bucket(per_minute, now)
            bucket.level = 0.0
            setattr(self, kind, bucket)


def read_retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds that ``Retry-After`` (seconds or a date, RFC 9110) or ``retry-after-ms`` asks for, or None."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None or (seconds := _number(value)) is not None:
        return None if value is None else seconds
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())


def read_delay(body: bytes) -> float | None:
    """Return the seconds after which an error's body says to come back: a value such as Google's ``retryDelay``, or in words."""
    try:
        open_values = [json.loads(body)]
    except (ValueError, RecursionError):
        open_values = []
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            for name, inner in value.items():
                if name.lower().replace("_", "") in _DELAYS:
                    inner = inner.get("seconds") if isinstance(inner, dict) else inner
                    if (seconds := read_duration(str(inner))) is not None:
                        return seconds
        if isinstance(value, dict | list):
            open_values += value.values() if isinstance(value, dict) else value
    said = _SAID.search(body.decode("utf-8", "replace"))
    return read_duration(_WORDS.sub("", said[1]).lower()) if said else None


def read_duration(text: str | None) -> float | None:
    """Return the seconds of a duration such as ``1s``, ``6m0s``, ``120ms`` or ``17.5``; None when it is none."""
    if text is None or (seconds := _number(text)) is not None:
        return None if text is None else seconds
    parts = _PART.findall(text)
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != text.strip():
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is None or 0 <= value < float("inf") else None
