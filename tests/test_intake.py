import pytest
from conftest import make_endpoint, make_questions

from drot_utils.answers import Work
from drot_utils.cache import Entry, request_key
from drot_utils.errors import BudgetError
from drot_utils.faults import Fault
from drot_utils.intake import Intake
from drot_utils.ledger import METERED, UNMETERED, read_ignored, read_ledger
from drot_utils.prices import Budget, read_prices

MODEL = "gpt-4o-mini"
(REQUEST,) = make_questions(1, n=2, model=MODEL)
CHOICES = [{"message": {"content": text}, "finish_reason": "stop"} for text in ("one", "two")]
REPLY = {"choices": CHOICES, "usage": {"prompt_tokens": 1000, "completion_tokens": 40}}


def open_intake(cache, limit=None, replace=False, **changes):
    prices = read_prices("data/prices.yaml")
    budget = Budget(limit, prices, cache, {(MODEL, "direct")})
    return Intake(make_endpoint(model=MODEL, **changes), cache, prices, budget, replace=replace)


def open_work():
    return Work(request_key(REQUEST), REQUEST, [0, 1])


def test_a_reply_is_kept_and_entered_at_once(cache):
    intake, work = open_intake(cache, limit=1.0), open_work()
    sent = work.outgoing()
    intake.send(sent)
    assert intake.budget.reserved > 0 and intake.take(work, sent, REPLY) == 1040
    assert cache.read([work.key])[work.key] == {
        0: Entry("one", "stop", 1000, 20),
        1: Entry("two", "stop", 0, 20),
    }
    (line,) = read_ledger(cache)
    assert (line.entry, line.times, line.prompt_tokens, line.completion_tokens) == (METERED, 1, 1000, 40)
    assert intake.spent == intake.budget.spent == pytest.approx((0.15 * 1000 + 0.6 * 40) / 1e6)
    assert intake.budget.reserved == 0 and intake.calls == 1


def test_a_reply_without_counts_is_entered_with_its_bound(cache):
    intake, work = open_intake(cache, limit=1.0), open_work()
    sent = work.outgoing()
    intake.send(sent)
    assert intake.take(work, sent, {"choices": CHOICES}) is None
    (line,) = read_ledger(cache)
    assert (
        line.entry == UNMETERED and line.completion_tokens == 40 and line.prompt_tokens >= len("Question 0?")
    )
    assert intake.spent is None and intake.budget.spent > 0


def test_what_went_wrong_and_may_have_been_billed_counts_against_the_budget(cache):
    intake, sent = open_intake(cache, limit=1.0), open_work().outgoing()
    for fault in (Fault("timeout"), Fault("HTTP 500", billed=False), None):
        intake.send(sent)
        intake.fail(sent, fault)
    assert intake.unmetered == 1 and dict(intake.faults) == {"timeout": 1, "HTTP 500": 1}
    assert [line.entry for line in read_ledger(cache)] == [UNMETERED]
    assert intake.budget.reserved == pytest.approx(0) and intake.budget.spent == pytest.approx(
        intake.bound(sent)
    )
    assert intake.spent == 0.0


def test_a_reply_that_is_none_leaves_nothing(cache):
    intake, work = open_intake(cache), open_work()
    with pytest.raises(Fault):
        intake.take(work, work.outgoing(), {"choices": []})
    assert cache.present([work.key]) == {} and read_ledger(cache) == [] and work.missing == [0, 1]


def test_what_was_passed_over_is_written_down(cache):
    intake, work = open_intake(cache), open_work()
    intake.take(work, work.outgoing(), {"choices": CHOICES[:1]})
    assert read_ignored(cache, MODEL) == {"n: fewer choices than asked": 1}


def test_earlier_answers_stay_unless_they_are_to_be_replaced(cache):
    cache.put([(REQUEST, {0: Entry("earlier")})])
    for replace, expected in ((False, "earlier"), (True, "one")):
        work = open_work()
        open_intake(cache, replace=replace).take(work, work.outgoing(), REPLY)
        assert cache.read([work.key])[work.key][0].text == expected


def test_a_budget_needs_limited_answers(cache):
    intake, sent = open_intake(cache, limit=1.0), open_work().outgoing()
    del sent["max_tokens"]
    with pytest.raises(BudgetError, match=r"nothing limits the answer to the request 'Question 0\?'"):
        intake.send(sent)
    assert open_intake(cache).bound(sent) is None


def test_weights_are_for_limits_of_tokens(cache):
    sent = open_work().outgoing()
    assert open_intake(cache).weigh(sent) == 0
    assert open_intake(cache, tokens_per_minute=5).weigh(sent) == 3 + 8 + 40
