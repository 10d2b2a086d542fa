"""Asking an OpenAI-compatible server: each request once, many at a time, every answer kept as it comes."""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from drot_utils.llm.batch import ask_batches
from drot_utils.llm.cache import IGNORED, Cache, Line, enter, read_ignored, request_key
from drot_utils.llm.costs import Budget, Prices, Usage, forecast, read_prices
from drot_utils.llm.replies import (
    LONGEST_WAIT,
    Answer,
    Declined,
    Fault,
    Refusal,
    Work,
    _number,
    describe_request,
    explain_finish,
    keeps_asking,
    list_missing,
    read_duration,
)
from drot_utils.llm.transport import PATHS, Intake, Transport, back_off, read_key
from drot_utils.study.errors import EndpointError
from drot_utils.study.params import Endpoint, Requests
from drot_utils.study.progress import Progress

CUT_EVERY = 1.0  # seconds between two cuts of the window: the requests under way all meet the same overload


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
        self.rate = per_minute / 61  # a second: 60 seconds' refill and the bucket itself make one minute's amount
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
        self.requests = Bucket(endpoint.requests_per_minute, now) if endpoint.requests_per_minute is not None else None
        self.tokens = Bucket(endpoint.tokens_per_minute, now) if endpoint.tokens_per_minute is not None else None
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
            limit, remaining = (_number(headers.get(f"x-ratelimit-{what}-{kind}")) for what in ("limit", "remaining"))
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


GRACE = 5.0  # seconds that what is under way has to come back after Ctrl-C
LONG = 5.0  # seconds of a pause that are worth a word
GIVE_UP = 3  # requests in a row that used up their tries: nobody is there any more


async def ask_directly(works: list[Work], transport: Transport, intake: Intake) -> None:
    """Ask until nothing is missing.

    As many tasks as `endpoint.concurrency` share the list; each takes the next request when it is done with one.

    Parameters
    ----------
    works : list of Work
        What is missing; changed.
    transport : Transport
        Open.
    intake : Intake
        Keeps what comes.

    Raises
    ------
    EndpointError
        When the server refuses for good, is not there, or left requests unanswered after all tries; what was under way
        when this showed is waited for.
    """
    await _Direct(works, transport, intake).run()


class _GaveUp(Exception):
    """All tries of a request are used up."""


class _Direct:
    def __init__(self, works: list[Work], transport: Transport, intake: Intake) -> None:
        self.works, self.count, self.transport, self.intake = iter(works), len(works), transport, intake
        self.endpoint = transport.endpoint
        self.limits = Limits(self.endpoint)
        self.under_way: set[asyncio.Task] = set()
        self.stopping, self.alone, self.opened = False, False, False
        self.first = asyncio.Lock()
        self.given_up: list[tuple[Work, Fault, int]] = []
        self.in_a_row = 0

    async def run(self) -> None:
        tasks = [asyncio.create_task(self._take_turns()) for _ in range(min(self.count, self.endpoint.concurrency))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            await self._wind_up(tasks, self.endpoint.timeout_s)
        except asyncio.CancelledError:
            await self._wind_up(tasks, GRACE)
            raise
        for task in tasks:
            if not task.cancelled() and (error := task.exception()):
                raise error
        if self.given_up:
            raise self._say_given_up()

    async def _wind_up(self, tasks: list[asyncio.Task], seconds: float) -> None:
        # What waits is stopped; what is under way was paid for, so it has some time to arrive.
        self.stopping = True
        for task in tasks:
            if task not in self.under_way:
                task.cancel()
        await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _take_turns(self) -> None:
        try:
            for work in self.works:
                await self._finish(work)
        except BaseException:
            self.stopping = True  # at once: the others are not to begin anything
            raise

    async def _finish(self, work: Work) -> None:
        try:
            while work.missing:
                await self._take_turn(work)
        except _GaveUp:
            self.in_a_row += 1
            # A first request that never works says nothing of the others, unless nobody is there, or no such API.
            if self.in_a_row >= GIVE_UP or (not self.opened and self._is_no_api(self.given_up[-1][1])):
                raise self._say_given_up() from None
        else:
            self.in_a_row = 0
            self.intake.done += 1

    async def _take_turn(self, work: Work) -> None:
        # Until one request is answered the others wait: a wrong key, address or setting costs one request, not sixty.
        if not self.opened:
            async with self.first:
                if not self.opened:
                    await self._ask(work)
                    self.opened = True
                    return
        await self._ask(work)

    async def _ask(self, work: Work) -> None:
        attempt, waited = 0, 0.0
        while True:
            if self.stopping:
                raise asyncio.CancelledError
            work.alone |= self.alone
            sent = work.outgoing()
            await self._wait_for_money(sent)
            await self.limits.acquire(self.intake.weigh(sent))
            try:
                fault = await self._try(work, sent)
            except Refusal as refusal:
                fault = self._learn(refusal, work, sent)
            if fault is None:
                if work.doubted and not self.alone:
                    self.alone = True
                    self.intake.note_ignored(sent, "n: refused")
                self.intake.check_thoughts(sent)
                return
            nobody = fault.unreachable and attempt and not self.opened  # ever: a wrong address shows at once
            if nobody or not keeps_asking(fault, attempt, self.endpoint.max_retries, waited):
                self.given_up.append((work, fault, attempt + 1))
                raise _GaveUp
            pause = max(fault.wait or 0.0, back_off(attempt, random.random()))
            await asyncio.sleep(pause)
            attempt, waited = attempt + 1, waited + pause

    def _learn(self, refusal: Refusal, work: Work, sent: dict[str, Any]) -> Fault:
        if self.intake.learn_length(refusal):
            return Fault(f"refused {refusal.setting}", str(refusal.found), billed=False)
        if refusal.status not in (400, 422) or refusal.setting or sent.get("n", 1) == 1:
            raise refusal
        # Some servers refuse `n` instead of passing over it. If this was not it, the next refusal is final.
        work.alone = work.doubted = True
        return Fault("refused n", str(refusal.found), billed=False)

    async def _try(self, work: Work, sent: dict[str, Any]) -> Fault | None:
        reserved, used, headers, answered = self.intake.weigh(sent), None, {}, False
        task = asyncio.current_task()
        try:
            self.intake.send(sent)
            self.under_way.add(task)
            reply, headers = await self.transport.post(
                PATHS[self.endpoint.kind], self.intake.phrase(sent), describe_request(sent)
            )
            used = self.intake.take(work, sent, reply)
            answered, self.intake.note = True, ""
            return None
        except Declined as no:
            self.intake.decline(work, sent, no)
            return None
        except Fault as fault:
            self.intake.fail(sent, fault)
            headers = fault.headers or headers
            if fault.overload or fault.wait:
                self.limits.slow_down(fault.wait)
            if fault.wait and fault.wait > LONG:
                self.intake.note = f"the server asks for a pause of {fault.wait:.0f} s"
            return fault
        except (EndpointError, asyncio.CancelledError) as error:
            if task in self.under_way:
                self.intake.fail(sent, None if isinstance(error, EndpointError) else Fault("stopped"))
            raise
        finally:
            self.under_way.discard(task)
            self.limits.release(reserved, used, headers, answered)

    async def _wait_for_money(self, sent: dict[str, Any]) -> None:
        # What is under way may cost less than was set aside for it.
        while self.under_way and not self.intake.budget.fits(self.intake.bound(sent)):
            await asyncio.sleep(0.02)

    def _is_no_api(self, fault: Fault) -> bool:
        return fault.unreachable or fault.kind in ("no JSON", "no choices")

    def _say_given_up(self) -> EndpointError:
        work, fault, tries = self.given_up[0]
        where = f"{self.endpoint.base_url}, model {self.endpoint.model}"
        if fault.unreachable and not self.opened:
            return EndpointError(
                f"nobody answers at this address ({fault})",
                where=where,
                todo="check `base_url`, that the server runs, and the network, or the proxy if one is named",
            )
        if not self.opened and self._is_no_api(fault):
            return EndpointError(
                f"what answers at this address is no OpenAI-compatible API ({fault})",
                where=where,
                todo="check `base_url` (most end in /v1) and `kind`",
            )
        return EndpointError(
            f"{len(self.given_up)} of {self.count} requests got no answer in {tries} tries; the first is "
            f"{describe_request(work.request)}, at last {fault}",
            where=where,
            todo="run the same command again, later or with a larger `max_retries`: what was answered is in the cache",
        )


LOOK = 0.1  # seconds between two looks at how far the asking is


def ask_all(
    requests: Sequence[dict[str, Any]],
    endpoint: Endpoint,
    requests_settings: Requests,
    cache: Cache,
    what: str,
) -> tuple[list[list[Answer]], Usage]:
    """Have all requests answered: by the cache, and by the server where the cache has no answer.

    Works in a notebook, too, where an event loop runs already: the asking has a thread with a loop of its own. Stopped by
    Ctrl-C, it waits a few seconds for what is under way; stopped in any way, it keeps what was answered.

    Parameters
    ----------
    requests : sequence of dict
        Whole request bodies: model, messages or prompt, n, sampling settings, seed ...
    endpoint : Endpoint
    requests_settings : Requests
        What the cache is for, the prices, and what may be spent.
    cache : Cache
        Gets every answer as it comes; what it has in the end is what is returned.
    what : str
        Titles the progress and names the requests in errors.

    Returns
    -------
    answers : list of list of Answer
        In the order of the requests, `n` for each.
    usage : Usage

    Raises
    ------
    EndpointError
        An answer that is missing where nobody may be asked, no key, a server that refuses, is not there, or is no such API.
    BudgetError
        Before the budget would be exceeded.
    """
    prices = read_prices(requests_settings.prices)
    keys = [request_key(request) for request in requests]
    works = list_missing(requests, keys, cache, refresh=requests_settings.cache == "refresh")
    if works and requests_settings.cache == "only":
        raise EndpointError(
            f"{len(works)} of {len(set(keys))} requests have no answer in the cache, and `requests.cache: only` asks nobody; the "
            f"first is {describe_request(works[0].request)}",
            where=f"{what}, {cache.path}",
            todo="import responses that cover them (python -m drot_utils answers import), or set `requests.cache: use`",
        )
    intake, missing = None, {work.key for work in works}
    if works:
        intake = _open_intake(works, endpoint, requests_settings, prices, cache)
        with Progress(what, len(set(keys)), "requests", done=len(set(keys)) - len(works)) as progress:
            _AskingThread(works, endpoint, intake).watch(progress)
    asked = sum(key in missing for key in keys)
    return _collect(requests, keys, asked, endpoint, prices, cache, intake)


def _open_intake(works: list[Work], endpoint: Endpoint, settings: Requests, prices: Prices, cache: Cache) -> Intake:
    try:
        read_key(endpoint)
    except EndpointError as error:
        raise EndpointError(
            f"{error.found}, and {len(works)} requests have no answer in the cache; the first is "
            + describe_request(works[0].request),
            where=error.where,
            todo=error.todo,
        ) from None
    models = {(work.request["model"], endpoint.transport) for work in works}
    budget = Budget(settings.budget_usd, prices, cache, models)
    if budget.limit is not None:
        requests = [work.request for work in works]
        budget.check(forecast(requests, endpoint, prices, cache, refresh=settings.cache == "refresh").cost_usd)
    return Intake(endpoint, cache, prices, budget, replace=settings.cache == "refresh")


def _collect(
    requests: Sequence[dict[str, Any]],
    keys: list[str],
    asked: int,
    endpoint: Endpoint,
    prices: Prices,
    cache: Cache,
    intake: Intake | None,
) -> tuple[list[list[Answer]], Usage]:
    kept = cache.read(keys)
    entries = [
        [kept[key][number] for number in range(request.get("n", 1))]
        for key, request in zip(keys, requests, strict=True)
    ]
    counts = [[getattr(e, name) for group in entries for e in group] for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (None if None in count else sum(count) for count in counts)
    models = Counter(e.answered_by for group in entries for e in group if e.answered_by)
    reasons = (explain_finish(e.finish) for group in entries for e in group)
    usage = Usage(
        requests=len(keys),
        choices=sum(map(len, entries)),
        from_cache=len(keys) - asked,
        asked=asked,
        calls=intake.calls if intake else 0,
        faults=dict(sorted(intake.faults.items())) if intake else {},
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_usd=prices.cost(endpoint.model, endpoint.transport, prompt, completion),
        spent_usd=intake.spent if intake else 0.0,
        unmetered=intake.unmetered if intake else 0,
        ignored=read_ignored(cache, endpoint.model),
        unfinished=dict(sorted(Counter(filter(None, reasons)).items())),
        answered_by=dict(sorted(models.items())),
    )
    return [[Answer(e.text, e.finish, e.prompt_tokens, e.completion_tokens) for e in group] for group in entries], usage


class _AskingThread(threading.Thread):
    """The asking, in a thread of its own; the caller's thread watches it, shows how far it is, and gets Ctrl-C."""

    def __init__(self, works: list[Work], endpoint: Endpoint, intake: Intake) -> None:
        super().__init__(name="asking", daemon=True)
        self.works, self.endpoint, self.intake = works, endpoint, intake
        self.error: BaseException | None = None
        self.finished = (
            threading.Event()
        )  # Thread.join, interrupted by Ctrl-C, takes the thread for ended (CPython 3.11)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.stopped = False

    def watch(self, progress: Progress) -> None:
        """Start, and return when all is asked; what went wrong is raised here."""
        what = progress.what
        self.start()
        try:
            while not self.finished.wait(LOOK):
                self._show(progress, f"{what} ({self.intake.note})" if self.intake.note else what)
            self._show(progress, what)
        except BaseException:
            self._stop_asking()
            self.finished.wait()
            raise
        if self.error:
            raise self.error

    def _show(self, progress: Progress, title: str) -> None:
        progress.update(self.intake.done - (progress.n - progress.start_n))
        if title != progress.what:
            progress.say(title)

    def run(self) -> None:
        """Ask (the thread's part)."""
        try:
            asyncio.run(self._ask())
        except BaseException as error:  # raised again in the caller's thread
            self.error = error
        finally:
            self.finished.set()

    async def _ask(self) -> None:
        self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
        if self.stopped:
            return
        ask = ask_batches if self.endpoint.transport == "batch" else ask_directly
        async with Transport(self.endpoint) as transport:
            await ask(self.works, transport, self.intake)

    def _stop_asking(self) -> None:
        self.stopped = True
        if self.loop and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.task.cancel)


PENALTIES = ("presence_penalty", "frequency_penalty")
HIGHEST = 2.0


def probe_penalties(request: dict[str, Any], endpoint: Endpoint, settings: Requests, cache: Cache) -> dict[str, str]:
    """Ask one request without penalties and with each of them at its highest: the same text means that it is ignored.

    Other texts do not prove the contrary, as the server may not heed the seed. One request goes out after the other, since
    some servers have one seed for all that is under way. The answers are cached like all others; what is found is entered
    into the ledger, once.

    Parameters
    ----------
    request : dict
        As it is going to be asked, with a seed.

    Returns
    -------
    dict of str
        For each penalty: ``ignored``, ``not seen to be ignored``, ``not sent`` (null), or why it could not be tried.
    """
    tried = [penalty for penalty in PENALTIES if penalty in request and endpoint.names.get(penalty, penalty)]
    one_by_one = endpoint.model_copy(update={"concurrency": 1, "transport": "direct"})
    plain = {name: value for name, value in request.items() if name != "n"} | dict.fromkeys(tried, 0.0)
    if not tried:
        return dict.fromkeys(PENALTIES, "not sent")
    try:
        bodies = [plain, *({**plain, penalty: HIGHEST} for penalty in tried)]
        ((without,), *others), _ = ask_all(bodies, one_by_one, settings, cache, "trying the penalties")
    except EndpointError as error:
        return dict.fromkeys(PENALTIES, f"could not be tried: {error.found}")
    found = dict.fromkeys(PENALTIES, "not sent")
    for penalty, (answer,) in zip(tried, others, strict=True):
        ignored = answer.text == without.text != ""
        found[penalty] = "ignored" if ignored else "not seen to be ignored"
        if ignored and penalty not in read_ignored(cache, endpoint.model):
            enter(cache, Line(endpoint.model, endpoint.transport, IGNORED + penalty))
    return found
