"""Asking an OpenAI-compatible server: each request once, many at a time, every answer kept as it comes."""

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from drot_utils.answers import Answer, Work, explain_finish, list_missing
from drot_utils.batches import ask_batches
from drot_utils.cache import Cache, request_key
from drot_utils.direct import ask_directly
from drot_utils.errors import EndpointError
from drot_utils.faults import describe_request
from drot_utils.forecast import forecast
from drot_utils.intake import Intake
from drot_utils.ledger import read_ignored
from drot_utils.prices import Budget, Prices, read_prices
from drot_utils.progress import Progress
from drot_utils.settings import Endpoint, Requests
from drot_utils.transport import Transport, read_key
from drot_utils.usage import Usage

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
            todo="import responses that cover them (python -m drot_utils.cache import), or set `requests.cache: use`",
        )
    intake, missing = None, {work.key for work in works}
    if works:
        intake = _open_intake(works, endpoint, requests_settings, prices, cache)
        with Progress(what, len(set(keys)), "requests", done=len(set(keys)) - len(works)) as progress:
            _Asking(works, endpoint, intake).watch(progress)
    asked = sum(key in missing for key in keys)
    return _collect(requests, keys, asked, endpoint, prices, cache, intake)


def _open_intake(
    works: list[Work], endpoint: Endpoint, settings: Requests, prices: Prices, cache: Cache
) -> Intake:
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
        budget.check(
            forecast(requests, endpoint, prices, cache, refresh=settings.cache == "refresh").cost_usd
        )
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
    counts = [
        [getattr(e, name) for group in entries for e in group]
        for name in ("prompt_tokens", "completion_tokens")
    ]
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
    return [
        [Answer(e.text, e.finish, e.prompt_tokens, e.completion_tokens) for e in group] for group in entries
    ], usage


class _Asking(threading.Thread):
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
