"""OpenAI's Batch API: requests as files of lines, half the price, an answer within a day."""

import asyncio
import json
import random
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drot_utils.llm.cache import Cache
from drot_utils.llm.replies import Declined, Fault, Refusal, Work, find_content, keeps_asking, read_status
from drot_utils.llm.transport import FILE_TIMES, PATHS, Intake, Transport, back_off
from drot_utils.study.errors import EndpointError

MOST_LINES, MOST_BYTES = 50_000, 190_000_000  # OpenAI takes 50,000 requests and 200 MB a file


@dataclass(frozen=True)
class Parcel:
    """A file of requests.

    Attributes
    ----------
    token : str
        Our mark, by which it is found again at the server.
    lines : dict
        By the number of the line: the key of its request and the choices it asks for.
    id : str or None
        The server's number, None until it is known.
    """

    token: str
    lines: dict[str, tuple[str, list[int]]]
    id: str | None = None

    def path(self, cache: Cache) -> Path:
        """Return where the file lies."""
        return cache.path.with_name("batches") / f"{self.token}.jsonl"


def cut_work(works: list[Work]) -> Iterator[list[Work]]:
    """Cut what is missing into lists that make files of a size that the server takes, one line for each piece of work."""
    part, size = [], 0
    for work in works:
        length = len(json.dumps(work.request)) + 300
        for choices in [[number] for number in work.missing] if work.alone else [work.missing]:
            if part and (len(part) >= MOST_LINES or size + length > MOST_BYTES):
                yield part
                part, size = [], 0
            part.append(replace(work, missing=list(choices)))
            size += length
    if part:
        yield part


def pack(
    part: list[Work],
    path: str,
    place: str,
    cache: Cache,
    phrase: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Parcel:
    """Write a file of requests to `path` of the API at `place`, each in the server's words by `phrase`, and write it down."""
    parcel = Parcel(uuid.uuid4().hex, {f"{n:06d}": (work.key, work.missing) for n, work in enumerate(part)})
    file = parcel.path(cache)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="\n") as handle:
        for number, work in zip(parcel.lines, part, strict=True):
            line = {"custom_id": number, "method": "POST", "url": path, "body": phrase(work.outgoing())}
            handle.write(json.dumps(line, allow_nan=False) + "\n")
    with cache.transaction():
        cache.query("INSERT INTO batches VALUES (?, ?, NULL)", parcel.token, place)
        cache.put([(work.request, {}) for work in part])
        for number, (key, choices) in parcel.lines.items():
            cache.query("INSERT INTO lines VALUES (?, ?, ?, ?)", parcel.token, number, key, json.dumps(choices))
    return parcel


def note_id(parcel: Parcel, number: str, cache: Cache) -> Parcel:
    """Write down the server's number of a parcel."""
    cache.query("UPDATE batches SET id = ? WHERE token = ?", number, parcel.token)
    return replace(parcel, id=number)


def list_parcels(place: str, cache: Cache) -> list[Parcel]:
    """Return the parcels that went to a place and of which nothing was taken in yet."""
    parcels = []
    for token, number in cache.query("SELECT token, id FROM batches WHERE place = ? ORDER BY token", place):
        rows = cache.query("SELECT id, key, choices FROM lines WHERE token = ? ORDER BY id", token)
        parcels.append(Parcel(token, {line: (key, json.loads(choices)) for line, key, choices in rows}, number))
    return parcels


def forget(parcel: Parcel, cache: Cache) -> None:
    """Strike a parcel off, and remove its file."""
    cache.query("DELETE FROM lines WHERE token = ?", parcel.token)
    cache.query("DELETE FROM batches WHERE token = ?", parcel.token)
    parcel.path(cache).unlink(missing_ok=True)


def find_request(key: str, cache: Cache) -> dict[str, Any]:
    """Return the request of a key, as it was packed."""
    return json.loads(cache.query("SELECT body FROM requests WHERE key = ?", key)[0][0])


POLL, LONGEST_POLL = 2.0, 60.0  # seconds between two looks at a batch, doubled up to the second
OVER = ("completed", "failed", "expired", "cancelled")
QUEUE_FULL = "token_limit_exceeded"  # so much is handed in already that it is tried again later
PAGES = 20  # of the server's list that are searched for a batch whose number was not written down in time


async def ask_batches(works: list[Work], transport: Transport, intake: Intake) -> None:
    """Ask for what is missing in batches until nothing is (see `direct.ask_directly`)."""
    await _Asking(works, transport, intake).run()


class _Asking:
    def __init__(self, works: list[Work], transport: Transport, intake: Intake) -> None:
        self.works, self.transport, self.intake = {work.key: work for work in works}, transport, intake
        self.endpoint, self.cache = transport.endpoint, intake.cache
        self.path = f"/v1{PATHS[self.endpoint.kind]}"
        self.place = f"{self.endpoint.base_url} {self.path}"
        self.brought, self.last, self.alone = 0, "nothing came back", False
        self.refusal: EndpointError | None = None

    async def run(self) -> None:
        for parcel in await self._find_earlier():
            await self._bring_in(parcel)
        idle = 0
        while missing := [work for work in self.works.values() if work.missing]:
            if idle > self.endpoint.max_retries:
                raise EndpointError(
                    f"{len(missing)} requests got no answer in {idle} batches; at last: {self.last}",
                    where=self.place,
                    todo="run the same command again: what was answered is in the cache",
                )
            if idle:
                await asyncio.sleep(back_off(idle, random.random()))
            self.brought = 0
            parcels = [await self._hand_in(part) for part in cut_work(missing)]
            for parcel in parcels:
                await self._bring_in(parcel)
            idle = 0 if self.brought else idle + 1

    async def _hand_in(self, part: list[Work]) -> Parcel:
        for work in part:
            self.intake.send(work.outgoing())
        parcel = pack(part, self.path, self.place, self.cache, self.intake.phrase)
        file = parcel.path(self.cache)
        uploaded = await self._persist(lambda: self.transport.upload(file, f"the file {file.name}"))
        return note_id(parcel, await self._persist(lambda: self._create(parcel, uploaded["id"])), self.cache)

    async def _create(self, parcel: Parcel, file: str) -> str:
        window, mark = "24h", {"drot": parcel.token}
        body = {"input_file_id": file, "endpoint": self.path, "completion_window": window, "metadata": mark}
        try:
            made, _ = await self.transport.post("/batches", body, f"a batch of {len(parcel.lines)} requests")
            return made["id"]
        except Fault:
            # Sent again, it could be made, and paid, twice: is it there?
            found = await self._persist(lambda: self._search(parcel.token))
            if found is None:
                raise
            return found

    async def _search(self, token: str) -> str | None:
        after = ""
        for _ in range(PAGES):
            page = await self.transport.get(f"/batches?limit=100{after}", "the list of batches")
            for entry in page.get("data", []):
                if (entry.get("metadata") or {}).get("drot") == token:
                    return entry["id"]
            if not page.get("has_more") or not page.get("data"):
                return None
            after = f"&after={page['data'][-1]['id']}"
        return None

    async def _find_earlier(self) -> list[Parcel]:
        found = []
        for parcel in list_parcels(self.place, self.cache):
            number = parcel.id or await self._persist(lambda token=parcel.token: self._search(token))
            if number is None:
                forget(parcel, self.cache)  # the run was stopped before it was made
                continue
            for key, choices in parcel.lines.values():
                self.intake.send(self._work(key, choices).outgoing(), earlier=True)
            found.append(note_id(parcel, number, self.cache))
        return found

    async def _bring_in(self, parcel: Parcel) -> None:
        try:
            state = await self._wait_for(parcel)
            lines = []
            for name in ("output_file_id", "error_file_id"):
                if state.get(name):
                    path = f"/files/{state[name]}/content"
                    content, _ = await self._persist(
                        lambda path=path: self.transport.download(path, path, times=FILE_TIMES)
                    )
                    lines += content.split(b"\n")
        except Refusal as refusal:
            if refusal.status != 404:
                raise
            state, lines = {"status": "gone"}, []
        waiting = dict(parcel.lines)
        with self.cache.transaction():  # all of it or nothing: no line is entered twice
            for line in lines:
                if line.strip():
                    self._read_line(line, waiting)
            for key, choices in waiting.values():
                nothing = Fault(f"batch {state['status']}", "a line without a result", billed=False)
                self._fail(self._work(key, choices), nothing)
            forget(parcel, self.cache)
        self._check_state(state)
        if self.refusal:
            raise self.refusal
        for work in list(self.works.values())[:1]:
            self.intake.check_thoughts(work.request)

    async def _wait_for(self, parcel: Parcel) -> dict[str, Any]:
        pause = POLL
        while True:
            state = await self._persist(lambda: self.transport.get(f"/batches/{parcel.id}", f"the batch {parcel.id}"))
            counts = state.get("request_counts") or {}
            self.intake.note = (
                f"batch {state.get('status')}, {counts.get('completed', 0)} of {len(parcel.lines)} requests"
            )
            if state.get("status") in OVER:
                return state
            await asyncio.sleep(pause)
            pause = min(LONGEST_POLL, pause * 2)

    def _read_line(self, line: bytes, waiting: dict[str, tuple[str, list[int]]]) -> None:
        try:
            values = json.loads(line)
            key, choices = waiting.pop(values["custom_id"])
        except (ValueError, KeyError, TypeError):
            self.intake.faults["batch: unreadable line"] += 1
            return
        work = self._work(key, choices)
        response, error = values.get("response") or {}, values.get("error") or {}
        status, body = int(response.get("status_code", 0)), response.get("body") or {}
        try:
            if status == 200:
                self.intake.take(work, work.outgoing(), body)
                self._settle(work, choices)
                if work.doubted and not self.alone:
                    self.alone = True
                    self.intake.note_ignored(work.request, "n: refused")
            elif status >= 400:
                raise read_status(status, {}, json.dumps(body).encode(), self.endpoint, f"line {values['custom_id']}")
            else:
                if (reason := find_content(json.dumps(error).encode())) is not None:
                    raise Declined(reason, str(error.get("message")))
                raise Fault(f"batch: {error.get('code')}", str(error.get("message")), billed=False)
        except Declined as no:
            self.intake.decline(work, work.outgoing(), no)
            self._settle(work, choices)
        except Fault as fault:
            self._fail(work, fault)
        except Refusal as refusal:
            self.intake.fail(work.outgoing(), None)
            if self.intake.learn_length(refusal):
                self.brought += 1  # it is known now how to ask
            elif refusal.status in (400, 422) and not refusal.setting and len(choices) > 1:
                work.alone = work.doubted = True
                self._settle(work, choices)
                self.brought += 1
            else:
                self.refusal = self.refusal or refusal

    def _work(self, key: str, choices: list[int]) -> Work:
        # As it was when it was sent; the request of another run of this cache is in the cache.
        work = self.works.get(key)
        request = work.request if work else find_request(key, self.cache)
        seen, doubted = (work.seen, work.doubted) if work else (set(), False)
        return Work(key, request, list(choices), len(choices) == 1, seen, doubted)

    def _settle(self, done: Work, choices: list[int]) -> None:
        self.brought += len(choices) - len(done.missing)
        work = self.works.get(done.key)
        if work and work.missing:
            came = set(choices) - set(done.missing)
            work.missing = [choice for choice in work.missing if choice not in came]
            work.alone |= done.alone and len(choices) > 1
            work.doubted |= done.doubted
            self.intake.done += not work.missing

    def _fail(self, work: Work, fault: Fault) -> None:
        self.last = str(fault)
        self.intake.fail(work.outgoing(), fault)

    def _check_state(self, state: dict[str, Any]) -> None:
        if state["status"] != "failed":
            return
        errors = (state.get("errors") or {}).get("data") or [{}]
        said = "; ".join(f"{e.get('code')}: {e.get('message')}" for e in errors[:3])
        self.last = said
        if all(error.get("code") != QUEUE_FULL for error in errors):
            raise EndpointError(
                f"the server refused the batch ({said})",
                where=self.place,
                todo="mend what it names, or use `transport: direct`",
            )

    async def _persist(self, call: Callable[[], Awaitable[Any]]) -> Any:
        attempt, waited = 0, 0.0
        while True:
            try:
                return await call()
            except Fault as fault:
                self.intake.faults[fault.kind] += 1
                self.last, pause = str(fault), max(fault.wait or 0.0, back_off(attempt, random.random()))
                if not keeps_asking(fault, attempt, self.endpoint.max_retries, waited):
                    break
            await asyncio.sleep(pause)
            attempt, waited = attempt + 1, waited + pause
        raise EndpointError(
            f"the server did not answer in {attempt + 1} tries ({self.last})",
            where=self.place,
            todo="run the same command again: what was handed in is written down and is not handed in again",
        )
