"""Tests of `transport`."""

import asyncio

import pytest
from conftest import USE, make_endpoint, make_questions
from fault_server import FaultServer

from drot_utils.llm.cache import METERED, UNMETERED, Entry, read_ignored, read_ledger, request_key
from drot_utils.llm.client import ask_all
from drot_utils.llm.costs import Budget, read_prices
from drot_utils.llm.replies import Declined, Fault, Refusal, Work
from drot_utils.llm.transport import Intake, Transport, find_proxy, is_loopback, read_key
from drot_utils.study.errors import BudgetError, EndpointError

(QUESTION,) = make_questions(1)


def post(endpoint, path="/chat/completions"):
    async def ask():
        async with Transport(endpoint) as transport:
            return await transport.post(path, QUESTION, "it")

    return asyncio.run(ask())


def test_what_comes_back_whole():
    with FaultServer(per_minute=600) as server:
        reply, headers = post(make_endpoint(server.url))
    assert reply["choices"][0]["message"]["content"] and headers["x-ratelimit-remaining-requests"] == "9"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("429", "HTTP 429"), ("500", "HTTP 500"), ("503", "HTTP 503"), ("html", "HTTP 502"), ("hang", "timeout"), ("drip", "timeout"),
     ("reset", "broken connection"), ("truncated", "broken JSON"), ("wrong type", "no JSON"), ("bad unicode", "broken JSON")],
)  # fmt: skip
def test_what_may_pass_is_a_fault(fault, kind):
    with FaultServer(rates={fault: 1.0}) as server, pytest.raises(Fault) as caught:
        post(make_endpoint(server.url, timeout_s=1))
    assert caught.value.kind == kind and caught.value.billed == (not kind.startswith("HTTP"))


def test_nobody_there():
    with pytest.raises(Fault) as caught:
        post(make_endpoint("http://127.0.0.1:9/v1"))
    assert caught.value.unreachable and not caught.value.billed
    with pytest.raises(Fault) as caught:
        post(make_endpoint("http://no-such-host.invalid/v1"))
    assert caught.value.unreachable


def test_the_key_is_sent_and_blotted_out_where_it_comes_back(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-marked")
    with FaultServer(key="sk-other") as server, pytest.raises(Refusal) as caught:
        post(make_endpoint(server.url, api_key_env="MY_KEY"))
    assert server.keys == {"Bearer sk-marked"}
    assert "sk-marked" not in str(caught.value) and "Bearer [key]" in str(caught.value)
    assert "sk-marked" not in repr(caught.value.__cause__) + repr(caught.value.__context__)


@pytest.mark.parametrize("value", [None, "", "  ", "ключ", "a\nb"])
def test_keys_that_cannot_be(monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(EndpointError, match="set the environment variable MY_KEY") as caught:
        read_key(make_endpoint(api_key_env="MY_KEY"))
    assert not value or not value.strip() or value not in str(caught.value)


def test_no_key_wanted_and_a_key_with_a_line_break_behind_it(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-1\n")
    assert read_key(make_endpoint()) is None and read_key(make_endpoint(api_key_env="MY_KEY")) == "sk-1"


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True), ("127.8.0.1:80", True), ("localhost:8000", True), ("[::1]:80", True), ("0.0.0.0", True),
        ("my.localhost", True), ("10.0.0.1", False), ("localhost.org", False), ("api.openai.com", False),
    ],
)  # fmt: skip
def test_addresses_of_this_machine(host, own):
    assert is_loopback(f"http://{host}/v1") is own


@pytest.mark.parametrize("name", ["ALL_PROXY", "http_proxy", "HTTPS_PROXY"])
@pytest.mark.parametrize("value", ["socks://127.0.0.1:1/", "http://user:marked-secret@127.0.0.1:9"])
def test_this_machine_is_asked_without_a_proxy(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with FaultServer() as server:
        reply, _ = post(make_endpoint(server.url))
    assert reply["choices"]


FAR = "http://server.example/v1"


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://user:marked-secret@127.0.0.1:1/")
    with pytest.raises(EndpointError, match=r"the proxy that ALL_PROXY names cannot be used\n.*NO_PROXY") as caught:
        asyncio.run(open_and_close(FAR))
    assert "marked-secret" not in str(caught.value) + repr(caught.value.__cause__)


def test_a_dead_proxy_is_named(monkeypatch, cache):
    monkeypatch.setenv("HTTP_PROXY", "http://user:marked-secret@127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(EndpointError, match=r"nobody answers .*through the proxy in HTTP_PROXY") as caught:
        ask_all(make_questions(3), make_endpoint(FAR, max_retries=2), USE, cache, "asking")
    assert "marked-secret" not in str(caught.value)
    monkeypatch.setenv("NO_PROXY", "server.example")
    assert find_proxy(FAR) is None


def test_missing_certificates_are_named(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file.pem")
    with pytest.raises(EndpointError, match=r"certificates that SSL_CERT_FILE names cannot be read .*No such file"):
        asyncio.run(open_and_close(FAR))


async def open_and_close(url):
    async with Transport(make_endpoint(url)):
        pass


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
    assert line.entry == UNMETERED and line.completion_tokens == 40 and line.prompt_tokens >= len("Question 0?")
    assert intake.spent is None and intake.budget.spent > 0


def test_what_went_wrong_and_may_have_been_billed_counts_against_the_budget(cache):
    intake, sent = open_intake(cache, limit=1.0), open_work().outgoing()
    for fault in (Fault("timeout"), Fault("HTTP 500", billed=False), None):
        intake.send(sent)
        intake.fail(sent, fault)
    assert intake.unmetered == 1 and dict(intake.faults) == {"timeout": 1, "HTTP 500": 1}
    assert [line.entry for line in read_ledger(cache)] == [UNMETERED]
    assert intake.budget.reserved == pytest.approx(0) and intake.budget.spent == pytest.approx(intake.bound(sent))
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
    assert cache.read([work.key])[work.key] == dict.fromkeys((0, 1), Entry("", "refused: content_filter", 0, 0))
    (line,) = read_ledger(cache)
    assert (line.entry, line.times, line.completion_tokens) == (UNMETERED, 1, 0) and line.prompt_tokens > 0
    assert work.missing == [] and intake.budget.reserved == 0 < intake.budget.spent < intake.bound(sent)


def test_a_request_in_a_servers_words(cache):
    sent = open_work().outgoing()
    assert open_intake(cache).phrase(sent) == sent
    named = open_intake(cache, names={"seed": "random_seed", "temperature": None, "max_tokens": None}).phrase(sent)
    assert named["random_seed"] == sent["seed"] and not {"seed", "temperature", "max_tokens"} & set(named)


def test_a_models_name_of_the_length_is_known_to_the_next_run(cache):
    no = Refusal("no", status=400, where="", todo="", setting="max_tokens")
    intake = open_intake(cache)
    assert intake.learn_length(no) and intake.learn_length(no)  # the second was under way when the first came back
    assert read_ignored(cache, MODEL) == {"max_tokens: refused": 1}
    later = open_intake(cache)
    assert "max_completion_tokens" in later.phrase(open_work().outgoing())
    other = Refusal("no", status=400, where="", todo="", setting="max_completion_tokens")
    assert later.learn_length(other) and not later.learn_length(no)  # a server that takes neither
    assert not open_intake(cache, names={"max_tokens": "length"}).learn_length(no)
    assert not later.learn_length(Refusal("no", status=400, where="", todo="", setting="top_p"))
