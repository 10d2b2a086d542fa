"""Asking request by request: many under way at once, at the pace that the server bears, and again where something went wrong."""

import asyncio
import random
from typing import Any

from drot_utils.answers import Work
from drot_utils.errors import EndpointError
from drot_utils.faults import Declined, Fault, Refusal, describe_request, keeps_asking
from drot_utils.intake import Intake
from drot_utils.limits import Limits
from drot_utils.transport import Transport

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
BACKOFF, LONGEST_BACKOFF = 0.5, 60.0  # seconds before the first repetition, doubled for each further one
GRACE = 5.0  # seconds that what is under way has to come back after Ctrl-C
LONG = 5.0  # seconds of a pause that are worth a word
GIVE_UP = 3  # requests in a row that used up their tries: nobody is there any more


def back_off(attempt: int, draw: float) -> float:
    """Return the seconds before repetition `attempt` (from 0): doubled each time, and spread by a `draw` from [0, 1)."""
    return min(LONGEST_BACKOFF, BACKOFF * 2**attempt) * (0.5 + draw / 2)


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
    await _Asking(works, transport, intake).run()


class _GaveUp(Exception):
    """All tries of a request are used up."""


class _Asking:
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
        tasks = [
            asyncio.create_task(self._take_turns()) for _ in range(min(self.count, self.endpoint.concurrency))
        ]
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
