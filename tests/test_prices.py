import pytest
import yaml

from drot_utils.errors import BudgetError, ParamsError
from drot_utils.ledger import METERED, UNMETERED, Line, enter
from drot_utils.prices import Budget, read_prices

DIRECT = {("gpt-4o-mini", "direct")}


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
    [({"input": -1.0}, "`input`"), ({"output": "absent"}, "`output`"), ({"batch": 2.0}, "`batch`"), ({"per": "token"}, "`per`")],
)  # fmt: skip
def test_a_wrong_entry_is_named(tmp_path, changes, message):
    with pytest.raises(ParamsError, match=message) as caught:
        read_prices(write(tmp_path / "p.yaml", **changes))
    assert "p.yaml" in str(caught.value)


def test_no_table_and_no_yaml(tmp_path):
    with pytest.raises(ParamsError, match="no such table"):
        read_prices(str(tmp_path / "nothing.yaml"))
    for text in ("a: [", "- 1", "\xff"):
        (tmp_path / "p.yaml").write_text(text, encoding="latin-1")
        with pytest.raises(ParamsError, match="no table of prices"):
            read_prices(str(tmp_path / "p.yaml"))


def test_a_budget_needs_a_price(prices, cache):
    with pytest.raises(BudgetError, match=r"price of nobody \(direct\) is not known") as caught:
        Budget(1.0, prices, cache, {("nobody", "direct")})
    assert "requests.prices" in caught.value.todo
    assert Budget(None, prices, cache, {("nobody", "direct")}).fits(1e9)


def test_what_was_spent_counts_over_restarts_and_what_nobody_metered_counts_in_full(prices, cache):
    enter(cache, Line("gpt-4o-mini", "direct", METERED, 1, 1_000_000, 0))
    enter(cache, Line("gpt-4o-mini", "direct", UNMETERED, 1, 0, 1_000_000))
    enter(cache, Line("gpt-4o-mini", "direct", "ignored: n", 5, 0, 0))
    budget = Budget(1.0, prices, cache, DIRECT)
    assert budget.spent == pytest.approx(0.75)
    budget.check(0.25)
    with pytest.raises(BudgetError, match=r"about \$0.2600; of \$1.00, \$0.7500 are spent"):
        budget.check(0.26)
    enter(cache, Line("of-another-run", "direct", METERED, 1, 1, 1))
    with pytest.raises(BudgetError, match="of-another-run"):
        Budget(1.0, prices, cache, DIRECT)


def test_what_is_under_way_is_set_aside(prices, cache):
    budget = Budget(1.0, prices, cache, DIRECT)
    budget.reserve(0.6)
    assert not budget.fits(0.6)
    with pytest.raises(BudgetError, match="raise the budget"):
        budget.reserve(0.6)
    budget.settle(0.6, 0.1)
    budget.reserve(0.6)
    budget.settle(0.6, None)
    assert budget.spent == pytest.approx(0.7) and budget.reserved == pytest.approx(0)
    budget.reserve(5.0, sent=True)  # it went out before this run
    assert budget.reserved == 5.0
