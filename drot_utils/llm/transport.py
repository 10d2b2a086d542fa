"""One connection to a server, through the `openai` package, and where its replies come in."""

import asyncio
import ipaddress
import os
from collections import Counter
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from drot_utils.llm.cache import IGNORED, METERED, UNMETERED, Cache, Entry, Line, enter, read_ignored
from drot_utils.llm.costs import Budget, Prices, bound_tokens, count_prompt, estimate_tokens
from drot_utils.llm.replies import (
    REFUSED,
    Declined,
    Fault,
    Refusal,
    Work,
    describe_request,
    is_broken,
    is_thought_away,
    read_json,
    read_most,
    read_reply,
    read_status,
)
from drot_utils.study.errors import BudgetError, EndpointError
from drot_utils.study.params import Endpoint

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
BACKOFF, LONGEST_BACKOFF = 0.5, 60.0  # seconds before the first repetition, doubled for each further one


def back_off(attempt: int, draw: float) -> float:
    """Return the seconds before repetition `attempt` (from 0): doubled each time, and spread by a `draw` from [0, 1)."""
    return min(LONGEST_BACKOFF, BACKOFF * 2**attempt) * (0.5 + draw / 2)


#: What a response is returned as: its body and its headers.
Content = tuple[bytes, dict[str, str]]
FILE_TIMES = 10  # a file of requests or answers may take as many times as long as one request


class Transport:
    """An open connection; an asynchronous context manager.

    The key is handed to the `openai` package and is nowhere else; where a server repeats it, it is blotted out before the
    response is looked at.

    Parameters
    ----------
    endpoint : Endpoint
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.secret = (read_key(endpoint) or "").encode()

    async def __aenter__(self) -> Self:
        import openai

        self.client = openai.AsyncOpenAI(
            api_key=self.secret.decode() or "none",
            base_url=self.endpoint.base_url,
            max_retries=0,
            timeout=None,
            http_client=_open_client(self.endpoint),
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.client.close()

    async def post(self, path: str, body: dict[str, Any], asked: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Send a JSON body; return the JSON object that comes back, and the headers.

        Raises
        ------
        Fault
            What may pass: see `faults`.
        EndpointError
            What does not.
        """
        import httpx2

        content, headers = await self._call(self.client.post(path, body=body, cast_to=httpx2.Response), asked)
        return read_json(content, headers.get("content-type", "")), headers

    async def get(self, path: str, asked: str) -> dict[str, Any]:
        """Return the JSON object at a path (see `post`)."""
        content, headers = await self.download(path, asked)
        return read_json(content, headers.get("content-type", ""))

    async def download(self, path: str, asked: str, *, times: int = 1) -> Content:
        """Return the bytes at a path, and the headers (see `post`); a large file may take `times` as long as a request."""
        import httpx2

        return await self._call(self.client.get(path, cast_to=httpx2.Response), asked, times)

    async def upload(self, path: Path, asked: str) -> dict[str, Any]:
        """Send a file of batch requests; return what the server says of it (see `post`)."""
        with path.open("rb") as handle:
            creation = self.client.files.with_raw_response.create(file=(path.name, handle), purpose="batch")
            content, headers = await self._call(creation, asked, FILE_TIMES)
        return read_json(content, headers.get("content-type", ""))

    async def _call(self, response: Any, asked: str, times: int = 1) -> Content:
        import openai

        try:
            # The whole exchange has its time: a server that drips a byte now and then is not waited for.
            async with asyncio.timeout(self.endpoint.timeout_s * times):
                received = await response
        except (TimeoutError, openai.APITimeoutError) as error:
            raise Fault("timeout", f"no whole answer in {self.endpoint.timeout_s * times} s") from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            unreachable = type(cause).__name__ in ("ConnectError", "ProxyError")
            kind, said = (
                "no connection" if unreachable else "broken connection",
                (str(cause) or type(cause).__name__) + _say_environment(self.endpoint.base_url, str(cause)),
            )
            raise Fault(kind, said, billed=not unreachable, unreachable=unreachable) from error
        except openai.APIStatusError as error:
            received = error.response
        received = getattr(received, "http_response", received)
        content, headers = self._blot(received.content), dict(received.headers)
        if received.status_code >= 400:
            # Not in the handler above: the package's error repeats what the server says, key and all, and would hang on ours.
            raise read_status(received.status_code, headers, content, self.endpoint, asked)
        return content, headers

    def _blot(self, content: bytes) -> bytes:
        return content.replace(self.secret, b"[key]") if self.secret and self.secret in content else content


def is_loopback(url: str) -> bool:
    """Say whether an address is this machine's own, which no proxy can reach."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def find_proxy(url: str) -> str | None:
    """Return the name of the environment's variable whose proxy requests to an address go through, None without one."""
    place = urlsplit(url)
    if is_loopback(url) or proxy_bypass(place.hostname or ""):
        return None
    kind = next((kind for kind in (place.scheme, "all") if getproxies().get(kind)), None)
    names = [name for name in os.environ if kind and name.lower() == f"{kind}_proxy"]
    return names[0] if names else kind and "the system's proxy"


def _open_client(endpoint: Endpoint) -> Any:
    import httpx2
    import openai

    where = f"{endpoint.base_url}, model {endpoint.model}"
    try:
        certificates = httpx2.create_ssl_context()
    except OSError as error:
        names = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
        names = [name for name in names if not Path(os.environ[name]).exists()] or names
        raise EndpointError(
            f"the certificates that {' or '.join(names) or 'the system'} names cannot be read ({error})",
            where=where,
            todo="correct or unset that environment variable",
        ) from error
    try:
        # A proxy's address may hold a password: it is in no error of ours.
        return openai.DefaultAsyncHttpxClient(verify=certificates, trust_env=not is_loopback(endpoint.base_url))
    except (ValueError, ImportError):
        names = [name for name in sorted(os.environ) if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]
        raise EndpointError(
            f"the proxy that {' or '.join(names)} names cannot be used",
            where=where,
            todo="give it as http://host:port (socks5:// needs the package socksio), unset the variable, or name this server in NO_PROXY",
        ) from None


def _say_environment(url: str, said: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in said and os.environ.get("SSL_CERT_FILE"):
        return "; certificates are those of SSL_CERT_FILE"
    proxy = find_proxy(url)
    return f"; asked through the proxy in {proxy}" if proxy else ""


def read_key(endpoint: Endpoint) -> str | None:
    """Return the key from the environment, None when the server wants none.

    Raises
    ------
    EndpointError
        When the variable is not set, or holds what cannot be a key.
    """
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise EndpointError(
            "there is no key to ask with" if not key else "the key holds characters that no key has",
            where=f"{endpoint.base_url}, model {endpoint.model}",
            todo=f"set the environment variable {endpoint.api_key_env} to the key (`api_key_env: null` for a server that wants "
            "none), or give recorded responses that cover these requests",
        )
    return key


LENGTHS = ("max_tokens", "max_completion_tokens")  # what servers call the most tokens of an answer
FEW = 3  # replies without a word, and none with one, from which a model is seen to think all its tokens away


class Intake:
    """The accounts of one run.

    Parameters
    ----------
    endpoint : Endpoint
    cache : Cache
    prices : Prices
    budget : Budget
    replace : bool
        Answers take the place of those in the cache.
    """

    def __init__(self, endpoint: Endpoint, cache: Cache, prices: Prices, budget: Budget, *, replace: bool) -> None:
        self.endpoint, self.cache, self.prices, self.budget, self.replace = (
            endpoint,
            cache,
            prices,
            budget,
            replace,
        )
        self.calls, self.unmetered, self.faults = 0, 0, Counter[str]()
        self.spent: float | None = 0.0
        self.done = 0  # requests of which nothing is missing any more
        self.note = ""  # what there is to say while nothing seems to happen
        self.thoughts: int | None = 0  # replies that were thought away; None once one was not
        known = read_ignored(cache, endpoint.model)
        self.lengths = sorted(LENGTHS, key=lambda name: f"{name}: refused" in known)

    def phrase(self, sent: dict[str, Any]) -> dict[str, Any]:
        """Return a request in this server's words; the cache knows it by ours."""
        names = {"max_tokens": self.lengths[0], **self.endpoint.names}
        return {names.get(name, name): v for name, v in sent.items() if names.get(name, name) is not None}

    def learn_length(self, refusal: Refusal) -> bool:
        """Take from a refusal how this server calls an answer's length; False when it is about something else."""
        name = refusal.setting
        if name not in LENGTHS or "max_tokens" in self.endpoint.names or self.lengths == [name]:
            return False
        if name in self.lengths:  # else another request has learnt it meanwhile
            self.lengths.remove(name)
            enter(self.cache, Line(self.endpoint.model, self.endpoint.transport, f"{IGNORED}{name}: refused"))
        return True

    def bound(self, sent: dict[str, Any]) -> float | None:
        """Return the most that a request can cost; only looked at when there is a budget.

        Raises
        ------
        BudgetError
            With a budget, when the request does not limit its answer.
        """
        if self.budget.limit is None:
            return None
        prompt, completion = bound_tokens(sent)
        if completion is None:
            raise BudgetError(
                f"a budget is set, but nothing limits the answer to {describe_request(sent)}",
                where="requests.budget_usd",
                todo="give the request `max_tokens` (or `max_completion_tokens`), or set `requests.budget_usd: null`",
            )
        return self.prices.cost(sent["model"], self.endpoint.transport, prompt, completion)

    def weigh(self, sent: dict[str, Any]) -> int:
        """Return about how many tokens a request takes of a limit per minute; 0 where no limit is set."""
        if self.endpoint.tokens_per_minute is None:
            return 0
        return count_prompt(sent, estimate_tokens) + (read_most(sent) or 0) * sent.get("n", 1)

    def send(self, sent: dict[str, Any], *, earlier: bool = False) -> None:
        """Set aside what a request can cost before it goes out (see `Budget.reserve`); or what one can that went `earlier`."""
        self.budget.reserve(self.bound(sent), sent=earlier)
        self.calls += 1

    def take(self, work: Work, sent: dict[str, Any], reply: dict[str, Any]) -> int | None:
        """Keep what a reply holds; return the tokens that it took, None when not counted.

        Raises
        ------
        Fault
            A reply that holds no choices: nothing is kept, and it counts as a fault when given to `fail`.
        """
        entries, ignored = read_reply(work, sent, reply)
        broken = sum(map(is_broken, reply["choices"]))
        self.faults += Counter({"broken choice": broken} if broken else {})
        away = all(map(is_thought_away, entries.values()))
        self.thoughts = self.thoughts + 1 if away and self.thoughts is not None else None
        prompt, completion = (
            [getattr(entry, name) for entry in entries.values()] for name in ("prompt_tokens", "completion_tokens")
        )
        tokens = (sum(prompt), sum(completion)) if None not in [*prompt, *completion] else None
        with self.cache.transaction():
            self.cache.put([(work.request, entries)], replace=self.replace)
            self._enter(sent, METERED if tokens else UNMETERED, tokens)
            for name in ignored:
                self.note_ignored(sent, name)
        cost = self.prices.cost(sent["model"], self.endpoint.transport, *tokens) if tokens else None
        self.budget.settle(self.bound(sent), cost)
        self.spent = None if cost is None or self.spent is None else self.spent + cost
        return sum(tokens) if tokens else None

    def fail(self, sent: dict[str, Any], fault: Fault | None) -> None:
        """Count what went wrong with a request; what may have been billed all the same is entered with its upper bound."""
        if fault:
            self.faults[fault.kind] += 1
        if fault and fault.billed:
            self.unmetered += 1
            self._enter(sent, UNMETERED, None)
            self.budget.settle(self.bound(sent), None)
        else:
            self.budget.settle(self.bound(sent), 0.0)

    def decline(self, work: Work, sent: dict[str, Any], no: Declined) -> None:
        """Keep a server's no to what a request says as the answer to all its choices.

        Who read the prompt may bill it (Azure does): its upper bound counts against the budget.
        """
        prompt = bound_tokens(sent)[0]
        entry = Entry("", REFUSED + no.reason, 0, 0)
        with self.cache.transaction():
            self.cache.put([(work.request, dict.fromkeys(work.missing, entry))], replace=self.replace)
            self._enter(sent, UNMETERED, (prompt, 0))
        self.unmetered += 1
        cost = self.prices.cost(sent["model"], self.endpoint.transport, prompt, 0)
        self.budget.settle(self.bound(sent), cost)
        work.missing, work.doubted = [], False

    def check_thoughts(self, request: dict[str, Any]) -> None:
        """Stop when the model only thinks, and has never come to an end within as many tokens as `request` allows.

        Raises
        ------
        EndpointError
            When the first few answers are empty, and all of them ended because their tokens were used up.
        """
        if (self.thoughts or 0) < FEW:
            return
        ended = self.cache.query(
            "SELECT 1 FROM answers JOIN requests USING (key) WHERE json_extract(body, '$.model') = ? AND "
            "json_extract(body, '$.max_tokens') IS ? AND text != '' AND finish IS NOT 'length' LIMIT 1",
            request["model"],
            read_most(request),
        )
        if ended:
            self.thoughts = None
        else:
            raise EndpointError(
                f"the first {self.thoughts} replies are empty: the model used all of `max_tokens` for thinking",
                where=f"{self.endpoint.base_url}, model {self.endpoint.model}",
                todo="raise `teacher.max_tokens` (a judge's answers have 64 tokens at most), lower the model's reasoning where "
                "the server lets you, or ask a model that does not think first",
            )

    def note_ignored(self, sent: dict[str, Any], setting: str) -> None:
        """Enter that a setting was passed over."""
        enter(self.cache, Line(sent["model"], self.endpoint.transport, IGNORED + setting))

    def _enter(self, sent: dict[str, Any], entry: str, tokens: tuple[int, int] | None) -> None:
        prompt, completion = tokens or bound_tokens(sent)
        enter(self.cache, Line(sent["model"], self.endpoint.transport, entry, 1, prompt, completion or 0))
