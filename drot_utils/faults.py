"""What goes wrong between us and a server: what passes when one asks again, and what one has to be told."""

import json
from collections.abc import Mapping
from typing import Any

from drot_utils.errors import EndpointError
from drot_utils.limits import LONGEST_WAIT, read_retry_after
from drot_utils.settings import Endpoint

#: Statuses that pass by themselves; every other one from 400 on stops the run.
TRANSIENT = (408, 409, 429)
QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")

_TODO = {
    400: "mend the setting that the server names; what it does not know must not be asked of it",
    401: "check the key in the environment variable {key}",
    402: "the account has no credit left: add some, then run the same command again",
    403: "check what the key in {key} may do, and whether the account may use this model",
    404: "check `model` (the server's list of models) and `base_url` (most end in /v1)",
}


class Refusal(EndpointError):
    """A server's final no; `status` is its HTTP status."""

    def __init__(self, found: str, *, status: int, where: str, todo: str) -> None:
        super().__init__(found, where=where, todo=todo)
        self.status = status


class Fault(Exception):
    """Something that may pass: the request is worth asking again.

    Parameters
    ----------
    kind : str
        A few words, under which it is counted.
    detail : str
        What came back.
    wait : float, optional
        Seconds that the server asked to be left alone.
    headers : mapping
        Of the response, if there was one.
    overload : bool
        Whether the server refused for load.
    billed : bool
        Whether it may have been billed: an answer that was lost or spoilt on its way.
    unreachable : bool
        Whether nobody was there at all.
    """

    def __init__(
        self,
        kind: str,
        detail: str = "",
        *,
        wait: float | None = None,
        headers: Mapping[str, str] | None = None,
        overload: bool = False,
        billed: bool = True,
        unreachable: bool = False,
    ) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail, self.wait, self.headers = kind, detail, wait, headers or {}
        self.overload, self.billed, self.unreachable = overload, billed, unreachable

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


def read_status(
    status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint, asked: str
) -> Fault:
    """Return the fault of an error status (400 and above).

    Parameters
    ----------
    asked : str
        What was asked, in a few words, for the error.

    Raises
    ------
    Refusal, EndpointError
        When asking again is no use: what was asked, what came back and what to do.
    """
    said, codes = read_error(body)
    quota = any(code in QUOTA for code in codes)
    if (status in TRANSIENT or status >= 500) and not quota:
        wait = read_retry_after(headers)
        if wait is not None and wait > LONGEST_WAIT:
            raise EndpointError(
                f"the server asks not to come back for {wait / 3600:.1f} hours ({said})",
                where=f"{endpoint.base_url}, model {endpoint.model}",
                todo="run the same command then: what was answered is in the cache",
            )
        overload = status in (429, 503)
        return Fault(f"HTTP {status}", said, wait=wait, headers=headers, overload=overload, billed=False)
    todo = _TODO[402] if quota else _TODO.get(status, _TODO[400])
    if status == 401 and endpoint.api_key_env is None:
        todo = "the server wants a key: name the environment variable that holds it as `api_key_env`"
    raise Refusal(
        f"the server refused with HTTP {status} ({said}) {asked}",
        status=status,
        where=f"{endpoint.base_url}, model {endpoint.model}",
        todo=todo.format(key=endpoint.api_key_env)
        + "; what was answered so far is in the cache and is not asked again",
    )


def read_error(body: bytes) -> tuple[str, list[str]]:
    """Return what an error response says in a few words, and its codes."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        values = None
    error = values.get("error", values) if isinstance(values, dict) else None
    if isinstance(error, dict):
        codes = [str(error[name]) for name in ("code", "type") if error.get(name)]
        message = error.get("message") or error.get("detail") or json.dumps(error)
        return shorten(str(message)), codes
    if isinstance(error, str):
        return shorten(error), []
    return shorten(body.decode("utf-8", "replace")) or "an empty response", []


def describe_request(request: Mapping[str, Any]) -> str:
    """Return the end of a request's text, where what sets it apart from others mostly stands."""
    messages = request.get("messages")
    content = messages[-1].get("content") if messages else request.get("prompt")
    text = " ".join(str(content).split())
    return "the request " + repr(text if len(text) <= 100 else f"...{text[-97:]}")


def shorten(text: str, length: int = 200) -> str:
    """Return a text on one line, cut to `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."
