"""Tests of `accounts`."""

import pytest
from conftest import USE, make_endpoint, make_questions

from drot_utils.llm.accounts import Accounts, Usage, bound_tokens, read_prices
from drot_utils.llm.cache import Answer, request_key
from drot_utils.llm.faults import Declined, Fault, Refusal
from drot_utils.llm.replies import Work
from drot_utils.study.errors import BudgetError

MODEL = "gpt-4o-mini"
(REQUEST,) = make_questions(1, n=2, model=MODEL)
CHOICES = [{"message": {"content": text}, "finish_reason": "stop"} for text in ("one", "two")]
REPLY = {"choices": CHOICES, "usage": {"prompt_tokens": 1000, "completion_tokens": 40}}
PRICES = read_prices(USE.prices)


def open_accounts(cache, limit=None, replace=False, **changes):
    settings = USE.model_copy(update={"budget_usd": limit, "cache": "refresh" if replace else "use"})
    return Accounts(make_endpoint(**{"model": MODEL, **changes}), settings, cache)


def open_work():
    return Work(request_key(REQUEST), REQUEST, [0, 1])


def test_a_reply_is_kept_and_billed_at_once(cache):
    accounts, work = open_accounts(cache, limit=1.0), open_work()
    accounts.take(work, work.outgoing(), REPLY)
    assert cache.read([work.key])[work.key] == {0: Answer("one", "stop", 1000, 20), 1: Answer("two", "stop", 0, 20)}
    assert cache.list_spent() == [(MODEL, "direct", 1000, 40)]
    assert accounts.spent == accounts.billed == pytest.approx((0.15 * 1000 + 0.6 * 40) / 1e6)


def test_a_reply_without_counts_is_billed_with_its_bound(cache):
    accounts, work = open_accounts(cache, limit=1.0), open_work()
    accounts.take(work, work.outgoing(), {"choices": CHOICES})
    ((*_, prompt, completion),) = cache.list_spent()
    assert prompt >= len("Question 0?") and completion == 40
    assert accounts.spent is None and accounts.billed > 0


def test_what_went_wrong_and_may_have_been_billed_counts_against_the_budget(cache):
    accounts, sent = open_accounts(cache, limit=1.0), open_work().outgoing()
    for fault in (Fault("timeout"), Fault("HTTP 500", billed=False)):
        accounts.fail(fault, sent)
    assert accounts.unmetered == 1 and dict(accounts.faults) == {"timeout": 1, "HTTP 500": 1}
    assert cache.list_spent() == [(MODEL, "direct", *bound_tokens(sent, accounts.endpoint))]
    assert accounts.billed == pytest.approx(PRICES.cost(MODEL, "direct", *bound_tokens(sent, accounts.endpoint)))
    assert accounts.spent == 0.0


def test_a_reply_that_is_none_leaves_nothing(cache):
    accounts, work = open_accounts(cache), open_work()
    with pytest.raises(Fault):
        accounts.take(work, work.outgoing(), {"choices": []})
    assert cache.read([work.key]) == {} and cache.list_spent() == [] and work.missing == [0, 1]


def test_what_was_ignored_is_written_down(cache):
    accounts, work = open_accounts(cache), open_work()
    accounts.take(work, work.outgoing(), {"choices": CHOICES[:1]})
    assert cache.list_ignored(MODEL) == {"n: fewer choices than asked": 1}


def test_earlier_answers_stay_unless_they_are_to_be_replaced(cache):
    cache.put([(REQUEST, {0: Answer("earlier")})])
    for replace, expected in ((False, "earlier"), (True, "one")):
        work = open_work()
        open_accounts(cache, replace=replace).take(work, work.outgoing(), REPLY)
        assert cache.read([work.key])[work.key][0].text == expected


def test_a_budget_is_that_of_all_notebooks_that_share_the_cache(cache):
    one, other = (open_accounts(cache, limit=0.0001) for _ in range(2))
    for accounts in (one, other):
        accounts.check_budget()
    work = open_work()
    while one.billed < 0.0001:
        one.take(work, work.outgoing(), REPLY)
    for accounts in (one, other):
        with pytest.raises(BudgetError, match="is spent"):
            accounts.check_budget()


def test_a_budget_needs_limited_answers(cache):
    unlimited = {name: value for name, value in REQUEST.items() if name != "max_tokens"}
    with pytest.raises(BudgetError, match=r"nothing limits the answers"):
        open_accounts(cache, limit=1.0).open_budget([unlimited])
    open_accounts(cache).open_budget([unlimited])
    with pytest.raises(BudgetError, match=r"nothing limits the answers\n.*`names` not leave it out"):
        open_accounts(cache, limit=1.0, names={"max_tokens": None}).open_budget([REQUEST])
    open_accounts(cache, limit=1.0, names={"max_tokens": "length"}).open_budget([REQUEST])


@pytest.mark.parametrize("names", [{}, {"max_tokens": "length"}, {"max_tokens": "max_completion_tokens"}])
def test_the_bound_of_an_answer_is_known_under_every_name(cache, names):
    accounts = open_accounts(cache, names=names)
    accounts.lengths.reverse()
    for sent in (REQUEST, accounts.phrase(REQUEST)):
        assert bound_tokens(sent, accounts.endpoint)[1] == 40
    assert bound_tokens(REQUEST, make_endpoint(names={"max_tokens": None}))[1] is None


def test_a_budget_needs_a_price(cache):
    with pytest.raises(BudgetError, match=r"price of nobody \(direct\) is not known") as caught:
        open_accounts(cache, limit=1.0, model="nobody").open_budget([REQUEST])
    assert "requests.prices" in caught.value.todo
    open_accounts(cache, model="nobody").open_budget([REQUEST])


def test_what_was_spent_counts_over_restarts_and_what_nobody_metered_counts_in_full(cache):
    cache.enter(MODEL, "direct", "metered", 1_000_000, 0)
    cache.enter(MODEL, "direct", "unmetered", 0, 1_000_000)
    cache.enter(MODEL, "direct", "ignored: n")
    (question,) = make_questions(1, model=MODEL, max_tokens=100_000)  # at most $0.06
    accounts = open_accounts(cache, limit=0.82)
    accounts.open_budget([question])
    assert accounts.billed == pytest.approx(0.75)
    with pytest.raises(BudgetError, match=r"about \$0.0600; of \$0.80, \$0.7500 are spent"):
        open_accounts(cache, limit=0.8).open_budget([question])
    cache.enter("of-another-run", "direct", "metered", 1, 1)
    with pytest.raises(BudgetError, match="of-another-run"):
        open_accounts(cache, limit=0.82).open_budget([question])


def test_a_budget_that_is_spent_stops(cache):
    accounts, work = open_accounts(cache, limit=0.0001), open_work()
    accounts.check_budget()
    accounts.take(work, work.outgoing(), REPLY)
    with pytest.raises(BudgetError, match=r"is spent \(\$0.0002, and what was under way\)\n.*raise the budget"):
        accounts.check_budget()


def test_a_no_to_one_input_is_kept_and_its_prompt_may_be_billed(cache):
    accounts, work = open_accounts(cache, limit=1.0), open_work()
    sent = work.outgoing()
    accounts.decline(work, sent, Declined("content_filter"))
    assert cache.read([work.key])[work.key] == dict.fromkeys((0, 1), Answer("", "refused: content_filter", 0, 0))
    assert cache.list_spent() == [(MODEL, "direct", bound_tokens(sent, accounts.endpoint)[0], 0)] and work.missing == []
    assert 0 < accounts.billed < PRICES.cost(MODEL, "direct", *bound_tokens(sent, accounts.endpoint))


def test_a_request_in_a_servers_words(cache):
    sent = open_work().outgoing()
    assert open_accounts(cache).phrase(sent) == sent
    named = open_accounts(cache, names={"seed": "random_seed", "temperature": None, "max_tokens": None}).phrase(sent)
    assert named["random_seed"] == sent["seed"] and not {"seed", "temperature", "max_tokens"} & set(named)


def test_a_models_name_of_the_length_is_known_to_the_next_run(cache):
    no, accounts, work = Refusal("no", status=400, setting="max_tokens"), open_accounts(cache), open_work()
    sent = work.outgoing()
    # The second was under way when the first came back.
    assert accounts.learn(no, work, sent, False) and accounts.learn(no, work, sent, False)
    assert accounts.settled and not accounts.learn(no, work, sent, True)  # both names refused as the first one
    assert cache.list_ignored(MODEL) == {"max_tokens: refused": 1}
    later = open_accounts(cache)
    assert "max_completion_tokens" in later.phrase(sent)
    other = Refusal("no", status=400, setting="max_completion_tokens")
    assert later.learn(other, work, sent, False) and not later.learn(
        no, work, sent, False
    )  # a server that takes neither
    assert not open_accounts(cache, names={"max_tokens": "length"}).learn(no, work, sent, False)
    assert not open_accounts(cache).learn(Refusal("no", status=400, setting="top_p"), work, sent, False)


def test_usages_add_up_and_what_is_not_known_stays_so():
    one = Usage(requests=2, choices=4, calls=3, faults={"timeout": 1}, prompt_tokens=10, cost_usd=0.5, ignored={"n": 3})
    two = Usage(
        requests=1, choices=1, faults={"timeout": 1, "HTTP 500": 2}, prompt_tokens=None, cost_usd=0.25, ignored={"n": 5}
    )
    both = one + two
    assert (both.requests, both.choices, both.calls) == (3, 5, 3)
    assert both.faults == {"HTTP 500": 2, "timeout": 2}
    assert both.prompt_tokens is None and both.cost_usd == 0.75
    assert both.ignored == {"n": 5}  # counted over the cache's life: the later count holds the earlier
    assert Usage() + one == one


def test_who_is_asked_twice_is_recorded_with_both():
    record = {}
    Usage(requests=2, faults={"timeout": 1}, cost_usd=None).add_to(record, "usage of far")
    Usage(requests=1, faults={"timeout": 2}).add_to(record, "usage of far")
    assert record["usage of far"]["requests"] == 3 and record["usage of far"]["faults"] == {"timeout": 3}
    assert record["usage of far"]["cost_usd"] is None
