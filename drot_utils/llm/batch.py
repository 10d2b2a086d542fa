"""OpenAI's Batch API: requests as files of lines, half the price, an answer within a day."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from itertools import count
from tempfile import TemporaryFile
from typing import IO, Any

from openai import types

from drot_utils.llm.faults import Declined, Fault, Refusal, find_content, read_status
from drot_utils.llm.replies import Work
from drot_utils.llm.server import PATHS, Server
from drot_utils.study.errors import DrotError, EndpointError, StorageError
from drot_utils.study.paths import exclusive

MOST_LINES, MOST_BYTES = 50_000, 190_000_000  # OpenAI takes 50,000 requests and 200 MB a file
POLL, LONGEST_POLL = 2.0, 60.0  # seconds between two looks at a batch, doubled up to the second
OVER = ("completed", "failed", "expired", "cancelled")
QUEUE_FULL = "token_limit_exceeded"  # so much is handed in already that it is tried again later


class Batches:
    """Asks for what is missing in batches until nothing is.

    Each batch is written down in the cache before it is handed in, so that a run that was stopped finds it again, and nothing is
    handed in twice.
    """

    def __init__(self, works: list[Work], server: Server) -> None:
        self.works, self.server, self.accounts = {work.key: work for work in works}, server, server.accounts
        self.endpoint, self.cache = server.endpoint, self.accounts.cache
        self.path = f"/v1{PATHS[self.endpoint.kind]}"
        self.place = f"{self.endpoint.base_url} {self.path}"
        self.lock = self.cache.path.with_name(f".{self.cache.path.name}.batches.lock")
        self.refusal: EndpointError | None = None
        # The accounts' when the batches that are out were written; of an earlier run's nobody knows.
        self.settled = False

    async def ask(self) -> None:
        """Ask until nothing is missing; an `EndpointError` when the server refuses, or batch after batch brings nothing."""
        # At first those that an earlier run wrote down for this place and did not take in.
        batches = self.cache.query("SELECT token, id FROM batches WHERE place = ? ORDER BY token", self.place)
        idle, found = -1, "the server did not answer"
        try:
            while True:
                self.progressed = False
                for token, known in batches:
                    if number := known or await self._find(token):
                        await self._bring_in(token, number)
                if not (missing := [work for work in self.works.values() if work.missing]):
                    return
                idle = 0 if self.progressed else idle + 1
                if idle > self.endpoint.max_retries:
                    found = f"{len(missing)} requests got no answer in {idle} batches"
                    break
                if idle:
                    await self._pause(idle)
                self.accounts.check_budget()
                self.settled = self.accounts.settled
                batches = []
                for part in cut_work(missing):
                    async with self._alone():
                        batches.append(await self._hand_in(part))
        except Fault as fault:
            self.accounts.last = str(fault)
        todo = "run the same command again: what was answered is in the cache, and what was handed in is not handed in again"
        raise EndpointError(f"{found}; at last: {self.accounts.last}", where=self.place, todo=todo)

    async def _pause(self, times: int) -> None:
        await asyncio.sleep(min(LONGEST_POLL, POLL * 2 ** min(times, 9)))

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Let no other process of this cache hand in a batch; who waits for one can be stopped."""
        with ExitStack() as held:
            for times in count():
                try:
                    held.enter_context(exclusive(self.lock, wait=False, what="handing in a batch"))
                    break
                except StorageError:
                    raise
                except DrotError as error:
                    self.accounts.note = str(error).partition("\n")[0]
                await self._pause(times)
            yield

    async def _hand_in(self, part: list[Work]) -> tuple[str, str | None]:
        with TemporaryFile(dir=self.cache.path.parent) as file:
            token = self.write(part, file)
            file.seek(0)
            create = self.server.client.files.create(file=(f"{token}.jsonl", file), purpose="batch")
            sent = await self.server.wait_for(create)
        creation = {"input_file_id": sent.id, "endpoint": self.path, "completion_window": "24h"}
        made = self.server.client.batches.create(**creation, metadata={"drot": token})
        try:
            number = (await self.server.wait_for(made, 0)).id
        except Fault:
            return token, None  # sent again at once, it could be made, and paid, twice: it is looked for first
        self.cache.query("UPDATE batches SET id = ? WHERE token = ?", number, token)
        return token, number

    async def _find(self, token: str) -> str | None:
        """Return the number of a batch that was written down without it; one that was never made is struck off."""
        # Under the lock of those who hand in: before they let go of it they have written the number down, or are dead.
        async with self._alone():
            ((number,),) = self.cache.query("SELECT max(id) FROM batches WHERE token = ?", token)
            number = number or await self.server.wait_for(self._search(token))
            if number is None:
                self.forget(token)
        return number

    async def _search(self, token: str) -> str | None:
        async for entry in self.server.client.batches.list(limit=100):
            if (entry.metadata or {}).get("drot") == token:
                return entry.id
        return None

    async def _bring_in(self, token: str, number: str) -> None:
        sql = "SELECT id, key, body, choices FROM lines JOIN requests USING (key) WHERE token = ?"
        rows = self.cache.query(sql, token)
        waiting = {line: Work(key, json.loads(body), json.loads(choices)) for line, key, body, choices in rows}
        lines, status, failures = [], "gone", None
        try:
            state = await self._wait_for(number, len(waiting))
        except Refusal as refusal:
            if refusal.status != 404:
                raise
        else:
            lines, status, failures = await self._fetch(state), state.status, state.errors
        with self.cache.transaction():  # all of it or nothing: no line is entered twice
            if self.forget(token):
                self.accounts.calls += len(waiting)
                for line in filter(bytes.strip, lines):
                    self._read_line(line, waiting)
                for _ in waiting:
                    self.accounts.fail(Fault(f"batch {status}", "a line without a result", billed=False))
            else:
                self._catch_up(waiting)
        if status == "failed":
            errors = (failures and failures.data) or []
            self.accounts.last = "; ".join(f"{error.code}: {error.message}" for error in errors[:3])
            if all(error.code != QUEUE_FULL for error in errors):
                todo = "correct what it names, or use `transport: direct`"
                raise EndpointError(f"the server refused the batch ({self.accounts.last})", where=self.place, todo=todo)
        if self.refusal:
            raise self.refusal
        self.accounts.check_thoughts(next(iter(self.works.values())).request)

    def _catch_up(self, waiting: dict[str, Work]) -> None:
        """Take from the cache what came in a batch that another process took in, and billed, while this one waited for it."""
        lines = {(work.key, choice) for work in waiting.values() for choice in work.missing}
        for key, kept in self.cache.read(self.works).items():
            work = self.works[key]
            # What is asked anew counts as answered only if the batch was to answer it.
            left = [c for c in work.missing if c not in kept or (self.accounts.anew and (key, c) not in lines)]
            self.progressed |= left != work.missing
            self.accounts.done += bool(work.missing) and not left
            work.missing = left

    async def _fetch(self, state: types.Batch) -> list[bytes]:
        lines = []
        for file in filter(None, (state.output_file_id, state.error_file_id)):
            try:
                lines += (await self.server.wait_for(self.server.client.files.content(file))).content.split(b"\n")
            except Refusal as refusal:  # the batch was paid for, so it is not struck off
                if refusal.status != 404:
                    raise
                found = f"batch {state.id} is {state.status}, but the server does not find its file {file}"
                todo = "run the same command again later; if the file is gone for good, ask (and pay) again after "
                todo += f"sqlite3 {self.cache.path} \"DELETE FROM batches WHERE id = '{state.id}'\""
                raise EndpointError(found, where=self.place, todo=todo) from refusal
        return lines

    async def _wait_for(self, number: str, lines: int) -> types.Batch:
        for times in count():
            state = await self.server.wait_for(self.server.client.batches.retrieve(number))
            done = state.request_counts.completed if state.request_counts else 0
            self.accounts.note = f"batch {state.status}, {done} of {lines} requests"
            if state.status in OVER:
                return state
            await self._pause(times)

    def _read_line(self, line: bytes, waiting: dict[str, Work]) -> None:
        try:
            values = json.loads(line)
            done = waiting.pop(values["custom_id"])  # the work as it was when it was sent
        except (ValueError, KeyError, TypeError):
            self.accounts.faults["batch: unreadable line"] += 1
            return
        work = self.works.get(done.key, done)  # the line may be of another run of this cache
        choices, sent, done.doubted = set(done.missing), done.outgoing(), work.doubted
        try:
            self._read_result(values, done, sent)
        except Declined as no:
            self.accounts.decline(done, sent, no)
        except Fault as fault:
            self.accounts.fail(fault, sent)
        except Refusal as refusal:
            if self.accounts.learn(refusal, done, sent, self.settled):
                self.progressed = True  # it is known now how to ask
            else:
                self.refusal = self.refusal or refusal
        came = choices.difference(done.missing)
        self.progressed |= bool(came)
        if work.missing and work is not done:
            work.missing = [choice for choice in work.missing if choice not in came]
            work.alone |= done.alone
            work.doubted |= done.doubted
            self.accounts.done += not work.missing

    def _read_result(self, values: dict[str, Any], work: Work, sent: dict[str, Any]) -> None:
        response, error = values.get("response") or {}, values.get("error") or {}
        status, body = int(response.get("status_code") or 0), response.get("body") or {}
        if status == 200:
            self.accounts.take(work, sent, body)
        elif status >= 400:
            raise read_status(status, body, self.endpoint, f"line {values['custom_id']}")
        elif code := find_content(error):
            raise Declined(code)
        else:
            raise Fault(f"batch: {error.get('code')}", str(error.get("message")), billed=False)

    def write(self, part: list[Work], file: IO[bytes]) -> str:
        """Write requests in the server's words, and write them down; return our mark of the batch, to find it again there."""
        token = uuid.uuid4().hex
        with self.cache.transaction():
            self.cache.query("INSERT INTO batches VALUES (?, ?, NULL)", token, self.place)
            self.cache.put([(work.request, {}) for work in part])
            for number, work in enumerate(part):
                body = self.accounts.phrase(work.outgoing())
                line = {"custom_id": f"{number:06d}", "method": "POST", "url": self.path, "body": body}
                file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
                values = token, line["custom_id"], work.key, json.dumps(work.missing)
                self.cache.query("INSERT INTO lines VALUES (?, ?, ?, ?)", *values)
        return token

    def forget(self, token: str) -> bool:
        """Strike a batch off; False when another process has done so."""
        self.cache.query("DELETE FROM lines WHERE token = ?", token)
        return bool(self.cache.query("DELETE FROM batches WHERE token = ? RETURNING token", token))


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
