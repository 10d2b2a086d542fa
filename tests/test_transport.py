import asyncio

import pytest
from conftest import make_endpoint, make_questions
from fault_server import FaultServer

from drot_utils.errors import EndpointError
from drot_utils.faults import Fault, Refusal
from drot_utils.transport import Transport, read_key

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
