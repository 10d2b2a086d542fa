"""One connection to a server, through the `openai` package: what comes back whole is returned, all else is a fault or an error."""

import asyncio
import ipaddress
import os
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from drot_utils.answers import read_json
from drot_utils.errors import EndpointError
from drot_utils.faults import Fault, read_status
from drot_utils.settings import Endpoint

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

    async def post(
        self, path: str, body: dict[str, Any], asked: str
    ) -> tuple[dict[str, Any], dict[str, str]]:
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
        return openai.DefaultAsyncHttpxClient(
            verify=certificates, trust_env=not is_loopback(endpoint.base_url)
        )
    except (ValueError, ImportError):
        names = [
            name for name in sorted(os.environ) if name.lower() in ("http_proxy", "https_proxy", "all_proxy")
        ]
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
