"""Tests of the prices and the forecast in `accounts`."""

import pytest
import yaml
from conftest import USE, make_endpoint, make_questions
from hypothesis import given
from hypothesis import strategies as st

from drot_utils.llm import accounts
from drot_utils.llm.accounts import ENOUGH, forecast, read_prices
from drot_utils.llm.cache import Answer
from drot_utils.study.errors import ParamsError


def test_messages_have_a_frame_and_prompts_have_none():
    (chat,) = make_questions(1)
    assert accounts.count_prompt(chat) == 3 + 8  # of 11 bytes, 4 a token
    assert accounts.count_prompt({"prompt": "sixteen letters!"}) == 4


@given(st.text(st.characters(codec="utf-8")), st.integers(1, 9))
def test_the_bound_holds_for_a_tokenizer_of_bytes(text, n):
    prompt, completion = accounts.bound_tokens({"prompt": text, "max_tokens": 20, "n": n}, make_endpoint())
    assert prompt >= len(text.encode()) >= accounts.count_prompt({"prompt": text}) and completion == 20 * n


def test_what_limits_an_answer():
    bounds = [accounts.bound_tokens({"prompt": "", **more}, make_endpoint())[1] for more in ({"max_tokens": 5}, {})]
    assert bounds == [5, None]


@pytest.fixture
def prices():
    return read_prices("data/prices.yaml")


def write(path, **changes):
    entry = {"input": 1.0, "output": 2.0, "batch": None, "as_of": "2026-01-01", "source": "here", **changes}
    path.write_text(yaml.safe_dump({"m": {k: v for k, v in entry.items() if v != "absent"}}).replace("'", ""))
    return str(path)


def test_the_table_is_dated_and_sourced(prices):
    assert len(prices.table) >= 5
    for price in prices.table.values():
        assert price.as_of.year >= 2026 and price.source and 0 < price.input <= price.output


def test_costs_and_what_is_not_known(prices):
    assert prices.cost("gpt-4o-mini", "direct", 1_000_000, 500_000) == pytest.approx(0.15 + 0.3)
    assert prices.cost("gpt-4o-mini", "batch", 1_000_000, 500_000) == pytest.approx(0.225)
    assert prices.cost("gpt-4o-mini", "direct", None, 5) is None
    assert prices.cost("gpt-4o-mini-2024-07-18", "direct", 1, 1) is None  # a snapshot may cost something else
    assert "cost unknown" in prices.say("nobody") and "2026" in prices.say("gpt-4o-mini")


def test_a_table_of_ones_own_and_a_model_without_a_batch_price(tmp_path):
    own = read_prices(write(tmp_path / "p.yaml"))
    assert own.cost("m", "direct", 1_000_000, 1_000_000) == 3.0 and own.cost("m", "batch", 1, 1) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"input": -1.0}, "`m.input`"), ({"output": "absent"}, "`m.output`"), ({"batch": 2.0}, "`m.batch`"), ({"per": "token"}, "`m.per`")],
)  # fmt: skip
def test_a_wrong_entry_is_named(tmp_path, changes, message):
    with pytest.raises(ParamsError, match=message) as caught:
        read_prices(write(tmp_path / "p.yaml", **changes))
    assert "p.yaml" in str(caught.value)


def test_no_table_and_no_yaml(tmp_path):
    with pytest.raises(ParamsError, match=r"no table of prices \(.*No such file"):
        read_prices(str(tmp_path / "nothing.yaml"))
    for text in ("a: [", "- 1", "\xff"):
        (tmp_path / "p.yaml").write_text(text, encoding="latin-1")
        with pytest.raises(ParamsError, match="no table of prices"):
            read_prices(str(tmp_path / "p.yaml"))


MODEL = "gpt-4o-mini"


def test_what_is_not_in_the_cache_is_counted_and_priced(cache):
    requests = make_questions(10, n=2, model=MODEL)
    cache.put([(requests[0], {0: Answer("a")}), (requests[1], {0: Answer("a"), 1: Answer("b")})])
    plan = forecast(requests, make_endpoint(model=MODEL), USE, cache)
    assert (plan.requests, plan.to_ask, plan.choices) == (10, 9, 17)
    assert plan.prompt_tokens == 9 * (3 + 8) and plan.completion_tokens == 17 * 20
    assert plan.cost_usd == pytest.approx((0.15 * 99 + 0.6 * 340) / 1e6)
    assert "estimated at 4 bytes a token" in plan.how and "at most" in plan.how and plan.minutes is None
    assert (
        forecast(requests, make_endpoint(model=MODEL), USE.model_copy(update={"cache": "refresh"}), cache).to_ask == 10
    )
    assert forecast(requests, make_endpoint(model=MODEL), USE, None).to_ask == 10


def test_answers_are_taken_to_be_as_long_as_earlier_ones_of_the_model(cache):
    for model, tokens in ((MODEL, 6), ("other", 600)):
        cache.put((r, {0: Answer("a", None, 10, tokens)}) for r in make_questions(ENOUGH, model=model))
    cache.put((r, {0: Answer("recorded")}) for r in make_questions(5, model=MODEL, seed=2))
    plan = forecast(make_questions(5, model=MODEL, seed=3), make_endpoint(model=MODEL), USE, cache)
    assert plan.completion_tokens == 30 and f"as long as {ENOUGH} earlier ones (6 tokens)" in plan.how


def test_what_is_not_known_is_null_and_what_is_in_the_cache_costs_nothing(cache):
    requests = make_questions(3)
    plan = forecast(requests, make_endpoint(), USE, cache)
    assert plan.cost_usd is None and "price of m not in data/prices.yaml: cost unknown" in plan.how
    for request in requests:
        del request["max_tokens"]
    plan = forecast(requests, make_endpoint(model=MODEL), USE, cache)
    assert plan.completion_tokens is None and plan.cost_usd is None and "nothing limits" in plan.how
    cache.put((r, {0: Answer("a")}) for r in requests)
    assert forecast(requests, make_endpoint(), USE, cache).cost_usd == 0.0


def test_time_at_the_limits_set(cache):
    requests = make_questions(120)
    assert forecast(requests, make_endpoint(requests_per_minute=60), USE, cache).minutes == 2
    both = make_endpoint(requests_per_minute=60, tokens_per_minute=310)
    assert forecast(requests, both, USE, cache).minutes == pytest.approx(120 * 31 / 310, rel=0.02)
    assert forecast(requests, make_endpoint(requests_per_minute=60, transport="batch"), USE, cache).minutes is None
