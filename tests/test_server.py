"""Tests of `server`."""

import asyncio

import pytest
from conftest import USE, make_endpoint, make_questions
from fault_server import FaultServer

from drot_utils.llm.accounts import Accounts
from drot_utils.llm.client import ask_all
from drot_utils.llm.faults import Fault, Refusal
from drot_utils.llm.replies import list_choices
from drot_utils.llm.server import PATIENCE, Server, is_loopback, read_key
from drot_utils.study.errors import EndpointError

(QUESTION,) = make_questions(1)


@pytest.fixture
def post(cache):
    """Post a request to an endpoint, in one try, and return what comes back."""

    async def ask(endpoint):
        server = Server(Accounts(endpoint, USE, cache))
        async with server.client:
            return await server.ask(QUESTION)

    return lambda endpoint: asyncio.run(ask(endpoint))


def test_what_comes_back_whole(post):
    with FaultServer() as server:
        assert list_choices(post(make_endpoint(server.url)))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("429", "HTTP 429"), ("500", "HTTP 500"), ("503", "HTTP 503"), ("html", "HTTP 502"), ("hang", "timeout"), ("drip", "timeout"),
     ("reset", "broken connection"), ("truncated", "broken JSON"), ("wrong type", "no JSON"), ("bad unicode", "broken JSON")],
)  # fmt: skip
def test_what_may_pass_is_a_fault(post, fault, kind):
    with FaultServer(rates={fault: 1.0}) as server, pytest.raises(Fault) as caught:
        post(make_endpoint(server.url, timeout_s=1, max_retries=0))
    assert caught.value.kind == kind and caught.value.billed == (not kind.startswith("HTTP"))


def test_nobody_there(post):
    with pytest.raises(Fault) as caught:
        post(make_endpoint("http://127.0.0.1:9/v1", max_retries=0))
    assert caught.value.unreachable and not caught.value.billed
    with pytest.raises(Fault) as caught:
        post(make_endpoint("http://no-such-host.invalid/v1", max_retries=0))
    assert caught.value.unreachable


def test_the_key_is_sent_and_blotted_out_where_it_comes_back(monkeypatch, post):
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
def test_this_machine_is_asked_without_a_proxy(monkeypatch, post, name, value):
    monkeypatch.setenv(name, value)
    with FaultServer() as server:
        assert list_choices(post(make_endpoint(server.url)))


FAR = "http://server.example/v1"


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch, post):
    monkeypatch.setenv("ALL_PROXY", "socks://user:marked-secret@127.0.0.1:1/")
    with pytest.raises(
        EndpointError, match=r"the proxy cannot be used that stands in .*ALL_PROXY.*\n.*NO_PROXY"
    ) as caught:
        post(make_endpoint(FAR))
    assert "marked-secret" not in str(caught.value) + repr(caught.value.__cause__)


def test_a_dead_proxy_is_named(monkeypatch, cache):
    monkeypatch.setenv("HTTP_PROXY", "http://user:marked-secret@127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy", "HTTPS_PROXY", "https_proxy", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EndpointError, match=r"nobody answers .*the environment sets HTTP_PROXY\)") as caught:
        ask_all(make_questions(3), make_endpoint(FAR, max_retries=2), USE, cache, "asking")
    assert "marked-secret" not in str(caught.value)


def test_missing_certificates_are_named(monkeypatch, post):
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file.pem")
    with pytest.raises(EndpointError, match=r"certificates cannot be read .*No such file.*SSL_CERT_FILE"):
        post(make_endpoint(FAR))


def test_load_has_two_minutes_at_least_by_default():
    assert PATIENCE >= 120
