"""What is asked of a server for the choices that are missing, and how its replies are read."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drot_utils.data.parsing import unwrap
from drot_utils.llm.cache import Answer, Cache
from drot_utils.llm.faults import Fault, say_error
from drot_utils.study.params import Endpoint

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
    r"(?s).*(?:(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)(?<!\d)[.!?…][\"”’')\]}*_]*(?=\s|$)"
    r"|\n[ \t]*\n|[}\]]\s*(?=\n|$))"
)


@dataclass
class Work:
    """A request with the numbers of the choices that are still missing."""

    key: str
    request: dict[str, Any]
    missing: list[int]
    alone: bool = False  # choices are asked for one by one, as the server does not give several
    doubted: bool = False  # it has refused several, and did not say why

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


def describe_request(request: Mapping[str, Any]) -> str:
    """Return the end of a request's text, where what sets it apart from others mostly stands."""
    messages = request.get("messages", [{"content": request.get("prompt")}])
    text = " ".join(str(messages[-1].get("content")).split())
    return "the request " + repr(text if len(text) <= 100 else f"...{text[-97:]}")


def list_missing(requests: list[dict[str, Any]], keys: list[str], cache: Cache | None, *, refresh: bool) -> list[Work]:
    """Return the work that the cache leaves to do, each request once; with `refresh` or without one it counts as empty."""
    wanted: dict[str, dict[str, Any]] = {}
    for key, request in zip(keys, requests, strict=True):
        wanted[key] = max(wanted.get(key, request), request, key=lambda body: body.get("n", 1))
    present = {} if refresh or cache is None else cache.read(wanted)
    works = [
        Work(key, request, [number for number in range(request.get("n", 1)) if number not in present.get(key, ())])
        for key, request in wanted.items()
    ]
    return [work for work in works if work.missing]


def derive_choice_seed(seed: int, what: str) -> int:
    """Return another seed (31 bits: servers differ in what they take), fixed by the first one and `what` it is for."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}".encode()).digest()[:4], "big") >> 1


def read_json(content: bytes, content_type: str) -> dict[str, Any]:
    """Return the JSON object of a response; a `Fault` when it is none: cut short, another type, bytes that are no text."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError, too
        kind = "broken JSON" if "json" in content_type or content.lstrip()[:1] == b"{" else "no JSON"
        raise Fault(kind, f"{content_type or 'no content type'}, {say_error(content)}") from error
    if not isinstance(reply, dict):
        raise Fault("no JSON", f"expected an object, found {type(reply).__name__}")
    return reply


def list_choices(reply: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Return the text and finish reason of each whole choice of a reply; a `Fault` when it has none, or is an error itself."""
    if reply.get("error"):
        raise Fault("error in a reply", say_error(reply))
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Fault("no choices", json.dumps(reply)[:200])
    whole = [choice for choice in choices if not is_broken(choice)]
    if not whole:
        raise Fault("broken choice", say_error(choices[0]))
    return [(_read_text(choice), _as_text(choice.get("finish_reason"))) for choice in whole]


def read_reply(work: Work, sent: dict[str, Any], reply: dict[str, Any]) -> tuple[dict[int, Answer], bool]:
    """Number the choices of a reply to what was `sent` for `work`; those that came are no longer missing there.

    Returns them by number, and whether the server gave fewer different ones than it was asked for. A `Fault` as from
    `list_choices` changes nothing.
    """
    asked, given = sent.get("n", 1), reply.get("choices")
    given = given[:asked] if isinstance(given, list) else []
    choices = list_choices({**reply, "choices": given})
    texts = [text for text, _ in choices]
    usage = reply["usage"] if isinstance(reply.get("usage"), dict) else {}
    prompt, completion = counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not all(type(count) is int and count >= 0 for count in counts):
        prompt = completion = None
    shares = _share_out(completion, texts)
    fewer = len(given) < asked
    if sent.get("temperature") != 0 and len(texts) > 1 and len(texts[0]) > CHANCE and len(set(texts)) == 1:
        # The server drew one seed's text several times. One of them counts, with all that was billed.
        choices, shares, fewer = choices[:1], [completion], True
    work.alone |= fewer
    answers = {}
    for (text, finish), tokens in zip(choices, shares, strict=True):
        answers[work.missing.pop(0)] = Answer(text, finish, prompt, tokens, _as_text(reply.get("model")))
        prompt = prompt and 0  # billed once a response; None stays None
    return answers, fewer


def is_broken(choice: Any) -> bool:
    """Say whether a choice of a reply is an error in an answer's place."""
    said = choice if isinstance(choice, dict) else {}
    return bool(said.get("error")) or str(said.get("finish_reason")).lower() in BROKEN


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


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


def _share_out(total: int | None, texts: list[str]) -> list[int | None]:
    # By length; what rounding leaves goes to the first, so that the sum stays what was billed.
    if total is None:
        return [None] * len(texts)
    lengths = [max(1, len(text)) for text in texts]
    shares = [total * length // sum(lengths) for length in lengths]
    return [shares[0] + total - sum(shares), *shares[1:]]


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


def is_thought_away(answer: Answer) -> bool:
    """Say whether a model spent all its tokens before it began to answer: the text is empty, or thoughts that do not end."""
    return explain_finish(answer.finish) == USED_UP and not (unwrap(answer.text) or "").strip()
