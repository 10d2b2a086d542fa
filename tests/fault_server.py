"""An OpenAI-compatible server on loopback that goes wrong at set rates, counts what it is asked, and stops by itself.

As a context manager in a thread of the tests; as a process of its own: ``python tests/fault_server.py --latency 0.05``, which
prints its port and ends with its standard input or after ``--seconds``.
"""

import argparse
import asyncio
import hashlib
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from drot_utils.study.params import Endpoint, Requests

#: What can go wrong with a request, by name; `rates` of a server gives the share of each.
FAULTS = (
    "429", "429 retry-after", "500", "503", "hang", "drip", "reset", "truncated", "wrong type", "empty choices", "fewer",
    "duplicated", "html", "bad unicode", "broken choice",
)  # fmt: skip
HTML = b"<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass
class Behaviour:
    """How a server behaves.

    Attributes
    ----------
    rates : dict
        Share of the requests that meet each fault.
    latency : float
        Seconds before an answer.
    key : str or None
        The only key it takes; None: it asks for none.
    model : str or None
        The only model it has; None: any.
    n : {"given", "ignored", "refused", "repeated"}
        What becomes of `n`.
    seed : bool
        Whether the text depends on the seed.
    deaf_to : tuple of str
        Settings on which the text does not depend.
    usage : bool
        Whether it counts tokens.
    per_minute : int or None
        Requests that it takes, with headers that say so.
    text : str or None
        What it always answers; None: a text that depends on the whole request.
    quota : int or None
        Requests after which the account is used up.
    refuses : dict
        Codes (or whole errors) with which inputs that hold a text are refused with HTTP 400.
    unknown : tuple of str
        Settings that it refuses by name.
    finish : callable or None
        Given a body and a choice's number: its finish reason, and its text (None: as it would be).
    """

    rates: dict[str, float] = field(default_factory=dict)
    latency: float = 0.0
    key: str | None = None
    model: str | None = None
    n: str = "given"
    seed: bool = True
    deaf_to: tuple[str, ...] = ()
    usage: bool = True
    per_minute: int | None = None
    text: str | None = None
    quota: int | None = None
    refuses: dict[str, str | dict] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    finish: Callable[[dict, int], tuple[str, str | None]] | None = None
    retry_after: str = "0.05"
    batch_polls: int = 1
    batch_lines: dict[str, float] = field(default_factory=dict)  # share of lines: "500", "expired", "missing", "400"
    batch_refusals: list[str] = field(default_factory=list)  # codes with which the first batches fail


USE = Requests(cache="use", prices="data/prices.yaml", budget_usd=None)


def make_endpoint(url: str = "http://127.0.0.1:9/v1", **changes: object) -> Endpoint:
    """Return an endpoint without a key and without limits."""
    values = {
        "kind": "chat", "base_url": url, "model": "m", "api_key_env": None, "concurrency": 8, "requests_per_minute": None,
        "tokens_per_minute": None, "timeout_s": 5, "max_retries": 5, "transport": "direct",
    }  # fmt: skip
    return Endpoint(**{**values, **changes})


def make_questions(count: int, n: int = 1, **changes: object) -> list[dict]:
    """Return chat requests that differ in their text."""
    settings = {"model": "m", "n": n, "temperature": 1.0, "max_tokens": 20, "seed": 5, **changes}
    return [{**settings, "messages": [{"role": "user", "content": f"Question {k}?"}]} for k in range(count)]


def expected_text(body: dict, choice: int, deaf_to: tuple[str, ...] = ()) -> str:
    """Return what a server without faults answers to a request."""
    leave = {"n", *deaf_to}
    kept = json.dumps({k: v for k, v in body.items() if k not in leave}, sort_keys=True)
    digest = hashlib.sha256(f"{kept}/{choice}".encode()).hexdigest()[:16]
    return f" in the case of {digest}, at noon\nExplanation: it is a matter of {digest}."


class FaultServer:
    """The server; a context manager that runs it in a thread on a free port of 127.0.0.1."""

    def __init__(self, luck: int = 0, **behaviour: object) -> None:
        self.behaviour = Behaviour(**behaviour)
        self.random = random.Random(luck)
        self.asked: list[tuple[str, dict]] = []  # paths and bodies
        self.keys: set[str] = set()
        self.met = Counter()  # faults
        self.answered = Counter()  # whole answers that were sent, by request (with its seed)
        self.busy = self.busiest = 0
        self.level, self.at = 1.0, 0.0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}
        self.loop = asyncio.new_event_loop()
        self.started = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FaultServer":
        self.thread.start()
        self.started.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """The API's address."""
        return f"http://127.0.0.1:{self.port}/v1"

    def kill(self) -> None:
        """Stop at once; connections break off."""
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1000))
        self.port = server.sockets[0].getsockname()[1]
        self.started.set()
        self.loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.split("\r\n")
                method, path, _ = first.split(" ")
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                self.busy += 1
                self.busiest = max(self.busy, self.busiest)
                try:
                    if not await self._answer(method, path, headers, content, writer):
                        break
                finally:
                    self.busy -= 1
        writer.transport.abort() if writer.transport and not writer.is_closing() else None

    async def _answer(
        self, method: str, path: str, headers: dict, content: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        self.keys.add(headers.get("authorization", ""))
        if self.behaviour.key and headers.get("authorization") != f"Bearer {self.behaviour.key}":
            said = f"Incorrect API key provided: {headers.get('authorization')}"
            return self._send(writer, 401, _error(said, "invalid_api_key"))
        if path.startswith(("/v1/files", "/v1/batches")):
            return self._send(writer, *self._manage(method, path, headers, content))
        if method != "POST" or path not in ("/v1/chat/completions", "/v1/completions"):
            return self._send(writer, 404, _error(f"Invalid URL ({method} {path})", None))
        body = json.loads(content)
        self.asked.append((path, body))
        if self.behaviour.latency:
            await asyncio.sleep(self.behaviour.latency)
        limited = self._limit()
        if limited and limited.pop("refused", None):
            self.met["limit"] += 1
            return self._send(writer, 429, _error("Rate limit reached", "rate_limit_exceeded"), limited)
        status, reply = self.reply(path, body)
        fault = self._draw(self.behaviour.rates) if status == 200 else None
        if fault in ("fewer", "duplicated") and body.get("n", 1) == 1:
            fault = None  # one choice cannot be fewer
        if fault:
            self.met[fault] += 1
            return await self._go_wrong(fault, body, reply, writer)
        if status == 200:
            self.answered[json.dumps(body, sort_keys=True)] += 1
        return self._send(writer, status, json.dumps(reply).encode(), limited)

    def reply(self, path: str, body: dict) -> tuple[int, dict]:
        """Return the status and the body of an answer without faults."""
        b = self.behaviour
        if b.quota is not None and len(self.asked) > b.quota:
            return 429, json.loads(_error("You exceeded your current quota", "insufficient_quota"))
        if b.model and body["model"] != b.model:
            return 404, json.loads(_error(f"The model `{body['model']}` does not exist", "model_not_found"))
        for text, error in b.refuses.items():
            if text in json.dumps(body):
                error = error if isinstance(error, dict) else {"code": error, "param": None, "type": None}
                return 400, {"error": {"message": "This was refused", **error}}
        for name in b.unknown:
            if name in body:
                said = f"Unsupported parameter: '{name}' is not supported with this model."
                said += " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
                error = {"param": name, "code": "unsupported_parameter", "type": "invalid_request_error"}
                return 400, {"error": {"message": said, **error}}
        n = body.get("n", 1)
        if n > 1 and b.n == "refused":
            return 400, json.loads(_error("Only one completion choice is allowed", "invalid_request_error"))
        n = 1 if b.n == "ignored" else n
        deaf = b.deaf_to if b.seed else (*b.deaf_to, "seed")
        texts = [b.text or expected_text(body, 0 if b.n == "repeated" else k, deaf) for k in range(n)]
        chat = "chat" in path
        choices = [
            {
                "index": k,
                "finish_reason": "stop",
                **({"message": {"role": "assistant", "content": t}} if chat else {"text": t}),
            }
            for k, t in enumerate(texts)
        ]
        for choice in choices if b.finish else []:
            choice["finish_reason"], text = b.finish(body, choice["index"])
            choice |= {"error": {"code": 502, "message": "gone"}} if choice["finish_reason"] == "error" else {}
            if text is not None:
                choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        reply = {"id": "x", "object": "x", "created": 0, "model": f"{body['model']}-snapshot", "choices": choices}
        if b.usage:
            reply["usage"] = {"prompt_tokens": 10, "completion_tokens": 7 * n, "total_tokens": 10 + 7 * n}
        return 200, reply

    def _draw(self, rates: dict[str, float]) -> str | None:
        drawn = self.random.random()
        for name, rate in rates.items():
            if drawn < rate:
                return name
            drawn -= rate
        return None

    def _limit(self) -> dict[str, str]:
        if self.behaviour.per_minute is None:
            return {}
        now, rate = self.loop.time(), self.behaviour.per_minute / 60
        size = max(1.0, rate)
        self.level = min(size, self.level + (now - self.at) * rate) if self.at else size
        self.at = now
        headers = {"x-ratelimit-limit-requests": f"{size:.0f}"}
        if self.level < 1:
            headers["refused"] = "yes"
        else:
            self.level -= 1
        headers["x-ratelimit-remaining-requests"] = str(int(self.level))
        headers["x-ratelimit-reset-requests"] = f"{int((size - self.level) / rate * 1000)}ms"
        return headers

    async def _go_wrong(self, fault: str, body: dict, reply: dict, writer: asyncio.StreamWriter) -> bool:
        whole = json.dumps(reply).encode()
        if fault in ("429", "429 retry-after"):
            headers = {"retry-after": self.behaviour.retry_after} if fault != "429" else {}
            return self._send(writer, 429, _error("Rate limit reached", "rate_limit_exceeded"), headers)
        if fault in ("500", "503"):
            return self._send(writer, int(fault), _error("The server had an error", "server_error"))
        if fault == "html":
            return self._send(writer, 502, HTML, {"content-type": "text/html"})
        if fault == "wrong type":
            return self._send(writer, 200, HTML, {"content-type": "text/html"})
        if fault == "truncated":
            return self._send(writer, 200, whole[: len(whole) // 2])
        if fault == "bad unicode":
            return self._send(writer, 200, whole[:-20] + b"\xff\xfe" + whole[-20:])
        if fault == "reset":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{")
            writer.transport.abort()
            return False
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "drip":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n")
            while not writer.is_closing():
                writer.write(b" ")
                await asyncio.sleep(0.1)
            return False
        if fault == "empty choices":
            return self._send(writer, 200, json.dumps({**reply, "choices": []}).encode())
        if fault == "broken choice":
            broken = {"finish_reason": "error", "error": {"code": 502, "message": "gone"}}
            return self._send(
                writer, 200, json.dumps({**reply, "choices": [c | broken for c in reply["choices"]]}).encode()
            )
        # The last two are whole answers, if not what was asked.
        self.answered[json.dumps(body, sort_keys=True)] += 1
        if fault == "fewer":
            reply["choices"] = reply["choices"][:1]
        elif fault == "duplicated":
            reply["choices"] = [reply["choices"][0]] * len(reply["choices"])
        return self._send(writer, 200, json.dumps(reply).encode())

    def _manage(self, method: str, path: str, headers: dict, content: bytes) -> tuple[int, bytes]:
        path, _, _ = path.removeprefix("/v1/").partition("?")
        kind, *rest = path.split("/")
        if kind == "files" and method == "POST":
            boundary = headers["content-type"].partition("boundary=")[2].encode()
            part = next(p for p in content.split(b"--" + boundary) if b'filename="' in p)
            number = f"file-{len(self.files)}"
            self.files[number] = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            return 200, json.dumps({"id": number, "object": "file", "bytes": len(content)}).encode()
        if kind == "files":
            return (200, self.files[rest[0]]) if rest[0] in self.files else (404, _error("No such file", None))
        if method == "POST":
            order = json.loads(content)
            number = f"batch-{len(self.batches)}"
            self.batches[number] = {"id": number, "status": "in_progress", "polls": 0, **order}
            return 200, json.dumps(self.batches[number]).encode()
        if not rest:
            return 200, json.dumps({"data": list(self.batches.values()), "has_more": False}).encode()
        if rest[0] not in self.batches:
            return 404, _error("No such batch", None)
        batch = self.batches[rest[0]]
        batch["polls"] += 1
        if batch["status"] == "in_progress" and batch["polls"] > self.behaviour.batch_polls:
            self._work_off(batch)
        return 200, json.dumps(batch).encode()

    def _work_off(self, batch: dict) -> None:
        if self.behaviour.batch_refusals:
            code = self.behaviour.batch_refusals.pop(0)
            batch |= {"status": "failed", "errors": {"data": [{"code": code, "message": "not today"}]}}
            return
        output, errors, status = [], [], "completed"
        for line in self.files[batch["input_file_id"]].splitlines():
            order = json.loads(line)
            self.asked.append((order["url"], order["body"]))
            fault = self._draw(self.behaviour.batch_lines)
            self.met[fault] += 1
            if fault in ("500", "400"):
                reply = {"status_code": int(fault), "body": json.loads(_error("no", "invalid"))}
                errors.append({"custom_id": order["custom_id"], "response": reply, "error": None})
            elif fault == "expired":
                status = "expired"
                error = {"code": "batch_expired", "message": "This request could not be executed in time."}
                errors.append({"custom_id": order["custom_id"], "response": None, "error": error})
            elif fault != "missing":
                code, body = self.reply(order["url"], order["body"])
                self.answered[json.dumps(order["body"], sort_keys=True)] += code == 200
                line = {"custom_id": order["custom_id"], "response": {"status_code": code, "body": body}, "error": None}
                output.append(line)
        self.random.shuffle(output)
        for name, lines in (("output_file_id", output), ("error_file_id", errors)):
            if lines:
                batch[name] = f"file-{len(self.files)}"
                self.files[batch[name]] = "\n".join(map(json.dumps, lines)).encode()
        batch["status"] = status

    def _send(self, writer: asyncio.StreamWriter, status: int, body: bytes, headers: dict | None = None) -> bool:
        values = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in values.items())
        writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body)
        return True


def _error(message: str, code: str | None) -> bytes:
    return json.dumps({"error": {"message": message, "type": "some_error", "param": None, "code": code}}).encode()


def main() -> None:
    """Run as a process until standard input ends, or for so many seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    with FaultServer(latency=options.latency) as server:
        print(server.port, flush=True)
        timer = threading.Timer(options.seconds, sys.stdin.close)
        timer.daemon = True
        timer.start()
        with suppress(ValueError, OSError):
            sys.stdin.read()


if __name__ == "__main__":
    main()
