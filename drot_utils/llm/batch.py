"""OpenAI's Batch API: requests as files of lines, half the price, an answer within a day."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from openai import types

from drot_utils.llm.accounts import Accounts
from drot_utils.llm.faults import Declined, Fault, Refusal, find_content, read_status
from drot_utils.llm.replies import Work
from drot_utils.llm.server import PATHS, Server
from drot_utils.study.errors import EndpointError

MOST_LINES, MOST_BYTES = 50_000, 190_000_000  # OpenAI takes 50,000 requests and 200 MB a file
POLL, LONGEST_POLL = 2.0, 60.0  # seconds between two looks at a batch, doubled up to the second
OVER = ("completed", "failed", "expired", "cancelled")
QUEUE_FULL = "token_limit_exceeded"  # so much is handed in already that it is tried again later
PAGES = 20  # of the server's list that are searched for a batch whose number was not written down in time


class Batches:
    """Asks for what is missing in batches until nothing is.

    Each batch is written down in the cache before it is handed in, so that a run that was stopped finds it again, and nothing is
    handed in twice.
    """

    def __init__(self, works: list[Work], server: Server, accounts: Accounts) -> None:
        self.works, self.server, self.accounts = {work.key: work for work in works}, server, accounts
        self.endpoint, self.cache = server.endpoint, accounts.cache
        self.path = f"/v1{PATHS[self.endpoint.kind]}"
        self.place = f"{self.endpoint.base_url} {self.path}"
        self.progressed = False
        self.refusal: EndpointError | None = None

    async def ask(self) -> None:
        """Ask until nothing is missing; an `EndpointError` when the server refuses, or batch after batch brings nothing."""
        try:
            for token, known in self.list_open():
                if number := known or await self._search(token):
                    await self._bring_in(token, self.note_id(token, number))
                else:
                    self.forget(token)  # the run was stopped before it was made
            idle = 0
            while missing := [work for work in self.works.values() if work.missing]:
                if idle > self.endpoint.max_retries:
                    raise self._say_nothing_came(f"{len(missing)} requests got no answer in {idle} batches")
                if idle:
                    await self._pause(idle)
                self.accounts.check_budget()
                self.progressed = False
                for batch in [await self._hand_in(part) for part in cut_work(missing)]:
                    await self._bring_in(*batch)
                idle = 0 if self.progressed else idle + 1
        except Fault as fault:
            self.accounts.last = str(fault)
            raise self._say_nothing_came("the server did not answer") from fault

    def _say_nothing_came(self, found: str) -> EndpointError:
        todo = "run the same command again: what was answered is in the cache, and what was handed in is not handed in again"
        return EndpointError(f"{found}; at last: {self.accounts.last}", where=self.place, todo=todo)

    async def _pause(self, times: int) -> None:
        await asyncio.sleep(min(LONGEST_POLL, POLL * 2 ** min(times, 9)))

    async def _hand_in(self, part: list[Work]) -> tuple[str, str]:
        token = self.write(part)
        with self.file(token).open("rb") as handle:
            content = (handle.name, handle)
            file = await self.server.wait_for(self.server.client.files.create(file=content, purpose="batch"))
        creation = {"input_file_id": file.id, "endpoint": self.path, "completion_window": "24h"}
        for attempt in range(self.endpoint.max_retries + 1):
            try:
                made = self.server.client.batches.create(**creation, metadata={"drot": token})
                return token, self.note_id(token, (await self.server.wait_for(made, 0)).id)
            except Fault as error:
                fault = error
            # Sent again, it could be made, and paid, twice: is it there?
            if number := await self._search(token):
                return token, self.note_id(token, number)
            await self._pause(attempt)
        raise fault

    async def _search(self, token: str) -> str | None:
        page = await self.server.wait_for(self.server.client.batches.list(limit=100))
        for _ in range(PAGES):
            for entry in page.data:
                if (entry.metadata or {}).get("drot") == token:
                    return entry.id
            if not page.has_next_page():
                return None
            page = await self.server.wait_for(page.get_next_page())
        return None

    async def _bring_in(self, token: str, number: str) -> None:
        rows = self.cache.query("SELECT id, key, choices FROM lines WHERE token = ? ORDER BY id", token)
        waiting = {line: (key, json.loads(choices)) for line, key, choices in rows}
        self.accounts.calls += len(waiting)
        lines, status, failures = [], "gone", None
        try:
            state = await self._wait_for(number, len(waiting))
            status, failures = state.status, state.errors
            for file in filter(None, (state.output_file_id, state.error_file_id)):
                lines += (await self.server.wait_for(self.server.client.files.content(file))).content.split(b"\n")
        except Refusal as refusal:
            if refusal.status != 404:
                raise
        with self.cache.transaction():  # all of it or nothing: no line is entered twice
            for line in filter(bytes.strip, lines):
                self._read_line(line, waiting)
            for _ in waiting:
                self.accounts.fail(Fault(f"batch {status}", "a line without a result", billed=False))
            self.forget(token)
        if status == "failed":
            errors = (failures and failures.data) or []
            self.accounts.last = "; ".join(f"{error.code}: {error.message}" for error in errors[:3])
            if all(error.code != QUEUE_FULL for error in errors):
                todo = "correct what it names, or use `transport: direct`"
                raise EndpointError(f"the server refused the batch ({self.accounts.last})", where=self.place, todo=todo)
        if self.refusal:
            raise self.refusal
        self.accounts.check_thoughts(next(iter(self.works.values())).request)

    async def _wait_for(self, number: str, lines: int) -> types.Batch:
        for times in count():
            state = await self.server.wait_for(self.server.client.batches.retrieve(number))
            done = state.request_counts.completed if state.request_counts else 0
            self.accounts.note = f"batch {state.status}, {done} of {lines} requests"
            if state.status in OVER:
                return state
            await self._pause(times)

    def _read_line(self, line: bytes, waiting: dict[str, tuple[str, list[int]]]) -> None:
        try:
            values = json.loads(line)
            key, choices = waiting.pop(values["custom_id"])
        except (ValueError, KeyError, TypeError):
            self.accounts.faults["batch: unreadable line"] += 1
            return
        # The work as it was when it was sent; the request of another run of this cache is in the cache.
        if work := self.works.get(key):
            done = replace(work, missing=list(choices), alone=len(choices) == 1)
        else:
            body = self.cache.query("SELECT body FROM requests WHERE key = ?", key)[0][0]
            done = Work(key, json.loads(body), list(choices), len(choices) == 1)
        sent = done.outgoing()
        try:
            self._read_result(values, done, sent)
        except Declined as no:
            self.accounts.decline(done, sent, no)
        except Fault as fault:
            self.accounts.fail(fault, sent)
        except Refusal as refusal:
            if self.accounts.learn(refusal, done, sent):
                self.progressed = True  # it is known now how to ask
            else:
                self.refusal = self.refusal or refusal
        came = set(choices) - set(done.missing)
        self.progressed |= bool(came)
        if work and work.missing:
            work.missing = [choice for choice in work.missing if choice not in came]
            work.alone |= done.alone and len(choices) > 1
            work.doubted |= done.doubted
            self.accounts.done += not work.missing

    def _read_result(self, values: dict[str, Any], work: Work, sent: dict[str, Any]) -> None:
        response, error = values.get("response") or {}, values.get("error") or {}
        status, body = int(response.get("status_code") or 0), response.get("body") or {}
        if status == 200:
            self.accounts.take(work, sent, body)
        elif status >= 400:
            raise read_status(status, body, self.endpoint, f"line {values['custom_id']}")
        elif (reason := find_content(error)) is not None:
            raise Declined(reason)
        else:
            raise Fault(f"batch: {error.get('code')}", str(error.get("message")), billed=False)

    def file(self, token: str) -> Path:
        """Return where a batch's file lies."""
        return self.cache.path.with_name("batches") / f"{token}.jsonl"

    def write(self, part: list[Work]) -> str:
        """Write a file of requests in the server's words, and write it down; return our mark of it, to find it again there."""
        token = uuid.uuid4().hex
        self.file(token).parent.mkdir(parents=True, exist_ok=True)
        with self.cache.transaction(), self.file(token).open("w", encoding="utf-8", newline="\n") as handle:
            self.cache.query("INSERT INTO batches VALUES (?, ?, NULL)", token, self.place)
            self.cache.put([(work.request, {}) for work in part])
            for number, work in enumerate(part):
                body = self.accounts.phrase(work.outgoing())
                line = {"custom_id": f"{number:06d}", "method": "POST", "url": self.path, "body": body}
                handle.write(json.dumps(line, allow_nan=False) + "\n")
                values = token, line["custom_id"], work.key, json.dumps(work.missing)
                self.cache.query("INSERT INTO lines VALUES (?, ?, ?, ?)", *values)
        return token

    def note_id(self, token: str, number: str) -> str:
        """Write down the server's number of a batch, and return it."""
        self.cache.query("UPDATE batches SET id = ? WHERE token = ?", number, token)
        return number

    def list_open(self) -> list[tuple[str, str | None]]:
        """Return the mark and number of each batch that went to this place and of which nothing was taken in yet."""
        return self.cache.query("SELECT token, id FROM batches WHERE place = ? ORDER BY token", self.place)

    def forget(self, token: str) -> None:
        """Strike a batch off, and remove its file."""
        self.cache.query("DELETE FROM lines WHERE token = ?", token)
        self.cache.query("DELETE FROM batches WHERE token = ?", token)
        self.file(token).unlink(missing_ok=True)


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
