"""What is asked of a server for the choices that are missing, how its reply is read, and what its refusals mean."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from drot_utils.data.parsing import unwrap
from drot_utils.llm.cache import Cache, Entry
from drot_utils.study.errors import EndpointError
from drot_utils.study.params import Endpoint

#: Statuses that pass by themselves; every other one from 400 on stops the run.
TRANSIENT = (408, 409, 429)
QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
#: Seconds for which a server that is overloaded is asked again at least, however few tries `max_retries` allows (0: none).
PATIENCE = 120.0

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
    400: "mend the setting that the server names; what it does not know must not be asked of it",
    401: "check the key in the environment variable {key}",
    402: "the account has no credit left: add some, then run the same command again",
    403: "check what the key in {key} may do, and whether the account may use this model",
    404: "check `model` (the server's list of models) and `base_url` (most end in /v1)",
}


class Refusal(EndpointError):
    """A server's final no; `status` is its HTTP status, `setting` the one it does not take, if it names one."""

    def __init__(self, found: str, *, status: int, where: str, todo: str, setting: str | None = None) -> None:
        super().__init__(found, where=where, todo=todo)
        self.status, self.setting = status, setting


class Declined(Exception):
    """A server's no to what one request says: that one has no answer, the others may have; `reason` is the server's code."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(reason, said)
        self.reason = reason


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


def read_status(status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint, asked: str) -> Fault:
    """Return the fault of an error status (400 and above).

    Parameters
    ----------
    asked : str
        What was asked, in a few words, for the error.

    Raises
    ------
    Declined
        When this request is refused for its content.
    Refusal, EndpointError
        When asking again is no use: what was asked, what came back and what to do.
    """
    said, codes = read_error(body)
    if status in (400, 403, 422) and (reason := find_content(body, words=status != 403)):
        raise Declined(reason, said)
    quota = any(code in QUOTA for code in codes)
    if (status in TRANSIENT or status >= 500) and not quota:
        wait = read_retry_after(headers)
        wait = read_delay(body) if wait is None else wait
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


def keeps_asking(fault: Fault, attempt: int, retries: int, waited: float) -> bool:
    """Say whether a fault is worth another try after `attempt` repetitions and `waited` seconds of pauses."""
    return attempt < retries or (fault.overload and retries > 0 and waited < PATIENCE)


def find_content(body: bytes, *, words: bool = True) -> str | None:
    """Return the code with which an error refuses an input for its content, None for any other error.

    Parameters
    ----------
    words : bool
        Whether an error's words count, too, where it has no such code.
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


def _open_error(body: bytes) -> Any:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(values, list) and values:  # Google's
        values = values[0]
    return values.get("error", values) if isinstance(values, dict) else None


def read_error(body: bytes) -> tuple[str, list[str]]:
    """Return what an error response says in a few words, and its codes."""
    error = _open_error(body)
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


#: Two choices of fewer characters may well be the same by chance ("Yes."); longer ones, at a temperature, hardly.
CHANCE = 40

#: What servers call an answer that reached its greatest length, one that a filter stopped, and one that something broke off.
CUT = ("length", "max_tokens", "max_output_tokens")
FILTERED = ("content_filter", "safety", "recitation", "prohibited_content", "refusal")
BROKEN = ("error", "abort", "insufficient_system_resource")
REFUSED = "refused: "  # begins our own: the server refused the input, with the code that follows
USED_UP = "max_tokens used up"
#: As far as a text is whole: up to the end of a sentence (no abbreviation, no number of a list), a paragraph, or JSON.
_WHOLE = re.compile(
    r".*(?:(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)(?<!\d)[.!?…][\"”’')\]}*_]*(?=\s|$)"
    r"|\n[ \t]*\n|[}\]]\s*(?=\n|$))",
    re.DOTALL,
)


@dataclass(frozen=True)
class Answer:
    """One choice; of a response with several, the tokens are this choice's part of the bill (see `cache.Entry`)."""

    text: str
    finish: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass
class Work:
    """A request with the numbers of the choices that are still missing.

    `alone`: choices are asked for one by one, as the server does not give several; `doubted`: it has refused several, without
    a word why. `seen`: long texts so far.
    """

    key: str
    request: dict[str, Any]
    missing: list[int]
    alone: bool = False
    seen: set[str] = field(default_factory=set)
    doubted: bool = False

    def outgoing(self) -> dict[str, Any]:
        """Return what is asked next: the request for its first choices, the same with another seed for later ones."""
        first, count = self.missing[0], 1 if self.alone else len(self.missing)
        body = {name: value for name, value in self.request.items() if name != "n"}
        if count > 1:
            body["n"] = count
        if first and body.get("seed") is not None:
            body["seed"] = derive_choice_seed(body["seed"], f"choice {first}")
        return body


def phrase_request(endpoint: Endpoint, text: str, **settings: Any) -> dict[str, Any]:
    """Return the body of a request: the text as the endpoint's kind takes it, and sampling settings."""
    chat = endpoint.kind == "chat"
    asked = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    settings = {name: value for name, value in settings.items() if value is not None}
    return {"model": endpoint.model, **asked, **settings}


def explain_finish(finish: str | None) -> str | None:
    """Return why an answer did not come to an end of its own, by its finish reason; None when it did, or nobody knows."""
    name = (finish or "").lower()
    if name in CUT:
        return USED_UP
    if name.startswith(FILTERED):
        return "content filter"
    if name in BROKEN:
        return "broken off"
    return finish if name.startswith(REFUSED) else None


def read_whole(answer: Answer) -> str:
    """Return what of an answer is whole: all of it; of one that was cut, its whole sentences; of no answer, nothing."""
    why = explain_finish(answer.finish)
    if why == USED_UP:
        whole = _WHOLE.match(answer.text)
        return whole[0] if whole else ""
    return "" if why else answer.text


def is_thought_away(entry: Entry) -> bool:
    """Say whether a model spent all its tokens before it began to answer: the text is empty, or thoughts that do not end."""
    return explain_finish(entry.finish) == USED_UP and not (unwrap(entry.text) or "").strip()


def list_missing(
    requests: Sequence[dict[str, Any]], keys: Sequence[str], cache: Cache | None, *, refresh: bool
) -> list[Work]:
    """Return the work that the cache leaves to do, each request once; with `refresh` or without one it counts as empty."""
    wanted: dict[str, dict[str, Any]] = {}
    for key, request in zip(keys, requests, strict=True):
        if key not in wanted or request.get("n", 1) > wanted[key].get("n", 1):
            wanted[key] = request
    present = {} if refresh or cache is None else cache.present(wanted)
    works = []
    for key, request in wanted.items():
        missing = [number for number in range(request.get("n", 1)) if number not in present.get(key, ())]
        if missing:
            works.append(Work(key, request, missing))
    return works


def derive_choice_seed(seed: int, what: str) -> int:
    """Return another seed (31 bits: servers differ in what they take), fixed by the first one and `what` it is for."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}".encode()).digest()[:4], "big") >> 1


def read_json(content: bytes, content_type: str) -> dict[str, Any]:
    """Read a response's body.

    Raises
    ------
    Fault
        When it is no JSON object: cut short, another type of content, bytes that are no text.
    """
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError, too
        json_meant = "json" in content_type or content.lstrip()[:1] == b"{"
        kind = "broken JSON" if json_meant else "no JSON"
        raise Fault(kind, f"{content_type or 'no content type'}, {read_error(content)[0]}") from error
    if not isinstance(reply, dict):
        raise Fault("no JSON", f"expected an object, found {type(reply).__name__}")
    return reply


def read_reply(work: Work, sent: dict[str, Any], reply: dict[str, Any]) -> tuple[dict[int, Entry], list[str]]:
    """Read the choices of a reply and number them.

    Parameters
    ----------
    work : Work
        Of which choices are missing; changed: those that came are no longer.
    sent : dict
        What was asked, see `Work.outgoing`.
    reply : dict
        A chat completion or a completion.

    Returns
    -------
    choices : dict of Entry
        By number.
    ignored : list of str
        The settings that the server passed over, as far as the reply shows it.

    Raises
    ------
    Fault
        A reply without choices.
    """
    if reply.get("error"):
        raise Fault("error in a reply", read_error(json.dumps(reply).encode())[0])
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Fault("no choices", json.dumps(reply)[:200])
    asked = sent.get("n", 1)
    given = len(choices[:asked])
    broken = [choice for choice in choices[:asked] if is_broken(choice)]
    choices = [choice for choice in choices[:asked] if not is_broken(choice)]
    if not choices:
        raise Fault("broken choice", read_error(json.dumps(broken[0]).encode())[0])
    texts = [_read_text(choice) for choice in choices]
    prompt, completion = _read_counts(reply)
    whole = [text for text, c in zip(texts, choices, strict=True) if not explain_finish(_read_finish(c))]
    ignored = _notice_ignored(work, sent, texts, whole, completion)
    shares = _share_out(completion, texts)
    if given < asked:
        ignored.append("n: fewer choices than asked")
    if len(texts) > 1 and "n: all choices the same" in ignored:
        # The server drew one seed's text several times. One of them counts, with all that was billed.
        texts, shares = texts[:1], [completion]
    work.alone |= len(texts) + len(broken) < asked
    entries = {}
    for position, text in enumerate(texts):
        prompt_tokens = prompt if position == 0 or prompt is None else 0
        model = reply.get("model")
        entries[work.missing[position]] = Entry(
            text,
            _read_finish(choices[position]),
            prompt_tokens,
            shares[position],
            model if isinstance(model, str) else None,
        )
    work.missing = work.missing[len(texts) :]
    work.seen.update(text for text in texts if len(text) > CHANCE)
    return entries, ignored


def is_broken(choice: Any) -> bool:
    """Say whether a choice of a reply is an error in an answer's place."""
    if not isinstance(choice, dict):
        return False
    return bool(choice.get("error")) or (_read_finish(choice) or "").lower() in BROKEN


def _read_finish(choice: dict[str, Any]) -> str | None:
    finish = choice.get("finish_reason")
    return finish if isinstance(finish, str) else None


def _notice_ignored(
    work: Work, sent: dict[str, Any], texts: list[str], whole: list[str], completion: int | None
) -> list[str]:
    ignored = []
    drawn = sent.get("temperature") != 0
    if drawn and len(texts) > 1 and len(texts[0]) > CHANCE and len(set(texts)) == 1:
        ignored.append("n: all choices the same")
    if drawn and work.seen & set(texts):
        ignored.append("seed or temperature: the same text again")
    most = read_most(sent)
    if most and completion is not None and completion > most * len(texts):
        ignored.append("max_tokens")
    if sent.get("response_format", {}).get("type") in ("json_object", "json_schema"):
        ignored += ["response_format"] * any(not _is_json(text) for text in whole)
    return ignored


def _read_text(choice: Any) -> str:
    # chat: message.content, which is null where the model refuses; completions: text.
    message = choice.get("message") if isinstance(choice, dict) else None
    if isinstance(message, dict):
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        return str(content if content is not None else message.get("refusal") or "")
    if isinstance(choice, dict) and isinstance(choice.get("text"), str):
        return choice["text"]
    raise Fault("no choices", f"a choice without text: {json.dumps(choice)[:200]}")


def _read_counts(reply: dict[str, Any]) -> tuple[int | None, int | None]:
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if all(type(count) is int and count >= 0 for count in counts):
        return counts[0], counts[1]
    return None, None


def _share_out(total: int | None, texts: list[str]) -> list[int | None]:
    # By length; what rounding leaves goes to the first, so that the sum stays what was billed.
    if total is None:
        return [None] * len(texts)
    lengths = [max(1, len(text)) for text in texts]
    shares = [total * length // sum(lengths) for length in lengths]
    return [shares[0] + total - sum(shares), *shares[1:]]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def read_most(request: dict[str, Any]) -> int | None:
    """Return the most tokens that one choice of a request may have, None when it sets no limit."""
    return request.get("max_completion_tokens") or request.get("max_tokens")


#: A server that asks for a longer pause than this is not waited for: a daily limit is used up.
LONGEST_WAIT = 900.0

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
#: A duration in an error's words: "retry in 24s", "try again in 1m2.5s", "retry after 24 seconds".
_AMOUNT = r"\d+(?:\.\d+)?\s?(?:ms|milliseconds?|[smhd]|sec(?:ond)?s?|min(?:ute)?s?|hours?|days?)(?![a-z])"
_SAID = re.compile(rf"(?:try again|retry|wait)\D{{0,30}}?((?:{_AMOUNT}\s?)+)", re.IGNORECASE)
_WORDS = re.compile(r"\s|(?<=m)illi(?=s)|(?<=[smhd])(?:ec(?:ond)?s?|in(?:ute)?s?|ours?|ays?)", re.IGNORECASE)
_DELAYS = ("retrydelay", "retryafter", "retryafterseconds")


def read_retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds that ``Retry-After`` (seconds or a date, RFC 9110) or ``retry-after-ms`` asks for, or None."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None or (seconds := _number(value)) is not None:
        return None if value is None else seconds
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())


def read_delay(body: bytes) -> float | None:
    """Return the seconds after which an error's body says to come back: a value such as Google's ``retryDelay``, or in words."""
    try:
        open_values = [json.loads(body)]
    except (ValueError, RecursionError):
        open_values = []
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            for name, inner in value.items():
                if name.lower().replace("_", "") in _DELAYS:
                    inner = inner.get("seconds") if isinstance(inner, dict) else inner
                    if (seconds := read_duration(str(inner))) is not None:
                        return seconds
        if isinstance(value, dict | list):
            open_values += value.values() if isinstance(value, dict) else value
    said = _SAID.search(body.decode("utf-8", "replace"))
    return read_duration(_WORDS.sub("", said[1]).lower()) if said else None


def read_duration(text: str | None) -> float | None:
    """Return the seconds of a duration such as ``1s``, ``6m0s``, ``120ms`` or ``17.5``; None when it is none."""
    if text is None or (seconds := _number(text)) is not None:
        return None if text is None else seconds
    parts = _PART.findall(text)
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != text.strip():
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is None or 0 <= value < float("inf") else None
