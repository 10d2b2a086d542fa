"""Asking an OpenAI-compatible server: each request once, many at a time, every answer kept as it comes.

From the top: `ask_all` looks what the cache lacks; a thread with a loop of its own (a notebook has one already) asks for that
(`_Asking`), as several tasks that take turns; each task asks for one request until nothing of it is missing. What may pass is
asked again by the `openai` client (see `server`); what comes is kept and counted by `accounts`.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from aiolimiter import AsyncLimiter

from drot_utils.llm.accounts import Accounts, Usage, count_prompt
from drot_utils.llm.cache import Answer, Cache, request_key
from drot_utils.llm.faults import Declined, Fault, Refusal
from drot_utils.llm.replies import Work, describe_request, list_missing
from drot_utils.study.errors import EndpointError
from drot_utils.study.params import Endpoint, Requests
from drot_utils.study.progress import Progress

LOOK = 0.1  # seconds between two looks at how far the asking is
GRACE = 5.0  # seconds that what is under way has to come back after Ctrl-C
GIVE_UP = 3  # requests in a row that used up their tries: nobody is there any more
NO_API = ("no JSON", "no choices")  # faults of an address where something else answers


def ask_all(
    requests: list[dict[str, Any]], endpoint: Endpoint, settings: Requests, cache: Cache, what: str
) -> tuple[list[list[Answer]], Usage]:
    """Have all requests answered: by the cache, and by the server where the cache has no answer.

    Stopped by Ctrl-C, it waits a few seconds for what is under way; stopped in any way, it keeps what was answered.

    Parameters
    ----------
    requests : list of dict
        Whole request bodies: model, messages or prompt, n, sampling settings, seed ...
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
        Before it begins what is forecast to cost more than is left of the budget, and when the budget is spent. What is under
        way then is still paid for, so the budget may be passed by as much.
    """
    keys = [request_key(request) for request in requests]
    works = list_missing(requests, keys, cache, refresh=settings.cache == "refresh")
    accounts = Accounts(endpoint, settings, cache)
    missing = {work.key for work in works}
    if works:
        count = len(set(keys))
        _check_may_ask(works, count, endpoint, settings, f"{what}, {cache.path}")
        accounts.open_budget([work.request for work in works])
        with Progress(what, count, "requests", done=count - len(works)) as progress:
            _run_in_thread(_Asking(works, accounts), progress)
    kept = cache.read(keys)
    answers = [[kept[k][n] for n in range(r.get("n", 1))] for k, r in zip(keys, requests, strict=True)]
    return answers, accounts.sum_up(answers, sum(key in missing for key in keys))


def _check_may_ask(works: list[Work], count: int, endpoint: Endpoint, settings: Requests, where: str) -> None:
    missing = f"requests have no answer in the cache; the first is {describe_request(works[0].request)}"
    if settings.cache == "only":
        found = f"`requests.cache: only` asks nobody, and {len(works)} of {count} {missing}"
        todo = "import responses that cover them (python -m drot_utils answers import), or set `requests.cache: use`"
        raise EndpointError(found, where=where, todo=todo)
    from drot_utils.llm.server import read_key

    read_key(endpoint, f", and {len(works)} {missing}")


def _run_in_thread(asking: "_Asking", progress: Progress) -> None:
    """Ask in a thread; this one shows how far it is, and gets Ctrl-C."""
    what, accounts, over = progress.what, asking.accounts, False
    with ThreadPoolExecutor(1, "asking") as pool:
        future = pool.submit(asyncio.run, asking.run())
        try:
            while not over:
                over = wait([future], LOOK).done
                progress.update(accounts.done - (progress.n - progress.start_n))
                progress.say(f"{what} ({accounts.note})" if accounts.note else what)
        except BaseException:
            asking.stop()
            raise
    future.result()


class _Asking:
    """What one list of requests shares while it is asked."""

    def __init__(self, works: list[Work], accounts: Accounts) -> None:
        self.works, self.turns, self.endpoint, self.accounts = works, iter(works), accounts.endpoint, accounts
        self.loop: asyncio.AbstractEventLoop | None = None
        self.stopping = False
        self.alone = False  # the server refuses several choices
        self.given_up: list[tuple[Work, Fault]] = []
        self.in_a_row = 0  # of those given up

    def stop(self) -> None:
        """Begin nothing more (from another thread)."""
        self.stopping = True
        if self.loop and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.task.cancel)

    async def run(self) -> None:
        """Ask until nothing is missing."""
        from drot_utils.llm.batch import Batches
        from drot_utils.llm.server import Server

        self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
        if self.stopping:
            return
        self.server = Server(self.accounts)
        async with self.server.client:
            if self.endpoint.transport == "batch":
                await Batches(self.works, self.server).ask()
            else:
                await self._ask_directly()

    async def _ask_directly(self) -> None:
        self.first = asyncio.Lock()
        self.limits = [_open_limit(self.endpoint.requests_per_minute), _open_limit(self.endpoint.tokens_per_minute)]
        count = min(len(self.works), self.endpoint.concurrency)
        tasks = [asyncio.create_task(self._take_turns()) for _ in range(count)]
        seconds = GRACE
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            seconds = self.endpoint.timeout_s
        finally:  # what waits is stopped; what is under way was paid for, so it has some time to arrive
            self.stopping = self.server.closing = True
            for task in set(tasks) - self.server.under_way:
                task.cancel()
            await asyncio.wait(tasks, timeout=seconds)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if task in done and not task.cancelled():
                task.result()  # the error that ended it all, if one did
        if self.given_up:
            raise self._say_given_up()

    async def _take_turns(self) -> None:
        try:
            for work in self.turns:
                await self._finish(work)
        except BaseException:
            self.stopping = True  # at once: the others are not to begin anything
            raise

    async def _finish(self, work: Work) -> None:
        """Ask for one request until nothing of it is missing."""
        try:
            # Until one request is answered the others wait: a wrong key, address or setting costs one request, not sixty.
            async with self.first:
                while work.missing and not self.server.answered:
                    await self._ask(work)
            while work.missing:
                await self._ask(work)
        except Fault as fault:
            self.given_up.append((work, fault))
            self.in_a_row += 1
            # A first request that never works says nothing of the others, unless nobody is there, or no such API.
            nobody = fault.unreachable or fault.kind in NO_API
            if self.in_a_row >= GIVE_UP or (nobody and not self.server.answered):
                raise self._say_given_up() from None
        else:
            self.in_a_row = 0
            self.accounts.done += 1

    async def _ask(self, work: Work) -> None:
        """Send one request for what is missing, and keep what comes."""
        work.alone |= self.alone
        sent = work.outgoing()
        await self._wait_for_limits(sent)
        self.accounts.check_budget()
        if self.stopping:
            raise asyncio.CancelledError
        settled = self.accounts.settled
        try:
            reply = await self.server.ask(self.accounts.phrase(sent))
        except Declined as no:
            self.accounts.decline(work, sent, no)
            self.server.answered = True
        except Refusal as refusal:
            if not self.accounts.learn(refusal, work, sent, settled):
                raise
        else:
            self.alone |= work.doubted
            self.accounts.take(work, sent, reply)
            self.accounts.check_thoughts(sent)

    async def _wait_for_limits(self, sent: dict[str, Any]) -> None:
        if not any(self.limits):
            return
        tokens = count_prompt(sent) + (sent.get("max_tokens") or 0) * sent.get("n", 1)
        for limit, amount in zip(self.limits, (1, tokens), strict=True):
            while limit and amount > 0:  # more than a second's worth is taken in parts
                await limit.acquire(min(amount, limit.max_rate))
                amount -= limit.max_rate

    def _say_given_up(self) -> EndpointError:
        work, fault = self.given_up[0]
        if not self.server.answered and fault.unreachable:
            found = f"nobody answers at this address ({fault})"
            todo = "check `base_url`, that the server runs, and the network, or the proxy if one is named"
        elif not self.server.answered and fault.kind in NO_API:
            found = f"what answers at this address is no OpenAI-compatible API ({fault})"
            todo = "check `base_url` (most end in /v1) and `kind`"
        else:
            found = f"{len(self.given_up)} of {len(self.works)} requests got no answer in {self.endpoint.max_retries + 1} tries"
            found += f"; the first is {describe_request(work.request)}, at last {fault}"
            todo = "run the same command again, later or with a larger `max_retries`: what was answered is in the cache"
        return EndpointError(found, where=self.endpoint.where, todo=todo)


def _open_limit(per_minute: int | None) -> AsyncLimiter | None:
    if per_minute is None:
        return None
    rate = per_minute / 61  # a second: 60 seconds' amount and the second's worth that it holds make one minute's
    return AsyncLimiter(max(1.0, rate), max(1.0, rate) / rate)
