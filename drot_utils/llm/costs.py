"""What requests take: tokens counted or estimated, their price, and a forecast."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from drot_utils.llm.cache import Cache, request_key
from drot_utils.llm.replies import list_missing
from drot_utils.study.errors import ParamsError
from drot_utils.study.params import Endpoint, Requests, Section, Setting, read_yaml
from drot_utils.study.paths import resolve

ENOUGH = 20  # answers of a model in the cache from which their mean length is taken for the next ones'
BYTES_A_TOKEN = 4  # English text under current tokenizers; an estimate, and said to be one
FRAME = 4  # tokens around a message, and to open the answer
_ANSWERS = (
    "SELECT count(*), avg(completion_tokens) FROM answers JOIN requests USING (key) "
    "WHERE json_extract(body, '$.model') = ? AND completion_tokens IS NOT NULL"
)

Dollars = Annotated[float, Field(ge=0)]


class Price(Section):
    """Of one model, in US dollars a million tokens."""

    input: Dollars  # what goes in
    output: Dollars  # what comes out
    batch: Annotated[float, Field(gt=0, le=1)] | None = None  # the Batch API's share of it
    as_of: date
    source: str
    refuses: Annotated[list[Setting], Field(default_factory=list)]  # known not to be taken, but for their default


@dataclass(frozen=True)
class Prices:
    """A table of prices, by the exact name of the model: a snapshot of another date may cost something else."""

    table: dict[str, Price]
    where: str  # the file

    def cost(self, model: str, transport: str, prompt: int | None, completion: int | None) -> float | None:
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
    """Read a table of prices; a `ParamsError` when it is missing, no YAML, or an entry, which is named, lacks something."""
    place = resolve(path)
    try:
        return Prices(TypeAdapter(dict[str, Price]).validate_python(read_yaml(place) or {}), path)
    except (OSError, ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        why = f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}" if first else error
        todo = "let `requests.prices` name one, as data/prices.yaml is: an entry has input, output, batch, as_of and source"
        raise ParamsError(f"is no table of prices ({why})", where=str(place), todo=todo) from error


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
    """Return what it will take to have all requests answered; without a cache, as if it were empty."""
    prices = read_prices(settings.prices)
    works = list_missing(requests, [request_key(r) for r in requests], cache, refresh=settings.cache == "refresh")
    choices = sum(len(work.missing) for work in works)
    prompt = sum(count_prompt(work.request) for work in works)
    answers, mean = cache.query(_ANSWERS, endpoint.model)[0] if cache else (0, None)
    most = [work.request.get("max_tokens") for work in works]
    if answers >= ENOUGH:
        completion, how = round(mean * choices), f"answers as long as {answers} earlier ones ({mean:.0f} tokens)"
    elif None in most:
        completion, how = None, "nothing limits the answers"
    else:
        completion = sum(m * len(work.missing) for m, work in zip(most, works, strict=True))
        how = "answers as long as they may be, at most"
    cost = prices.cost(endpoint.model, endpoint.transport, prompt, completion) if works else 0.0
    loads = [(len(works), endpoint.requests_per_minute)]
    loads += [] if completion is None else [(prompt + completion, endpoint.tokens_per_minute)]
    minutes = [load / limit for load, limit in loads if limit and endpoint.transport == "direct"]
    how = f"prompts estimated at {BYTES_A_TOKEN} bytes a token; {how}; {prices.say(endpoint.model)}"
    return Forecast(len(requests), len(works), choices, prompt, completion, cost, max(minutes, default=None), how)


def count_prompt(request: dict[str, Any]) -> int:
    """Return the tokens that go in with a request, roughly."""
    texts = _list_texts(request)
    tokens = sum(-(-len(text) // BYTES_A_TOKEN) for text in texts)
    return tokens + (FRAME * (len(texts) + 1) if "messages" in request else 0)


def bound_tokens(request: dict[str, Any]) -> tuple[int, int | None]:
    """Return the most tokens that can go in with a request (no tokenizer makes more than there are bytes) and come out.

    None: nothing limits what comes out.
    """
    most = request.get("max_tokens")
    prompt = sum(map(len, _list_texts(request))) + 16 * (len(request.get("messages", [])) + 1)
    return prompt, None if most is None else most * request.get("n", 1)


def _list_texts(request: dict[str, Any]) -> list[bytes]:
    texts = [message.get("content") for message in request.get("messages", [{"content": request.get("prompt")}])]
    return [str(text or "").encode("utf-8", "replace") for text in texts]
