"""What requests take: tokens counted or estimated, their price, and a forecast."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from drot_utils.llm.cache import Cache, request_key
from drot_utils.llm.replies import list_missing, read_most
from drot_utils.study.errors import ParamsError
from drot_utils.study.params import Endpoint, Requests, Section, Setting, read_yaml
from drot_utils.study.paths import resolve

ENOUGH = 20  # answers of a model in the cache from which their mean length is taken for the next ones'
SAMPLE = 2000  # requests whose tokens are counted; of more, these stand for all
BYTES_A_TOKEN = 4  # English text under current tokenizers; an estimate, and said to be one
FRAME = 4  # tokens around a message, and to open the answer

Dollars = Annotated[float, Field(ge=0)]


class Price(Section):
    """Of one model, in US dollars a million tokens: what goes in and what comes out; `batch` is the Batch API's share of it.

    `refuses`: settings that the model is known not to take, but for their default.
    """

    input: Dollars
    output: Dollars
    batch: Annotated[float, Field(gt=0, le=1)] | None = None
    as_of: date
    source: str
    refuses: Annotated[list[Setting], Field(default_factory=list)]


@dataclass(frozen=True)
class Prices:
    """A table of prices, by the exact name of the model: a snapshot of another date may cost something else."""

    table: dict[str, Price]
    where: str  # the file

    def cost(
        self, model: str, transport: Literal["direct", "batch"], prompt: int | None, completion: int | None
    ) -> float | None:
        """Return what tokens cost in US dollars; None where the price, or a number of tokens, is not known."""
        price = self.table.get(model)
        if price is None or prompt is None or completion is None:
            return None
        share = 1.0 if transport == "direct" else price.batch
        return None if share is None else share * (price.input * prompt + price.output * completion) / 1e6

    def list_refused(self, request: dict[str, Any], names: dict[str, str | None]) -> list[str]:
        """Return the settings of a request that its model is known to refuse, as far as `names` (see `Endpoint`) sends them.

        A `temperature` of 1 is the default and is taken; `max_tokens` goes under its other name once that is learnt.
        """
        price = self.table.get(request["model"])
        known = [name for name in price.refuses if name != "max_tokens"] if price else []
        sent = {name: request[name] for name in known if name in request and names.get(name, name)}
        return [name for name, value in sent.items() if (name, value) != ("temperature", 1)]

    def say(self, model: str) -> str:
        """Say where a model's price comes from, or that it is not known."""
        price = self.table.get(model)
        if price is None:
            return f"price of {model} not in {self.where}: cost unknown"
        return f"{model}: ${price.input:g} in, ${price.output:g} out a million tokens ({price.source}, {price.as_of})"


def read_prices(path: str) -> Prices:
    """Read a table of prices.

    Raises
    ------
    ParamsError
        When it is missing, no YAML, or an entry lacks something; the entry is named.
    """
    place = resolve(path)
    try:
        values = read_yaml(place) or {}
        table = {str(name): Price.model_validate(entry) for name, entry in values.items()}
    except FileNotFoundError as error:
        todo = "point `requests.prices` at one; data/prices.yaml is ours"
        raise ParamsError("no such table of prices", where=str(place), todo=todo) from error
    except ValidationError as error:
        problem = error.errors()[0]
        raise ParamsError(
            f"`{'.'.join(map(str, problem['loc']))}` of a price: {problem['msg']}",
            where=str(place),
            todo="an entry has input, output, batch (a share, or null), as_of and source; see data/prices.yaml",
        ) from error
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise ParamsError(f"is no table of prices ({error})", where=str(place), todo="see data/prices.yaml") from error
    return Prices(table, str(path))


@dataclass(frozen=True)
class Forecast:
    """What a list of requests will take."""

    requests: int  # in all
    to_ask: int  # those that the cache does not have whole
    choices: int  # to be asked for
    prompt_tokens: int  # of what is to be asked
    completion_tokens: int | None  # None when nothing limits the answers and none are known
    cost_usd: float | None  # None when the price is not known
    minutes: float | None  # at least, at the limits per minute; None when none are set
    how: str  # what the numbers rest on, in words


def forecast(
    requests: Sequence[dict[str, Any]], endpoint: Endpoint, settings: Requests, cache: Cache | None
) -> Forecast:
    """Return what it will take to have all requests answered.

    Parameters
    ----------
    requests : sequence of dict
        As for `client.ask_all`.
    settings : Requests
        The price table, and whether what is in the cache is asked anew.
    cache : Cache or None
        None: as if empty.
    """
    prices = read_prices(settings.prices)
    works = list_missing(requests, [request_key(r) for r in requests], cache, refresh=settings.cache == "refresh")
    choices = sum(len(work.missing) for work in works)
    sample = works[:: max(1, len(works) // SAMPLE)]
    prompt = sum(count_prompt(work.request) for work in sample)
    prompt = round(prompt * len(works) / len(sample)) if sample else 0
    mean, answers = _mean_answer(endpoint, cache)
    most = [read_most(work.request) for work in works]
    if mean is not None:
        completion, how = round(mean * choices), f"answers as long as {answers} earlier ones ({mean:.0f} tokens)"
    elif None in most:
        completion, how = None, "nothing limits the answers"
    else:
        completion = sum(m * len(work.missing) for m, work in zip(most, works, strict=True))
        how = "answers as long as they may be, at most"
    cost = prices.cost(endpoint.model, endpoint.transport, prompt, completion) if works else 0.0
    minutes = _count_minutes(endpoint, len(works), prompt, completion)
    how = f"prompts estimated at {BYTES_A_TOKEN} bytes a token; {how}; {prices.say(endpoint.model)}"
    return Forecast(len(requests), len(works), choices, prompt, completion, cost, minutes, how)


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
    minutes = []
    if endpoint.transport == "direct" and endpoint.requests_per_minute is not None:
        minutes.append(requests / endpoint.requests_per_minute)
    if endpoint.transport == "direct" and endpoint.tokens_per_minute is not None and completion is not None:
        minutes.append((prompt + completion) / endpoint.tokens_per_minute)
    return max(minutes, default=None)


def count_prompt(request: dict[str, Any]) -> int:
    """Return the tokens that go in with a request, roughly."""
    texts = _list_texts(request)
    tokens = sum(-(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN) for text in texts)
    return tokens + (FRAME * (len(texts) + 1) if "messages" in request else 0)


def bound_tokens(request: dict[str, Any]) -> tuple[int, int | None]:
    """Return the most tokens that can go in with a request (no tokenizer makes more than there are bytes) and come out.

    None: nothing limits what comes out.
    """
    most = read_most(request)
    prompt = sum(len(text.encode("utf-8", "replace")) for text in _list_texts(request))
    frame = 16 * (len(request.get("messages", [])) + 1)
    return prompt + frame, None if most is None else most * request.get("n", 1)


def _list_texts(request: dict[str, Any]) -> list[str]:
    if "messages" not in request:
        return [str(request.get("prompt", ""))]
    return [str(message.get("content") or "") for message in request["messages"]]
