"""The teacher: an OpenAI-compatible endpoint behind a cache of whole requests (section 3.1, appendix A)."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from drot_utils.errors import DataError, TeacherError
from drot_utils.params import Teacher as Settings
from drot_utils.paths import atomic
from drot_utils.progress import track
from drot_utils.prompts import parse_teacher, teacher_prompt, teacher_response


@dataclass(frozen=True)
class Response:
    """What the teacher answered to one request: its choices, and the tokens it counted (None when unknown)."""

    choices: list[str]
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def make_request(action: str, moral_variance: int, settings: Settings, seed: int) -> dict[str, Any]:
    """Return the whole request for one action and moral variance, as the endpoint gets it."""
    prompt = teacher_prompt(action, moral_variance)
    text = (
        {"prompt": prompt}
        if settings.endpoint == "completions"
        else {"messages": [{"role": "user", "content": prompt}]}
    )
    return {
        "model": settings.model,
        **text,
        "n": settings.contexts_per_variance,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "presence_penalty": settings.presence_penalty,
        "frequency_penalty": settings.frequency_penalty,
        "max_tokens": settings.max_tokens,
        "seed": seed,
    }


def request_key(request: dict[str, Any]) -> str:
    """Return the cache key of a request: a hash of all of it."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class Cache:
    """Responses on disk, one JSON line each, appended as they come.

    A last line that a kill cut short is dropped; any other line that cannot be read is an error, as something else than
    this program changed the file.

    Parameters
    ----------
    path : Path
        The file; made on the first `put`.

    Raises
    ------
    DataError
        A corrupt line, named by its number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.responses: dict[str, Response] = {}
        if not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        if lines[-1]:  # no final line break: cut short
            with atomic(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines[:-1]), encoding="utf-8")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                entry = json.loads(line)
                self.responses[entry["key"]] = Response(**entry["response"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(
                    f"is no cached response ({error!r})",
                    where=f"{path}, line {number}",
                    todo="remove that line to ask this request again; the others are kept",
                ) from error

    def get(self, key: str) -> Response | None:
        """Return the response to a request, or None."""
        return self.responses.get(key)

    def put(self, key: str, response: Response) -> None:
        """Keep a response, on disk at once."""
        self.put_all([(key, response)])

    def put_all(self, items: list[tuple[str, Response]]) -> None:
        """Keep many responses."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as handle:
            for key, response in items:
                handle.write(json.dumps({"key": key, "response": vars(response)}) + "\n")
                self.responses[key] = response


def fill_cache(cache: Cache, recorded: pd.DataFrame, settings: Settings, seed: int) -> int:
    """Put recorded responses into the cache as the answers to the requests of this study, in the place of other ones.

    Returns
    -------
    int
        Requests newly answered.
    """
    new = []
    for (action, variance), group in recorded.groupby(["action", "moral_variance"], sort=False):
        key = request_key(make_request(action, int(variance), settings, seed))
        group = group.sort_values("choice").head(settings.contexts_per_variance)
        response = Response(
            [teacher_response(c, r) for c, r in zip(group["context"], group["rationale"], strict=True)]
        )
        if cache.get(key) != response:
            new.append((key, response))
    cache.put_all(new)
    return len(new)


def ask_teacher(
    actions: pd.DataFrame, settings: Settings, cache: Cache, seed: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Ask for the contexts of all actions in both directions; answers in the cache are not asked again.

    Parameters
    ----------
    actions : DataFrame
        ``action_id`` and ``action``.
    cache : Cache
        Holds earlier and recorded responses, and gets the new ones.

    Returns
    -------
    rows : DataFrame
        One row a choice: ``action_id action moral_variance candidate source context rationale raw``; a choice that does
        not parse keeps its raw text and has null context and rationale.
    usage : dict
        ``requests``, ``from_cache``, ``asked``, and token counts (None when not known for all).

    Raises
    ------
    TeacherError
        A request that is not in the cache when there is no key; an endpoint that fails or gives no choices.
    """
    requests = [
        (row.action_id, row.action, variance, make_request(row.action, variance, settings, seed))
        for row in actions.itertuples()
        for variance in (1, -1)
    ]
    client, rows, responses = None, [], []
    hits = sum(cache.get(request_key(r)) is not None for *_, r in requests)
    for action_id, action, variance, request in track(
        requests, "asking the teacher", len(requests), "requests"
    ):
        key = request_key(request)
        response = cache.get(key)
        if response is None:
            client = client or _client(settings, request)
            response = _ask(client, settings, request)
            cache.put(key, response)
        responses.append(response)
        rows += list(_rows(action_id, action, variance, response))
    usage = {"requests": len(requests), "from_cache": hits, "asked": len(requests) - hits}
    for name in ("prompt_tokens", "completion_tokens"):
        counts = [getattr(response, name) for response in responses]
        usage[name] = None if None in counts else sum(counts)
    return pd.DataFrame(rows), usage


def _rows(action_id: str, action: str, variance: int, response: Response) -> Iterator[dict[str, Any]]:
    for candidate, raw in enumerate(response.choices):
        parsed = parse_teacher(raw)
        yield {
            "action_id": action_id,
            "action": action,
            "moral_variance": variance,
            "candidate": candidate,
            "source": "teacher",
            "context": parsed.context if parsed else None,
            "rationale": parsed.rationale if parsed else None,
            "raw": raw,
        }


def _client(settings: Settings, request: dict[str, Any]) -> Any:
    from openai import OpenAI

    key = os.environ.get(settings.api_key_env)
    if not key:
        content = request.get("prompt") or request["messages"][0]["content"]
        raise TeacherError(
            f"no recorded response to the request {content.splitlines()[-2]!r} (model {settings.model}), and no key to ask",
            where=settings.base_url,
            todo=f"set the environment variable {settings.api_key_env}, or point `teacher.recorded` at responses that cover "
            "these actions",
        )
    return OpenAI(
        api_key=key, base_url=settings.base_url, timeout=settings.timeout_s, max_retries=settings.max_retries
    )


def _ask(client: Any, settings: Settings, request: dict[str, Any]) -> Response:
    # Some servers ignore `n`: the missing choices are made up by asking again with other seeds.
    answers, choices = [], []
    while len(choices) < request["n"]:
        answer = _complete(
            client,
            settings,
            {**request, "n": request["n"] - len(choices), "seed": request["seed"] + len(choices)},
        )
        texts = [
            getattr(c, "text", None) or (c.message.content if hasattr(c, "message") else None)
            for c in answer.choices
        ]
        if not texts:
            raise TeacherError(
                "the answer holds no choices", where=settings.base_url, todo="check the model on the server"
            )
        answers.append(answer)
        choices += [text or "" for text in texts]
    counts = [
        (a.usage.prompt_tokens, a.usage.completion_tokens) if a.usage else (None, None) for a in answers
    ]
    known = all(p is not None and c is not None for p, c in counts)
    sums = (sum(p for p, _ in counts), sum(c for _, c in counts)) if known else (None, None)
    return Response(choices[: request["n"]], *sums)


def _complete(client: Any, settings: Settings, request: dict[str, Any]) -> Any:
    from openai import OpenAIError

    try:
        endpoint = client.completions if settings.endpoint == "completions" else client.chat.completions
        return endpoint.create(**request)
    except OpenAIError as error:
        raise TeacherError(
            f"the teacher did not answer: {error}",
            where=f"{settings.base_url}, model {settings.model}",
            todo="check the address, the model's name and the key; answers so far are in the cache and are not asked again",
        ) from error
