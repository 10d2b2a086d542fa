"""What tokens cost: a dated table of prices, and a budget that is not exceeded."""

from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from drot_utils.cache import Cache
from drot_utils.errors import BudgetError, ParamsError
from drot_utils.ledger import METERED, UNMETERED, read_ledger
from drot_utils.paths import resolve
from drot_utils.profiles import read_yaml
from drot_utils.settings import Section, Setting

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
        raise ParamsError(
            f"is no table of prices ({error})", where=str(place), todo="see data/prices.yaml"
        ) from error
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

    def __init__(
        self, limit: float | None, prices: Prices, cache: Cache, models: set[tuple[str, str]]
    ) -> None:
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
        costs = [
            prices.cost(line.model, line.transport, line.prompt_tokens, line.completion_tokens)
            for line in lines
        ]
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
