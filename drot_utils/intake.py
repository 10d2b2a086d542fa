"""Where replies come in: each is read, kept in the cache and entered into the ledger before anything else happens."""

from collections import Counter
from typing import Any

from drot_utils.answers import REFUSED, Work, is_broken, is_thought_away, read_reply
from drot_utils.cache import Cache, Entry
from drot_utils.errors import BudgetError, EndpointError
from drot_utils.faults import Declined, Fault, Refusal, describe_request
from drot_utils.ledger import IGNORED, METERED, UNMETERED, Line, enter, read_ignored
from drot_utils.prices import Budget, Prices
from drot_utils.settings import Endpoint
from drot_utils.tokens import bound_tokens, count_prompt, estimate_tokens, read_most

LENGTHS = ("max_tokens", "max_completion_tokens")  # what servers call the most tokens of an answer
FEW = 3  # replies without a word, and none with one, from which a model is seen to think all its tokens away


class Intake:
    """The accounts of one run.

    Parameters
    ----------
    endpoint : Endpoint
    cache : Cache
    prices : Prices
    budget : Budget
    replace : bool
        Answers take the place of those in the cache.
    """

    def __init__(
        self, endpoint: Endpoint, cache: Cache, prices: Prices, budget: Budget, *, replace: bool
    ) -> None:
        self.endpoint, self.cache, self.prices, self.budget, self.replace = (
            endpoint,
            cache,
            prices,
            budget,
            replace,
        )
        self.calls, self.unmetered, self.faults = 0, 0, Counter[str]()
        self.spent: float | None = 0.0
        self.done = 0  # requests of which nothing is missing any more
        self.note = ""  # what there is to say while nothing seems to happen
        self.thoughts: int | None = 0  # replies that were thought away; None once one was not
        known = read_ignored(cache, endpoint.model)
        self.lengths = sorted(LENGTHS, key=lambda name: f"{name}: refused" in known)

    def phrase(self, sent: dict[str, Any]) -> dict[str, Any]:
        """Return a request in this server's words; the cache knows it by ours."""
        names = {"max_tokens": self.lengths[0], **self.endpoint.names}
        return {names.get(name, name): v for name, v in sent.items() if names.get(name, name) is not None}

    def learn_length(self, refusal: Refusal) -> bool:
        """Take from a refusal how this server calls an answer's length; False when it is about something else."""
        name = refusal.setting
        if name not in LENGTHS or "max_tokens" in self.endpoint.names or self.lengths == [name]:
            return False
        if name in self.lengths:  # else another request has learnt it meanwhile
            self.lengths.remove(name)
            enter(self.cache, Line(self.endpoint.model, self.endpoint.transport, f"{IGNORED}{name}: refused"))
        return True

    def bound(self, sent: dict[str, Any]) -> float | None:
        """Return the most that a request can cost; only looked at when there is a budget.

        Raises
        ------
        BudgetError
            With a budget, when the request does not limit its answer.
        """
        if self.budget.limit is None:
            return None
        prompt, completion = bound_tokens(sent)
        if completion is None:
            raise BudgetError(
                f"a budget is set, but nothing limits the answer to {describe_request(sent)}",
                where="requests.budget_usd",
                todo="give the request `max_tokens` (or `max_completion_tokens`), or set `requests.budget_usd: null`",
            )
        return self.prices.cost(sent["model"], self.endpoint.transport, prompt, completion)

    def weigh(self, sent: dict[str, Any]) -> int:
        """Return about how many tokens a request takes of a limit per minute; 0 where no limit is set."""
        if self.endpoint.tokens_per_minute is None:
            return 0
        return count_prompt(sent, estimate_tokens) + (read_most(sent) or 0) * sent.get("n", 1)

    def send(self, sent: dict[str, Any], *, earlier: bool = False) -> None:
        """Set aside what a request can cost before it goes out (see `Budget.reserve`); or what one can that went `earlier`."""
        self.budget.reserve(self.bound(sent), sent=earlier)
        self.calls += 1

    def take(self, work: Work, sent: dict[str, Any], reply: dict[str, Any]) -> int | None:
        """Keep what a reply holds; return the tokens that it took, None when not counted.

        Raises
        ------
        Fault
            A reply that holds no choices: nothing is kept, and it counts as a fault when given to `fail`.
        """
        entries, ignored = read_reply(work, sent, reply)
        broken = sum(map(is_broken, reply["choices"]))
        self.faults += Counter({"broken choice": broken} if broken else {})
        away = all(map(is_thought_away, entries.values()))
        self.thoughts = self.thoughts + 1 if away and self.thoughts is not None else None
        prompt, completion = (
            [getattr(entry, name) for entry in entries.values()]
            for name in ("prompt_tokens", "completion_tokens")
        )
        tokens = (sum(prompt), sum(completion)) if None not in [*prompt, *completion] else None
        with self.cache.transaction():
            self.cache.put([(work.request, entries)], replace=self.replace)
            self._enter(sent, METERED if tokens else UNMETERED, tokens)
            for name in ignored:
                self.note_ignored(sent, name)
        cost = self.prices.cost(sent["model"], self.endpoint.transport, *tokens) if tokens else None
        self.budget.settle(self.bound(sent), cost)
        self.spent = None if cost is None or self.spent is None else self.spent + cost
        return sum(tokens) if tokens else None

    def fail(self, sent: dict[str, Any], fault: Fault | None) -> None:
        """Count what went wrong with a request; what may have been billed all the same is entered with its upper bound."""
        if fault:
            self.faults[fault.kind] += 1
        if fault and fault.billed:
            self.unmetered += 1
            self._enter(sent, UNMETERED, None)
            self.budget.settle(self.bound(sent), None)
        else:
            self.budget.settle(self.bound(sent), 0.0)

    def decline(self, work: Work, sent: dict[str, Any], no: Declined) -> None:
        """Keep a server's no to what a request says as the answer to all its choices.

        Who read the prompt may bill it (Azure does): its upper bound counts against the budget.
        """
        prompt = bound_tokens(sent)[0]
        entry = Entry("", REFUSED + no.reason, 0, 0)
        with self.cache.transaction():
            self.cache.put([(work.request, dict.fromkeys(work.missing, entry))], replace=self.replace)
            self._enter(sent, UNMETERED, (prompt, 0))
        self.unmetered += 1
        cost = self.prices.cost(sent["model"], self.endpoint.transport, prompt, 0)
        self.budget.settle(self.bound(sent), cost)
        work.missing, work.doubted = [], False

    def check_thoughts(self, request: dict[str, Any]) -> None:
        """Stop when the model only thinks, and has never come to an end within as many tokens as `request` allows.

        Raises
        ------
        EndpointError
            When the first few answers are empty, and all of them ended because their tokens were used up.
        """
        if (self.thoughts or 0) < FEW:
            return
        ended = self.cache.query(
            "SELECT 1 FROM answers JOIN requests USING (key) WHERE json_extract(body, '$.model') = ? AND "
            "json_extract(body, '$.max_tokens') IS ? AND text != '' AND finish IS NOT 'length' LIMIT 1",
            request["model"],
            read_most(request),
        )
        if ended:
            self.thoughts = None
        else:
            raise EndpointError(
                f"the first {self.thoughts} replies are empty: the model used all of `max_tokens` for thinking",
                where=f"{self.endpoint.base_url}, model {self.endpoint.model}",
                todo="raise `teacher.max_tokens` (a judge's answers have 64 tokens at most), lower the model's reasoning where "
                "the server lets you, or ask a model that does not think first",
            )

    def note_ignored(self, sent: dict[str, Any], setting: str) -> None:
        """Enter that a setting was passed over."""
        enter(self.cache, Line(sent["model"], self.endpoint.transport, IGNORED + setting))

    def _enter(self, sent: dict[str, Any], entry: str, tokens: tuple[int, int] | None) -> None:
        prompt, completion = tokens or bound_tokens(sent)
        enter(self.cache, Line(sent["model"], self.endpoint.transport, entry, 1, prompt, completion or 0))
