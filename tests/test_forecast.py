import pytest
from conftest import make_endpoint, make_questions

from drot_utils.cache import Entry
from drot_utils.forecast import ENOUGH, forecast
from drot_utils.prices import read_prices

PRICES = read_prices("data/prices.yaml")
MODEL = "gpt-4o-mini"


def test_what_is_not_in_the_cache_is_counted_and_priced(cache):
    requests = make_questions(10, n=2, model=MODEL)
    cache.put([(requests[0], {0: Entry("a")}), (requests[1], {0: Entry("a"), 1: Entry("b")})])
    plan = forecast(requests, make_endpoint(model=MODEL), PRICES, cache)
    assert (plan.requests, plan.to_ask, plan.choices) == (10, 9, 17)
    assert plan.prompt_tokens == 9 * (3 + 8) and plan.completion_tokens == 17 * 20
    assert plan.cost_usd == pytest.approx((0.15 * 99 + 0.6 * 340) / 1e6)
    assert "estimated at 4 bytes a token" in plan.how and "at most" in plan.how and plan.minutes is None
    assert forecast(requests, make_endpoint(model=MODEL), PRICES, cache, refresh=True).to_ask == 10
    assert forecast(requests, make_endpoint(model=MODEL), PRICES, None).to_ask == 10


def test_answers_are_taken_to_be_as_long_as_earlier_ones_of_the_model(cache):
    for model, tokens in ((MODEL, 6), ("other", 600)):
        cache.put((r, {0: Entry("a", None, 10, tokens)}) for r in make_questions(ENOUGH, model=model))
    cache.put((r, {0: Entry("recorded")}) for r in make_questions(5, model=MODEL, seed=2))
    plan = forecast(make_questions(5, model=MODEL, seed=3), make_endpoint(model=MODEL), PRICES, cache)
    assert plan.completion_tokens == 30 and f"as long as {ENOUGH} earlier ones (6 tokens)" in plan.how


def test_what_is_not_known_is_null_and_what_is_in_the_cache_costs_nothing(cache):
    requests = make_questions(3)
    plan = forecast(requests, make_endpoint(), PRICES, cache)
    assert plan.cost_usd is None and "price of m not in data/prices.yaml: cost unknown" in plan.how
    for request in requests:
        del request["max_tokens"]
    plan = forecast(requests, make_endpoint(model=MODEL), PRICES, cache)
    assert plan.completion_tokens is None and plan.cost_usd is None and "nothing limits" in plan.how
    cache.put((r, {0: Entry("a")}) for r in requests)
    assert forecast(requests, make_endpoint(), PRICES, cache).cost_usd == 0.0


def test_time_at_the_limits_set(cache):
    requests = make_questions(120)
    assert forecast(requests, make_endpoint(requests_per_minute=60), PRICES, cache).minutes == 2
    both = make_endpoint(requests_per_minute=60, tokens_per_minute=310)
    assert forecast(requests, both, PRICES, cache).minutes == pytest.approx(120 * 31 / 310, rel=0.02)
    assert (
        forecast(requests, make_endpoint(requests_per_minute=60, transport="batch"), PRICES, cache).minutes
        is None
    )
