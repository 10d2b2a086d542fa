"""The connection to a server: the `openai` client, which asks again what may pass, and what it is to take for that."""

import asyncio
import json
import os
import re
import time
from collections.abc import Awaitable
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
import openai

from drot_utils.llm.accounts import Accounts
from drot_utils.llm.faults import Fault, read_delay, read_status
from drot_utils.llm.replies import describe_request, list_choices, read_json
from drot_utils.study.errors import EndpointError
from drot_utils.study.params import Endpoint

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
#: Seconds for which a server that is overloaded is asked again at least, however few tries `max_retries` allows (0: none).
PATIENCE = 120.0
PAUSES = ("retry-after-ms", "retry-after")  # headers with which a server asks for a pause, as the client reads them
FILE_TIMES = 10  # a file of requests or answers may take as many times as long as one request
PROXIES, CERTIFICATES = ("http_proxy", "https_proxy", "all_proxy"), ("ssl_cert_file", "ssl_cert_dir")
NO_LIMIT = 10**6  # tries that the client is given: how many it gets of them is decided here


class Server:
    """A connection, open until its `client` is closed. The accounts count what is sent, and what goes wrong.

    The key is handed to the `openai` package and is nowhere else; where a server repeats it, it is blotted out before the
    response is looked at.
    """

    def __init__(self, accounts: Accounts) -> None:
        self.endpoint, self.accounts = accounts.endpoint, accounts
        self.secret = (read_key(self.endpoint) or "").encode()
        self.answered = False  # a request; until then, a server that is not there is asked twice only
        self.closing = False  # set when nothing is to be tried again
        self.under_way: set[asyncio.Task] = set()  # who wait for a response, not for their next try
        self.calls: dict[asyncio.Task, tuple[float, int]] = {}  # when each began, and how many repetitions it may take
        self.client = openai.AsyncOpenAI(
            api_key=self.secret.decode() or "none",
            base_url=self.endpoint.base_url,
            max_retries=NO_LIMIT,
            timeout=None,
            http_client=_open_http(self),
        )

    async def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request for answers as often as it takes; return the JSON object that comes back (errors: `wait_for`)."""
        path = PATHS[self.endpoint.kind]
        return json.loads((await self.wait_for(self.client.post(path, body=body, cast_to=httpx2.Response))).content)

    async def wait_for(self, call: Awaitable[Any], most: int | None = None) -> Any:
        """Return what a call of `client` returns, sent again `most` times, or as often as the endpoint's parameters allow.

        A `Fault` when all tries are used up; what else `faults.read_status` raises is not tried again.
        """
        self.calls[asyncio.current_task()] = time.monotonic(), self.endpoint.max_retries if most is None else most
        try:
            return await call
        except openai.APIStatusError as error:  # the client does not wait for more than two minutes
            fault = read_status(error.status_code, error.response.content, self.endpoint, "")
            pause = [f"{name}: {value}" for name in PAUSES if (value := error.response.headers.get(name))]
            if not pause:
                raise fault from error
            found = f"the server is not to be asked again yet ({pause[0]}; {fault})"
            todo = "run the same command after it: what was answered is in the cache"
            raise EndpointError(found, where=self.endpoint.where, todo=todo) from error

    async def try_once(self, request: httpx2.Request, send: Any) -> httpx2.Response:
        """Send a request: one try of those that the client makes.

        The client tries again after an error status that is returned, and after a `RequestError`; not after a `Fault`.
        """
        task, retries = asyncio.current_task(), int(request.headers.get("x-stainless-retry-count", 0))
        asks = request.url.path.endswith(PATHS["completions"])
        body = json.loads(request.content) if asks else None
        self.accounts.calls += asks
        self.under_way.add(task)
        response = None
        try:
            response = await self._exchange(request, send)
            self._check(response, request, body)
            self.answered |= asks
            return response
        except asyncio.CancelledError:
            if asks:
                self.accounts.fail(Fault("stopped"), body)
            raise
        except Fault as error:
            fault = error
        finally:
            self.under_way.discard(task)
        self.accounts.fail(fault, body)
        began, most = self.calls[task]
        most = min(1, most) if fault.unreachable and not self.answered else most
        patient = fault.overload and most and time.monotonic() - began < PATIENCE
        if self.closing or not (patient or retries < most):
            raise fault
        if response is None or response.status_code < 400:
            raise httpx2.DecodingError(str(fault), request=request)
        if pause := response.headers.get("retry-after"):
            self.accounts.note = f"the server asks for a pause: {pause} s"
        return response

    async def _exchange(self, request: httpx2.Request, send: Any) -> httpx2.Response:
        seconds = self.endpoint.timeout_s * (FILE_TIMES if "/files" in request.url.path else 1)
        try:
            # The whole exchange has its time: a server that drips a byte now and then is not waited for.
            async with asyncio.timeout(seconds):
                response = await send(request)
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise Fault("timeout", f"no whole answer in {seconds} s") from error
        except (httpx2.RequestError, OSError, anyio.EndOfStream) as error:
            said = str(error) or type(error).__name__
            names = CERTIFICATES if "CERTIFICATE_VERIFY_FAILED" in said else PROXIES
            if not is_loopback(self.endpoint.base_url) and (found := _list_set(*names)):
                said += f"; the environment sets {found}"
            if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
                raise Fault("no connection", said, billed=False, unreachable=True) from error
            raise Fault("broken connection", said) from error
        if self.secret and self.secret in response.content:
            headers = {name: response.headers[name] for name in (*PAUSES, "content-type") if name in response.headers}
            content = response.content.replace(self.secret, b"[key]")
            response = httpx2.Response(response.status_code, headers=headers, content=content, request=request)
        return response

    def _check(self, response: httpx2.Response, request: httpx2.Request, body: dict[str, Any] | None) -> None:
        if response.status_code >= 400:
            asked = describe_request(body) if body else f"{request.method} {request.url.path}"
            fault = read_status(response.status_code, response.content, self.endpoint, asked)
            # A delay that only the body names goes where the client looks for one.
            named = any(name in response.headers for name in PAUSES)
            if not named and (delay := read_delay(response.content)) is not None:
                response.headers["retry-after"] = f"{delay:g}"
            raise fault
        if not request.url.path.endswith("/content"):
            reply = read_json(response.content, response.headers.get("content-type", ""))
            if body:
                list_choices(reply)


def _open_http(server: Server) -> httpx2.AsyncClient:
    class Http(openai.DefaultAsyncHttpxClient):
        async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            return await server.try_once(request, lambda again: super(Http, self).send(again, **options))

    try:
        certificates = httpx2.create_ssl_context()
    except OSError as error:
        found = f"the certificates cannot be read ({error}; set: {_list_set(*CERTIFICATES) or 'nothing'})"
        todo = "correct or unset the environment variable"
        raise EndpointError(found, where=server.endpoint.where, todo=todo) from error
    try:
        return Http(verify=certificates, trust_env=not is_loopback(server.endpoint.base_url))
    except (ValueError, ImportError):  # `from None`: a proxy's address may hold a password
        found = f"the proxy cannot be used that stands in {_list_set(*PROXIES)}"
        todo = "give it as http://host:port (socks5:// needs the package socksio), unset it, or name this server in NO_PROXY"
        raise EndpointError(found, where=server.endpoint.where, todo=todo) from None


def _list_set(*names: str) -> str:
    return " and ".join(name for name in sorted(os.environ) if name.lower() in names and os.environ[name])


def is_loopback(url: str) -> bool:
    """Say whether an address is this machine's own, which no proxy can reach."""
    host = urlsplit(url).hostname or ""
    return bool(re.fullmatch(r"(?:.*\.)?localhost|127\.[\d.]+|0\.0\.0\.0|::1?", host))


def read_key(endpoint: Endpoint, why: str = "") -> str | None:
    """Return the key from the environment, None when the server wants none; an `EndpointError` that says `why` without one."""
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if key and key.isascii() and key.isprintable():
        return key
    found = "the key holds characters that no key has" if key else "there is no key to ask with"
    todo = f"set the environment variable {endpoint.api_key_env} to the key (`api_key_env: null` for a server that wants none), "
    todo += "or give recorded responses that cover these requests"
    raise EndpointError(found + why, where=endpoint.where, todo=todo)
