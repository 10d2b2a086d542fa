"""What a server's errors mean: something that may pass, a no to one input, or a no for good."""

import json
import re
from dataclasses import dataclass
from typing import Any, get_args

from drot_utils.study.errors import EndpointError
from drot_utils.study.params import Endpoint, Setting, Teacher

#: Statuses that pass by themselves, as do those from 500 on; every other one from 400 on stops the run.
TRANSIENT = (408, 409, 429)
OVERLOAD = (429, 503)
QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")

#: Codes of a no to what one request says, not to how it is asked; and what those write who pass no code on.
CONTENT = (
    "content_filter", "content_policy_violation", "invalid_prompt", "responsibleaipolicyviolation", "data_inspection_failed",
    "flagged_input",
)  # fmt: skip
_CONTENT = re.compile(r"(?i)content ?(?:management )?policy|flagged as potentially violating|our safety system")
#: Settings that a server may not know, and how it says so. A no to `n` is seen otherwise: `n` is too short a word to be found.
_SETTING = re.compile(rf"\b(?:{'|'.join({'max_completion_tokens', *get_args(Setting)} - {'n'})})\b")
_UNSUPPORTED = re.compile(
    r"(?i)unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra[_ ](?:forbidden|inputs|fields)|not permitted"
)
_TODO = {
    400: "correct the setting that the server names; what it does not know must not be asked of it",
    401: "check the key in the environment variable {key}",
    402: "the account has no credit left: add some, then run the same command again",
    403: "check what the key in {key} may do, and whether the account may use this model",
    404: "check `model` (the server's list of models) and `base_url` (most end in /v1)",
}


@dataclass(eq=False)
class Fault(Exception):
    """Something that may pass: the request is worth asking again."""

    kind: str  # a few words, under which it is counted
    detail: str = ""  # what came back
    overload: bool = False  # the server refused for load
    billed: bool = True  # it may have been billed, as an answer was lost or spoilt on its way
    unreachable: bool = False  # nobody was there at all

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class Declined(Exception):
    """A server's no to what one request says, with its code: that one has no answer, the others may have."""


class Refusal(EndpointError):
    """A server's final no; `status` is its HTTP status, `setting` the one it does not take, if it names one."""

    def __init__(self, found: str, *, status: int, setting: str | None = None, where: str = "", todo: str = "") -> None:
        super().__init__(found, where=where, todo=todo)
        self.status, self.setting = status, setting


def read_status(status: int, body: Any, endpoint: Endpoint, asked: str) -> Fault:
    """Return the fault of an error status (400 and above), with a body as `open_error` takes it.

    `Declined` when this request is refused for its content; a `Refusal` when asking again is no use: what was `asked`, in
    these words, what came back and what to do.
    """
    error, said = open_error(body), say_error(body)
    if status in (400, 403, 422) and (code := find_content(error, words=status != 403)):
        raise Declined(code)
    quota = error.get("code") in QUOTA or error.get("type") in QUOTA
    if (status in TRANSIENT or status >= 500) and not quota:
        return Fault(f"HTTP {status}", said, overload=status in OVERLOAD, billed=False)
    todo = _TODO[402] if quota else _TODO.get(status, _TODO[400])
    if status == 401 and endpoint.api_key_env is None:
        todo = "the server wants a key: name the environment variable that holds it as `api_key_env`"
    if setting := find_setting(error) if status in (400, 422) else None:
        key = setting.replace("completion_", "")
        todo = f"write `names: {{{key}: null}}` into this endpoint's parameters, so that `{key}` is not sent"
        todo += f" (for the teacher, set `teacher.{key}` to null)" if key in Teacher.model_fields else ""
    todo = todo.replace("{key}", str(endpoint.api_key_env))
    todo += "; what was answered so far is in the cache and is not asked again"
    found = f"the server refused with HTTP {status} ({said}) {asked}"
    raise Refusal(found, status=status, setting=setting, where=endpoint.where, todo=todo)


def open_error(body: Any) -> dict[str, Any]:
    """Return the error in a body (bytes, or what was read of them), whatever its form; mostly with `message` and `code`."""
    if isinstance(body, bytes):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            return {"message": body.decode("utf-8", "replace") or "an empty response"}
    if isinstance(body, list) and body:  # Google's
        body = body[0]
    error = body.get("error") or body if isinstance(body, dict) else body
    return error if isinstance(error, dict) else {"message": str(error)}


def say_error(body: Any) -> str:
    """Return what an error's body (see `open_error`) says, on one line of 200 characters at most."""
    error = open_error(body)
    text = " ".join(str(error.get("message") or error.get("detail") or json.dumps(error)).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def find_content(error: dict[str, Any], *, words: bool = True) -> str | None:
    """Return the code with which an error refuses an input for its content, None for any other error.

    Where it has no such code, its `words` count.
    """
    inner = [error.get(name) for name in ("innererror", "inner_error")]  # Azure's
    codes = [error.get("code"), error.get("type"), *(i.get("code") for i in inner if isinstance(i, dict))]
    codes += ["flagged_input"] if "flagged_input" in str(error.get("metadata")) else []  # OpenRouter's
    said = words and _CONTENT.search(str(error.get("message")))
    return next((str(code) for code in codes if str(code).lower() in CONTENT), "content policy" if said else None)


def find_setting(error: dict[str, Any]) -> str | None:
    """Return the setting that a server does not take at all, or not with this value; None when it names none."""
    texts = str(error.get("param")), str(error.get("message") or error.get("detail") or error)
    found = filter(None, map(_SETTING.search, texts)) if _UNSUPPORTED.search(json.dumps(error)) else ()
    return next((match[0] for match in found), None)


_SECONDS = {"ms": 0.001, "milli": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: A duration as servers write it: "24s", "1m2.5s", "24 seconds", "2h0m"; where one stands as a value, and in an error's words.
_NUMBER = r"\d+(?:\.\d+)?"
_AMOUNT = rf"({_NUMBER})\s?(ms|milli|[smhd])[a-z]*"
_FIELD = r'"retry_?(?:delay|after(?:_?seconds)?)"\s*:\s*(?:\{\s*"seconds"\s*:\s*)?'
_DELAYS = [
    re.compile(rf'{_FIELD}"?((?:{_AMOUNT})+|{_NUMBER})"?\s*[,}}]', re.IGNORECASE),
    re.compile(rf"(?:try again|retry|wait)\D{{0,30}}?((?:{_AMOUNT}\s?)+)", re.IGNORECASE),
]


def read_delay(body: bytes) -> float | None:
    """Return the seconds after which an error's body says to come back: a value such as Google's ``retryDelay``, or in words."""
    text = body.decode("utf-8", "replace")
    said = next(filter(None, (pattern.search(text) for pattern in _DELAYS)), None)
    if said is None:
        return None
    amounts = re.findall(_AMOUNT, said[1].lower())
    return sum(float(number) * _SECONDS[unit] for number, unit in amounts) if amounts else float(said[1])
