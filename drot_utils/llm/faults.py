"""What a server's errors mean: something that may pass, a no to one input, or a no for good."""

import json
import re
from typing import Any

from drot_utils.study.errors import EndpointError
from drot_utils.study.params import Endpoint

#: Statuses that pass by themselves, as do those from 500 on; every other one from 400 on stops the run.
TRANSIENT = (408, 409, 429)
OVERLOAD = (429, 503)
QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")

#: Codes of a no to what one request says, not to how it is asked; and what those write who pass no code on.
CONTENT = (
    "content_filter", "content_policy_violation", "invalid_prompt", "responsibleaipolicyviolation", "data_inspection_failed",
    "flagged_input",
)  # fmt: skip
_CONTENT = re.compile(
    r"content (?:management )?policy|ContentPolicyViolation|flagged as potentially violating|our safety system",
    re.IGNORECASE,
)
#: Settings that a server may not know, and how it says so.
_SETTINGS = (
    "max_completion_tokens", "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed",
    "response_format",
)  # fmt: skip
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra[_ ](?:forbidden|inputs|fields)|not permitted",
    re.IGNORECASE,
)
_KEYS = _SETTINGS[1:6]  # those that are keys of the section `teacher`

_TODO = {
    400: "correct the setting that the server names; what it does not know must not be asked of it",
    401: "check the key in the environment variable {key}",
    402: "the account has no credit left: add some, then run the same command again",
    403: "check what the key in {key} may do, and whether the account may use this model",
    404: "check `model` (the server's list of models) and `base_url` (most end in /v1)",
}


class Fault(Exception):
    """Something that may pass: the request is worth asking again.

    `kind`: a few words, under which it is counted; `detail`: what came back; `overload`: the server refused for load; `billed`: it
    may have been billed, as an answer was lost or spoilt on its way; `unreachable`: nobody was there at all.
    """

    def __init__(
        self, kind: str, detail: str = "", *, overload: bool = False, billed: bool = True, unreachable: bool = False
    ) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail
        self.overload, self.billed, self.unreachable = overload, billed, unreachable

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class Declined(Exception):
    """A server's no to what one request says: that one has no answer, the others may have; `reason` is the server's code."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(reason, said)
        self.reason = reason


class Refusal(EndpointError):
    """A server's final no; `status` is its HTTP status, `setting` the one it does not take, if it names one."""

    def __init__(self, found: str, *, status: int, where: str, todo: str, setting: str | None = None) -> None:
        super().__init__(found, where=where, todo=todo)
        self.status, self.setting = status, setting


def read_status(status: int, body: bytes, endpoint: Endpoint, asked: str) -> Fault:
    """Return the fault of an error status (400 and above).

    Parameters
    ----------
    asked : str
        What was asked, in a few words, for the error.

    Raises
    ------
    Declined
        When this request is refused for its content.
    Refusal
        When asking again is no use: what was asked, what came back and what to do.
    """
    said, codes = read_error(body)
    if status in (400, 403, 422) and (reason := find_content(body, words=status != 403)):
        raise Declined(reason, said)
    quota = any(code in QUOTA for code in codes)
    if (status in TRANSIENT or status >= 500) and not quota:
        return Fault(f"HTTP {status}", said, overload=status in OVERLOAD, billed=False)
    todo = _TODO[402] if quota else _TODO.get(status, _TODO[400])
    if status == 401 and endpoint.api_key_env is None:
        todo = "the server wants a key: name the environment variable that holds it as `api_key_env`"
    setting = find_setting(body) if status in (400, 422) else None
    if setting:
        key = setting.replace("completion_", "")
        todo = f"write `names: {{{key}: null}}` into this endpoint's parameters, so that `{key}` is not sent"
        todo += f" (for the teacher, set `teacher.{key}` to null)" if key in _KEYS else ""
    raise Refusal(
        f"the server refused with HTTP {status} ({said}) {asked}",
        status=status,
        where=f"{endpoint.base_url}, model {endpoint.model}",
        todo=todo.replace("{key}", str(endpoint.api_key_env))
        + "; what was answered so far is in the cache and is not asked again",
        setting=setting,
    )


def find_content(body: bytes, *, words: bool = True) -> str | None:
    """Return the code with which an error refuses an input for its content, None for any other error.

    Where it has no such code, its `words` count.
    """
    error = _open_error(body)
    if not isinstance(error, dict):
        return None
    found = [error.get("code"), error.get("type")]
    for name in ("innererror", "inner_error"):  # Azure's
        found += [error[name].get("code")] if isinstance(error.get(name), dict) else []
    found += ["flagged_input" in (error.get("metadata") or {}) and "flagged_input"]  # OpenRouter's
    codes = [str(code) for code in found if str(code).lower() in CONTENT]
    if not codes and words and _CONTENT.search(str(error.get("message"))):
        codes = ["content policy"]
    return codes[0] if codes else None


def find_setting(body: bytes) -> str | None:
    """Return the setting that a server does not take at all, or not with this value; None when it names none."""
    error = _open_error(body)
    if not isinstance(error, dict) or not _UNSUPPORTED.search(json.dumps(error)):
        return None
    texts = [str(error.get("param")), str(error.get("message") or error.get("detail") or error)]
    found = [re.search(rf"\b(?:{'|'.join(_SETTINGS)})\b", text) for text in texts]
    return next((match[0] for match in found if match), None)


def read_error(body: bytes) -> tuple[str, list[str]]:
    """Return what an error response says in a few words, and its codes."""
    error = _open_error(body)
    if isinstance(error, dict):
        codes = [str(error[name]) for name in ("code", "type") if error.get(name)]
        return shorten(str(error.get("message") or error.get("detail") or json.dumps(error))), codes
    if isinstance(error, str):
        return shorten(error), []
    return shorten(body.decode("utf-8", "replace")) or "an empty response", []


def _open_error(body: bytes) -> Any:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(values, list) and values:  # Google's
        values = values[0]
    return values.get("error", values) if isinstance(values, dict) else None


def shorten(text: str, length: int = 200) -> str:
    """Return a text on one line, cut to `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = r"\d+(?:\.\d+)?"
#: A duration as servers write it: "24s", "1m2.5s", "24 seconds", "2h0m"; and where one stands in an error's words.
_AMOUNT = rf"({_NUMBER})\s?(ms|milli|[smhd])[a-z]*"
_DELAY = re.compile(rf"(?:try again|retry|wait)\D{{0,30}}?((?:{_AMOUNT}\s?)+)", re.IGNORECASE)
_FIELDS = ("retrydelay", "retryafter", "retryafterseconds")  # Google's and others', without underscores


def read_delay(body: bytes) -> float | None:
    """Return the seconds after which an error's body says to come back: a value such as Google's ``retryDelay``, or in words."""
    try:
        open_values = [json.loads(body)]
    except (ValueError, RecursionError):
        open_values = []
    while open_values:
        value = open_values.pop()
        for name, inner in value.items() if isinstance(value, dict) else ():
            if name.lower().replace("_", "") in _FIELDS:
                inner = str(inner.get("seconds") if isinstance(inner, dict) else inner)
                if re.fullmatch(rf"{_NUMBER}|(?:{_AMOUNT})+", inner):
                    return float(inner) if inner[-1].isdigit() else _add_up(inner)
        if isinstance(value, dict | list):
            open_values += value.values() if isinstance(value, dict) else value
    said = _DELAY.search(body.decode("utf-8", "replace"))
    return _add_up(said[1]) if said else None


def _add_up(amounts: str) -> float:
    found = re.findall(_AMOUNT, amounts.lower())
    return sum(float(number) * _SECONDS["ms" if unit == "milli" else unit] for number, unit in found)
