import pytest
from conftest import make_endpoint, make_questions

from drot_utils.answers import Work
from drot_utils.cache import Entry, request_key
from drot_utils.errors import BudgetError
from drot_utils.faults import Declined, Fault, Refusal
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


def test_a_no_to_one_input_is_kept_and_its_prompt_may_be_billed(cache):
    intake, work = open_intake(cache, limit=1.0), open_work()
    sent = work.outgoing()
    intake.send(sent)
    intake.decline(work, sent, Declined("content_filter", "no"))
    assert cache.read([work.key])[work.key] == dict.fromkeys(
        (0, 1), Entry("", "refused: content_filter", 0, 0)
    )
    (line,) = read_ledger(cache)
    assert (line.entry, line.times, line.completion_tokens) == (UNMETERED, 1, 0) and line.prompt_tokens > 0
    assert work.missing == [] and intake.budget.reserved == 0 < intake.budget.spent < intake.bound(sent)


def test_a_request_in_a_servers_words(cache):
    sent = open_work().outgoing()
    assert open_intake(cache).phrase(sent) == sent
    named = open_intake(cache, names={"seed": "random_seed", "temperature": None, "max_tokens": None}).phrase(
        sent
    )
    assert named["random_seed"] == sent["seed"] and not {"seed", "temperature", "max_tokens"} & set(named)


def test_a_models_name_of_the_length_is_known_to_the_next_run(cache):
    no = Refusal("no", status=400, where="", todo="", setting="max_tokens")
    intake = open_intake(cache)
    assert intake.learn_length(no) and intake.learn_length(
        no
    )  # the second was under way when the first came back
    assert read_ignored(cache, MODEL) == {"max_tokens: refused": 1}
    later = open_intake(cache)
    assert "max_completion_tokens" in later.phrase(open_work().outgoing())
    other = Refusal("no", status=400, where="", todo="", setting="max_completion_tokens")
    assert later.learn_length(other) and not later.learn_length(no)  # a server that takes neither
    assert not open_intake(cache, names={"max_tokens": "length"}).learn_length(no)
    assert not later.learn_length(Refusal("no", status=400, where="", todo="", setting="top_p"))
