"""What requests take: tokens counted or estimated, prices, a forecast before and the usage after, and the budget."""

import hashlib
import importlib.util
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from drot_utils.llm.cache import METERED, UNMETERED, Cache, read_ledger, request_key
from drot_utils.llm.replies import list_missing, read_most
from drot_utils.study.errors import BudgetError, ParamsError
from drot_utils.study.params import Endpoint, Section, Setting, read_yaml
from drot_utils.study.paths import resolve

BYTES_A_TOKEN = 4  # English text under current tokenizers; an estimate, and said to be one
FRAME = 4  # tokens around a message, and to open the answer
#: Where tiktoken gets its encodings; it looks for them in its own folder first, under the SHA-1 of the address.
ENCODINGS = "https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"

TokenCounter = Callable[[str], int]


def open_counter(model: str) -> tuple[TokenCounter, str]:
    """Return what counts the tokens of a text for a model, and how it does that, in words."""
    estimate = (estimate_tokens, f"estimated at {BYTES_A_TOKEN} bytes a token")
    if importlib.util.find_spec("tiktoken") is None:
        return estimate
    import tiktoken

    try:
        name = tiktoken.encoding_name_for_model(model)
    except KeyError:
        return estimate
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = folder or str(Path(tempfile.gettempdir()) / "data-gym-cache")
    address = ENCODINGS.format(name=name)
    if not (Path(folder) / hashlib.sha1(address.encode()).hexdigest()).exists():
        return estimate  # tiktoken would fetch it: planning must not need a network
    encoding = tiktoken.get_encoding(name)
    return lambda text: len(encoding.encode(text, disallowed_special=())), f"counted with tiktoken ({name})"


def estimate_tokens(text: str) -> int:
    """Return a text's tokens, roughly."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)


def count_prompt(request: dict[str, Any], count: TokenCounter) -> int:
    """Return the tokens that go in with a request."""
    texts = texts_of(request)
    return sum(count(text) for text in texts) + (FRAME * (len(texts) + 1) if "messages" in request else 0)


def bound_tokens(request: dict[str, Any]) -> tuple[int, int | None]:
    """Return the most tokens that can go in with a request (no tokenizer makes more than there are bytes) and come out (None:
    it sets no limit).
    """
    most = read_most(request)
    prompt = sum(len(text.encode("utf-8", "replace")) for text in texts_of(request))
    frame = 16 * (len(request.get("messages", [])) + 1)
    return prompt + frame, None if most is None else most * request.get("n", 1)


def texts_of(request: dict[str, Any]) -> list[str]:
    """Return the texts of a request's messages, or its prompt."""
    if "messages" not in request:
        return [str(request.get("prompt", ""))]
    return [str(message.get("content") or "") for message in request["messages"]]


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
    """A table of prices.

    Attributes
    ----------
    table : dict of Price
        By the exact name of the model: a snapshot of another date may cost something else.
    where : str
        The file.
    """

    table: dict[str, Price]
    where: str

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
        settings = (price.refuses if price else []) and [n for n in price.refuses if n != "max_tokens"]
        return [
            name for name in settings
            if name in request and names.get(name, name) and (name, request[name]) != ("temperature", 1)
        ]  # fmt: skip

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
        raise ParamsError(
            "no such table of prices",
            where=str(place),
            todo="point `requests.prices` at one; data/prices.yaml is ours",
        ) from error
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


class Budget:
    """What may still be spent: by the ledger of the cache, so over all restarts and all that share it.

    Parameters
    ----------
    limit : float or None
        US dollars; None: no limit, and nothing is refused.
    prices : Prices
    cache : Cache
        What was spent so far; lines that nobody metered count with their upper bounds.
    models : set of (model, transport)
        What is going to be asked.

    Raises
    ------
    BudgetError
        With a limit, when the price of one of the models is not known.
    """

    def __init__(self, limit: float | None, prices: Prices, cache: Cache, models: set[tuple[str, str]]) -> None:
        self.limit, self.prices, self.spent, self.reserved = limit, prices, 0.0, 0.0
        if limit is None:
            return
        lines = [line for line in read_ledger(cache) if line.entry in (METERED, UNMETERED)]
        for model, transport in sorted(models | {(line.model, line.transport) for line in lines}):
            if prices.cost(model, transport, 0, 0) is None:
                raise BudgetError(
                    f"a budget is set, but the price of {model} ({transport}) is not known",
                    where=prices.where,
                    todo="add the model with its prices there, or to a table of your own that `requests.prices` names, or set "
                    "`requests.budget_usd: null`",
                )
        costs = [prices.cost(line.model, line.transport, line.prompt_tokens, line.completion_tokens) for line in lines]
        self.spent = sum(cost for cost in costs if cost is not None)

    def check(self, estimate: float | None) -> None:
        """Refuse to begin what is estimated to cost more than is left."""
        if self.limit is not None and estimate is not None and self.spent + estimate > self.limit:
            raise BudgetError(
                f"this would cost about ${estimate:,.4f}; of ${self.limit:,.2f}, ${self.spent:,.4f} are spent",
                where="requests.budget_usd",
                todo="raise the budget, or ask for less (fewer actions, fewer choices, a smaller max_tokens); nothing was asked",
            )

    def fits(self, bound: float | None) -> bool:
        """Say whether the most that a request can cost fits beside what is spent and what is under way."""
        return self.limit is None or self.spent + self.reserved + (bound or 0.0) <= self.limit

    def reserve(self, bound: float | None, *, sent: bool = False) -> None:
        """Set aside the most that a request can cost before it goes out, or that one costs which is `sent` already.

        Raises
        ------
        BudgetError
            When that could exceed the limit.
        """
        if not sent and not self.fits(bound):
            raise BudgetError(
                f"the next request could cost ${bound or 0:,.5f}; of ${self.limit:,.2f}, ${self.spent:,.4f} are spent",
                where="requests.budget_usd",
                todo="raise the budget and run the same command again: what was answered is in the cache",
            )
        self.reserved += bound or 0.0

    def settle(self, bound: float | None, actual: float | None) -> None:
        """Count what a request really cost (None: not known, the bound counts) in the place of what was set aside."""
        self.reserved -= bound or 0.0
        self.spent += (bound or 0.0) if actual is None else actual


@dataclass(frozen=True)
class Usage:
    """What a list of requests took.

    Attributes
    ----------
    requests, choices : int
        Asked for, and answered: all of them.
    from_cache, asked : int
        Requests that were in the cache whole, and those that were not.
    calls : int
        What was sent to the server, all tries.
    faults : dict
        What went wrong on the way and was asked again, by kind.
    prompt_tokens, completion_tokens : int or None
        Of all choices, those from the cache too; None when one of them was not counted.
    cost_usd : float or None
        All choices at the table's prices for this endpoint; None when a price or a count is not known.
    spent_usd : float or None
        What the answers to this run's calls cost by the table, 0 when it asked nothing; None when that is not known.
    unmetered : int
        Calls of this run that may have been billed although no answer arrived whole; they are not in `spent_usd`.
    ignored : dict
        Settings that this model's server was seen to pass over in the cache's life, with how often.
    unfinished : dict
        Choices that did not come to an end of their own, by reason (see `answers.explain_finish`).
    answered_by : dict
        Choices by the name that the server gave the model that answered.
    """

    requests: int = 0
    choices: int = 0
    from_cache: int = 0
    asked: int = 0
    calls: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    cost_usd: float | None = 0.0
    spent_usd: float | None = 0.0
    unmetered: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    unfinished: dict[str, int] = field(default_factory=dict)
    answered_by: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: "Usage") -> "Usage":
        """Return the usage of both together."""
        values = {name: _add(value, getattr(other, name)) for name, value in vars(self).items()}
        names = self.ignored | other.ignored  # counted over the cache's life: the later count holds the earlier
        values["ignored"] = {n: max(self.ignored.get(n, 0), other.ignored.get(n, 0)) for n in names}
        return Usage(**values)

    def add_to(self, record: dict[str, Any], key: str) -> None:
        """Add it to what `record` has of the same one under `key`: somebody may be asked several times."""
        record[key] = dict(vars(Usage(**record.get(key, {})) + self))


def _add(one: object, other: object) -> object:
    if one is None or other is None:
        return None
    if isinstance(one, dict):
        return dict(sorted((Counter(one) + Counter(other)).items()))
    return one + other


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
