"""What requests will take, before they are sent: how many, which tokens, what they cost, how long at the limits set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drot_utils.answers import list_missing
from drot_utils.cache import Cache, request_key
from drot_utils.prices import Prices
from drot_utils.settings import Endpoint
from drot_utils.tokens import count_prompt, open_counter, read_most

ENOUGH = 20  # answers of a model in the cache from which their mean length is taken for the next ones'
SAMPLE = 2000  # requests whose tokens are counted; of more, these stand for all


@dataclass(frozen=True)
class Forecast:
    """What a list of requests will take.

    Attributes
    ----------
    requests, choices : int
        In all, and how many choices of them are to be asked for in `to_ask` requests; the others are in the cache.
    prompt_tokens, completion_tokens : int or None
        Of what is to be asked; None when nothing limits the answers and none are known.
    cost_usd : float or None
        None when the price is not known.
    minutes : float or None
        At least, at the limits per minute; None when none are set.
    how : str
        What the numbers rest on, in words.
    """

    requests: int
    to_ask: int
    choices: int
    prompt_tokens: int
    completion_tokens: int | None
    cost_usd: float | None
    minutes: float | None
    how: str


def forecast(
    requests: Sequence[dict[str, Any]],
    endpoint: Endpoint,
    prices: Prices,
    cache: Cache | None,
    *,
    refresh: bool = False,
) -> Forecast:
    """Return what it will take to have all requests answered.

    Parameters
    ----------
    requests : sequence of dict
        As for `endpoint.ask_all`.
    cache : Cache or None
        None: as if empty.
    """
    keys = [request_key(request) for request in requests]
    works = list_missing(requests, keys, cache, refresh=refresh)
    choices = sum(len(work.missing) for work in works)
    count, counted = open_counter(endpoint.model)
    sample = works[:: max(1, len(works) // SAMPLE)]
    prompt = sum(count_prompt(work.request, count) for work in sample)
    prompt = round(prompt * len(works) / len(sample)) if sample else 0
    mean, answers = _mean_answer(endpoint, cache)
    most = [read_most(work.request) for work in works]
    if mean is not None:
        completion, how = (
            round(mean * choices),
            f"answers as long as {answers} earlier ones ({mean:.0f} tokens)",
        )
    elif None in most:
        completion, how = None, "nothing limits the answers"
    else:
        completion = sum(m * len(work.missing) for m, work in zip(most, works, strict=True))
        how = "answers as long as they may be, at most"
    return Forecast(
        len(keys),
        len(works),
        choices,
        prompt,
        completion,
        prices.cost(endpoint.model, endpoint.transport, prompt, completion) if works else 0.0,
        _count_minutes(endpoint, len(works), prompt, completion),
        f"prompts {counted}; {how}; {prices.say(endpoint.model)}",
    )


def _mean_answer(endpoint: Endpoint, cache: Cache | None) -> tuple[float | None, int]:
    if cache is None:
        return None, 0
    count, mean = cache.query(
        "SELECT count(*), avg(completion_tokens) FROM answers JOIN requests USING (key) "
        "WHERE json_extract(body, '$.model') = ? AND completion_tokens IS NOT NULL",
        endpoint.model,
    )[0]
    return (mean, count) if count >= ENOUGH else (None, count)


def _count_minutes(endpoint: Endpoint, requests: int, prompt: int, completion: int | None) -> float | None:
    if endpoint.transport == "batch":
        return None
    minutes = []
    if endpoint.requests_per_minute is not None:
        minutes.append(requests / endpoint.requests_per_minute)
    if endpoint.tokens_per_minute is not None and completion is not None:
        minutes.append((prompt + completion) / endpoint.tokens_per_minute)
    return max(minutes, default=None)
