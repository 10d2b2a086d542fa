"""What requests take, as it is forecast, and as it was sent, kept and spent; and where they have to stop."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import yaml
from pydantic import Field, NonNegativeFloat, TypeAdapter, ValidationError

from drot_utils.llm.cache import IGNORED, METERED, UNMETERED, Answer, Cache, request_key
from drot_utils.llm.faults import Declined, Fault, Refusal
from drot_utils.llm.replies import REFUSED, Work, explain_finish, is_broken, is_thought_away, list_missing, read_reply
from drot_utils.study.errors import BudgetError, EndpointError, ParamsError
from drot_utils.study.params import Endpoint, OpenShare, Requests, Section, Setting, read_yaml
from drot_utils.study.paths import resolve

LENGTHS = ("max_tokens", "max_completion_tokens")  # what servers call the most tokens of an answer
FEW = 3  # empty replies, and no other, from which a model is seen to use up all its tokens for thinking
FEWER, NO_LENGTH = "n: fewer choices than asked", "max_tokens: refused"  # what is noted of a model's servers
ENOUGH = 20  # answers of a model in the cache from which their mean length is taken for the next ones'
BYTES_A_TOKEN = 4  # English text under current tokenizers; an estimate, and said to be one
FRAME = 4  # tokens around a message, and to open the answer
_ANSWERS = (
    "SELECT count(*), avg(completion_tokens) FROM answers JOIN requests USING (key) "
    "WHERE json_extract(body, '$.model') = ? AND completion_tokens IS NOT NULL"
)


class Price(Section):
    """Of one model, in US dollars a million tokens."""

    input: NonNegativeFloat  # what goes in
    output: NonNegativeFloat  # what comes out
    batch: OpenShare | None = None  # the Batch API's share of it
    as_of: date
    source: str
    refuses: list[Setting] = Field([])  # known not to be taken, but for their default


@dataclass(frozen=True)
class Prices:
    """A table of prices, by the exact name of the model: a snapshot of another date may cost something else."""

    table: dict[str, Price]
    where: str  # the file

    def cost(self, model: str, transport: str, prompt: int | None, completion: int | None) -> float | None:
        """Return what tokens cost in US dollars; None where the price, or a number of tokens, is not known."""
        price = self.table.get(model)
        share = price and (1.0 if transport == "direct" else price.batch)
        if share is None or prompt is None or completion is None:
            return None
        return share * (price.input * prompt + price.output * completion) / 1e6

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
    minutes: float | None  # at least, at the limits per minute; None when none are set and something is to be asked
    how: str  # what the numbers rest on, in words


def forecast(requests: list[dict[str, Any]], endpoint: Endpoint, settings: Requests, cache: Cache | None) -> Forecast:
    """Return what it will take to have all requests answered; without a cache, as if it were empty."""
    prices = read_prices(settings.prices)
    works = list_missing(requests, [request_key(r) for r in requests], cache, refresh=settings.cache == "refresh")
    choices = sum(len(work.missing) for work in works)
    prompt = sum(count_prompt(work.request) for work in works)
    answers, mean = cache.query(_ANSWERS, endpoint.model)[0] if cache else (0, None)
    most = [find_length(work.request, endpoint) for work in works]
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
    least = max(minutes, default=None) if works else 0.0
    return Forecast(len(requests), len(works), choices, prompt, completion, cost, least, how)


def count_prompt(request: dict[str, Any]) -> int:
    """Return the tokens that go in with a request, roughly."""
    texts = _list_texts(request)
    tokens = sum(-(-len(text) // BYTES_A_TOKEN) for text in texts)
    return tokens + (FRAME * (len(texts) + 1) if "messages" in request else 0)


def find_length(request: dict[str, Any], endpoint: Endpoint) -> int | None:
    """Return the most tokens of a choice, in our words or this server's; None when it is not told, so that nothing limits it."""
    called = endpoint.names.get("max_tokens", "max_tokens")
    return next((request[name] for name in (called, *LENGTHS) if name in request), None) if called else None


def bound_tokens(request: dict[str, Any], endpoint: Endpoint) -> tuple[int, int | None]:
    """Return the most tokens that can go in with a request (no tokenizer makes more than there are bytes) and come out.

    None: nothing limits what comes out.
    """
    most = find_length(request, endpoint)
    prompt = sum(map(len, _list_texts(request))) + 16 * (len(request.get("messages", [])) + 1)
    return prompt, None if most is None else most * request.get("n", 1)


def _list_texts(request: dict[str, Any]) -> list[bytes]:
    texts = [message.get("content") for message in request.get("messages", [{"content": request.get("prompt")}])]
    return [str(text or "").encode() for text in texts]


@dataclass(frozen=True)
class Usage:
    """What a list of requests took; None where a price or a count of tokens is not known."""

    requests: int = 0
    choices: int = 0
    from_cache: int = 0  # requests that were in the cache whole
    asked: int = 0  # those that were not
    calls: int = 0  # what was sent to the server, all tries
    faults: dict[str, int] = field(default_factory=dict)  # what went wrong and was asked again, by kind
    prompt_tokens: int | None = 0  # of all choices, those from the cache too
    completion_tokens: int | None = 0
    cost_usd: float | None = 0.0  # of all choices, at the table's prices for this endpoint
    spent_usd: float | None = 0.0  # of the answers to this run's calls
    unmetered: int = 0  # calls that may have been billed although no answer arrived whole; not in `spent_usd`
    ignored: dict[str, int] = field(default_factory=dict)  # `FEWER` and `NO_LENGTH`, in the cache's life
    unfinished: dict[str, int] = field(default_factory=dict)  # choices without an end of their own, by reason
    answered_by: dict[str, int] = field(default_factory=dict)  # choices, by the server's name of the model

    def __add__(self, other: "Usage") -> "Usage":
        """Return the usage of both together; of what is counted over the cache's life, the later count holds the earlier."""
        values = {name: _add(value, getattr(other, name)) for name, value in vars(self).items()}
        return Usage(**{**values, "ignored": dict(Counter(self.ignored) | Counter(other.ignored))})

    def add_to(self, record: dict[str, Any], key: str) -> None:
        """Add it to what `record` has of the same one under `key`: somebody may be asked several times."""
        record[key] = dict(vars(Usage(**record.get(key, {})) + self))


def _add(one: object, other: object) -> object:
    if one is None or other is None:
        return None
    return _sorted(Counter(one) + Counter(other)) if isinstance(one, dict) else one + other


def _sorted(counts: Counter) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _count_tokens(answers: Collection[Answer]) -> tuple[int | None, int | None]:
    counts = [answer.prompt_tokens for answer in answers], [answer.completion_tokens for answer in answers]
    return tuple(None if None in count else sum(count) for count in counts)


class Accounts:
    """What one list of requests sent, kept and spent.

    The cache's ledger has what was spent so far, over all restarts and by all that share it; what nobody counted is in it with
    its upper bound. With ``cache: refresh`` answers take the place of those in the cache.
    """

    def __init__(self, endpoint: Endpoint, settings: Requests, cache: Cache) -> None:
        self.endpoint, self.settings, self.cache, self.anew = endpoint, settings, cache, settings.cache == "refresh"
        self.prices, self.who = read_prices(settings.prices), (endpoint.model, endpoint.transport)
        self.calls, self.unmetered, self.faults, self.last = 0, 0, Counter[str](), "nothing came back"
        self.spent: float | None = 0.0
        self.done = 0  # requests of which nothing is missing any more
        self.note = ""  # what there is to say while nothing seems to happen
        self.thoughts: int | None = 0  # replies that were thought away; None once one was not
        refused = NO_LENGTH in cache.list_ignored(endpoint.model)
        self.lengths = [*reversed(LENGTHS)] if refused else [*LENGTHS]

    def open_budget(self, requests: list[dict[str, Any]]) -> None:
        """Refuse with a `BudgetError` what is forecast to cost more than is left, or whose cost is not known."""
        if (limit := self.settings.budget_usd) is None:
            return
        spent = self.cache.list_spent()
        for model, transport, *_ in [self.who, *spent]:
            if self.prices.cost(model, transport, 0, 0) is None:
                todo = "add it there, or to a table of your own that `requests.prices` names, or set `requests.budget_usd: null`"
                found = f"a budget is set, but the price of {model} ({transport}) is not known"
                raise BudgetError(found, where=self.prices.where, todo=todo)
        cost = forecast(requests, self.endpoint, self.settings, self.cache).cost_usd
        if cost is None:
            todo = (
                "let the requests have `max_tokens`, and `names` not leave it out, or set `requests.budget_usd: null`"
            )
            raise BudgetError("a budget is set, but nothing limits the answers", where="requests.budget_usd", todo=todo)
        if self.billed + cost > limit:
            found = f"this would cost about ${cost:,.4f}; of ${limit:,.2f}, ${self.billed:,.4f} are spent"
            todo = "raise the budget, or ask for less (fewer actions, fewer choices, a smaller max_tokens); nothing was asked"
            raise BudgetError(found, where="requests.budget_usd", todo=todo)

    @property
    def billed(self) -> float:
        """What was billed in the cache's life, by other notebooks that share it too."""
        return sum(self.prices.cost(*line) or 0.0 for line in self.cache.list_spent())

    def check_budget(self) -> None:
        """Stop with a `BudgetError` when the budget is spent; what is under way then may pass it."""
        limit = self.settings.budget_usd
        if limit is not None and (billed := self.billed) >= limit:
            found = f"the budget of ${limit:,.2f} is spent (${billed:,.4f}, and what was under way)"
            todo = "raise the budget and run the same command again: what was answered is in the cache"
            raise BudgetError(found, where="requests.budget_usd", todo=todo)

    def phrase(self, sent: dict[str, Any]) -> dict[str, Any]:
        """Return a request in this server's words; the cache knows it by ours."""
        names = {"max_tokens": self.lengths[0], **self.endpoint.names}
        return {names.get(name, name): v for name, v in sent.items() if names.get(name, name) is not None}

    @property
    def settled(self) -> bool:
        """Whether only one name of the length is left, so that a refusal of what is sent now can teach no other one."""
        return len(self.lengths) == 1

    def learn(self, refusal: Refusal, work: Work, sent: dict[str, Any], settled: bool) -> bool:
        """Take from a refusal how to ask this server; False when it is final. `settled`: as it was when this was sent."""
        name = refusal.setting
        if refusal.status in (400, 422) and not name and sent.get("n", 1) > 1:
            # Some servers refuse `n` instead of ignoring it. If this was not it, the next refusal is final.
            work.alone = work.doubted = True
            return True
        if settled or name not in LENGTHS or "max_tokens" in self.endpoint.names or self.lengths == [name]:
            return False
        # Else another request has learnt it meanwhile, or this is a line of another model's batch.
        if name in self.lengths and sent["model"] == self.endpoint.model:
            self.lengths.remove(name)
            self._enter(sent, f"{IGNORED}{name}: refused")
        return True

    def take(self, work: Work, sent: dict[str, Any], reply: dict[str, Any]) -> None:
        """Keep what a reply holds; one without choices is a `Fault`, and nothing is kept."""
        doubted = work.doubted
        answers, fewer = read_reply(work, sent, reply)
        if broken := sum(map(is_broken, reply["choices"])):
            self.faults["broken choice"] += broken
        tokens = _count_tokens(answers.values())
        with self.cache.transaction():
            self.cache.put([(work.request, answers)], replace=self.anew)
            self._enter(
                sent, *((UNMETERED, *bound_tokens(sent, self.endpoint)) if None in tokens else (METERED, *tokens))
            )
            if fewer or doubted:
                self._enter(sent, IGNORED + FEWER)
        cost = self.prices.cost(sent["model"], self.endpoint.transport, *tokens)
        self.spent = None if cost is None or self.spent is None else self.spent + cost
        self.note, work.doubted = "", False
        away = self.thoughts is not None and all(map(is_thought_away, answers.values()))
        self.thoughts = self.thoughts + 1 if away else None

    def decline(self, work: Work, sent: dict[str, Any], no: Declined) -> None:
        """Keep a server's no to what a request says as the answer to all its choices; who read the prompt may bill it."""
        with self.cache.transaction():
            refused = dict.fromkeys(work.missing, Answer("", f"{REFUSED}{no}", 0, 0))
            self.cache.put([(work.request, refused)], replace=self.anew)
            self._enter(sent, UNMETERED, bound_tokens(sent, self.endpoint)[0])
        self.unmetered += 1
        work.missing, work.doubted = [], False

    def fail(self, fault: Fault, sent: dict[str, Any] | None = None) -> None:
        """Count a fault; what may have been billed all the same is entered with its upper bound."""
        self.faults[fault.kind] += 1
        self.last = str(fault)
        if fault.billed and sent is not None:
            self.unmetered += 1
            self._enter(sent, UNMETERED, *bound_tokens(sent, self.endpoint))

    def check_thoughts(self, request: dict[str, Any]) -> None:
        """Stop with an `EndpointError` when the first few answers are empty, as thinking used up all their tokens.

        A model that has ever come to an end within as many tokens as `request` allows is not stopped.
        """
        if (self.thoughts or 0) < FEW:
            return
        ended = self.cache.query(
            "SELECT 1 FROM answers JOIN requests USING (key) WHERE json_extract(body, '$.model') = ? AND "
            "json_extract(body, '$.max_tokens') IS ? AND text != '' AND finish IS NOT 'length' LIMIT 1",
            request["model"],
            request.get("max_tokens"),
        )
        if not ended:
            found = f"the first {self.thoughts} replies are empty: the model used all of `max_tokens` for thinking"
            todo = "raise `teacher.max_tokens` (a judge has 64 tokens at most), set less thinking, or use another model"
            raise EndpointError(found, where=self.endpoint.where, todo=todo)
        self.thoughts = None

    def sum_up(self, answers: list[list[Answer]], asked: int) -> Usage:
        """Return what it took to have these answers, for `asked` of which the cache had not all."""
        every = [answer for group in answers for answer in group]
        prompt, completion = _count_tokens(every)
        return Usage(
            requests=len(answers),
            choices=len(every),
            from_cache=len(answers) - asked,
            asked=asked,
            calls=self.calls,
            faults=_sorted(self.faults),
            prompt_tokens=prompt,
            completion_tokens=completion,
            cost_usd=self.prices.cost(*self.who, prompt, completion),
            spent_usd=self.spent,
            unmetered=self.unmetered,
            ignored=self.cache.list_ignored(self.endpoint.model),
            unfinished=_sorted(Counter(filter(None, (explain_finish(answer.finish) for answer in every)))),
            answered_by=_sorted(Counter(answer.answered_by for answer in every if answer.answered_by)),
        )

    def _enter(self, sent: dict[str, Any], entry: str, prompt: int = 0, completion: int | None = 0) -> None:
        # The model is the request's: a batch may be an earlier run's, which had another.
        self.cache.enter(sent["model"], self.endpoint.transport, entry, prompt, completion or 0)
