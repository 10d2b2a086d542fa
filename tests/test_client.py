"""Asking a server that goes wrong: nothing is lost, nothing asked twice, and every end is one clear error."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
from fault_server import FAULTS, USE, FaultServer, expected_text, make_endpoint, make_questions
from hypothesis import given
from hypothesis import strategies as st

from drot_utils.llm.cache import Answer, Cache
from drot_utils.llm.client import GIVE_UP, _open_limit, ask_all
from drot_utils.llm.replies import derive_choice_seed
from drot_utils.study.errors import BudgetError, EndpointError
from drot_utils.study.paths import ROOT

QUICK = {fault: 0.2 / (len(FAULTS) - 2) for fault in FAULTS if fault not in ("hang", "drip")}


def ask(requests, endpoint, file, **settings):
    return ask_all(requests, endpoint, USE.model_copy(update=settings), file, "asking")


def sent_for(request, choice, first=0):
    """What a server that gives one choice at a time was asked for one."""
    body = {name: value for name, value in request.items() if name != "n"}
    return {**body, "seed": derive_choice_seed(body["seed"], f"choice {choice}")} if choice > first else body


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_answers_come_in_order_and_are_asked_once(cache, kind):
    requests = make_questions(30, n=3)
    if kind == "completions":
        requests = [{**r, "prompt": r.pop("messages")[0]["content"]} for r in requests]
    with FaultServer() as server:
        answers, usage = ask(requests, make_endpoint(server.url, kind=kind), cache)
        again, usage_again = ask(requests, make_endpoint(server.url, kind=kind), Cache(cache.path))
    expected = [[expected_text(r, k) for k in range(3)] for r in requests]
    assert [[a.text for a in group] for group in answers] == expected and again == answers
    assert answers[0][0] == Answer(expected[0][0], "stop", 10, 7, "m-snapshot")
    assert len(server.asked) == 30 and server.asked[0][0].endswith(
        "chat/completions" if kind == "chat" else "v1/completions"
    )
    assert (usage.requests, usage.choices, usage.from_cache, usage.asked, usage.calls) == (30, 90, 0, 30, 30)
    assert (usage_again.from_cache, usage_again.asked, usage_again.calls, usage_again.spent_usd) == (30, 0, 0, 0.0)
    assert usage.prompt_tokens == usage_again.prompt_tokens == 300 and usage.completion_tokens == 630
    assert usage.cost_usd is None and usage.spent_usd is None  # nobody knows what `m` costs
    assert usage.answered_by == {"m-snapshot": 90} and usage.faults == usage.ignored == {}


def test_more_choices_later_ask_for_these_only_and_repeated_requests_once(cache):
    with FaultServer() as server:
        ask(make_questions(1, n=2), make_endpoint(server.url), cache)
        answers, usage = ask(make_questions(1, n=5) * 3, make_endpoint(server.url), cache)
    assert [body.get("n") for _, body in server.asked] == [2, 3]
    assert answers[0] == answers[1] == answers[2] and len({a.text for a in answers[0]}) == 5
    assert (usage.requests, usage.asked, usage.calls) == (3, 3, 1)


def test_nothing_to_ask_needs_no_key_and_no_server(cache):
    assert ask([], make_endpoint(api_key_env="NOBODYS_KEY"), cache)[0] == []
    (request,) = make_questions(1)
    cache.put([(request, {0: Answer("kept")})])
    answers, usage = ask([request], make_endpoint(api_key_env="NOBODYS_KEY"), cache, cache="only")
    assert answers == [[Answer("kept", None, None, None)]] and usage.prompt_tokens is None and usage.cost_usd is None


@pytest.mark.parametrize("fault", [f for f in FAULTS if f not in ("fewer", "duplicated")])
def test_every_fault_passes_and_is_counted(cache, quick, fault):
    with FaultServer(rates={fault: 0.5}, luck=3) as server:
        requests = make_questions(6)
        answers, usage = ask(requests, make_endpoint(server.url, timeout_s=1, max_retries=15), cache)
    assert [group[0].text for group in answers] == [expected_text(sent_for(r, 0), 0) for r in requests]
    assert sum(usage.faults.values()) == server.met[fault] > 0 and usage.calls == len(server.asked)


@pytest.mark.parametrize("n", ["ignored", "repeated", "refused"])
def test_a_server_that_does_not_heed_n(cache, quick, n):
    requests = make_questions(5, n=3)
    with FaultServer(n=n) as server:
        answers, usage = ask(requests, make_endpoint(server.url), cache)
    for request, group in zip(requests, answers, strict=True):
        assert [a.text for a in group[1:]] == [expected_text(sent_for(request, k), 0) for k in (1, 2)]
        assert len({a.text for a in group}) == 3
    assert usage.ignored == {"n: fewer choices than asked": 1 if n == "refused" else 5}
    assert ask(requests, make_endpoint(server.url), cache)[1].ignored == usage.ignored  # a replay still knows


def test_a_server_that_counts_no_tokens(cache):
    with FaultServer(usage=False) as server:
        answers, usage = ask(make_questions(2), make_endpoint(server.url), cache)
    assert answers[0][0].prompt_tokens is None and usage.prompt_tokens is None and usage.spent_usd is None


def check_flood(cache, count, memory):
    requests = make_questions(count, n=2)
    with FaultServer(rates=QUICK, luck=1) as server:
        endpoint = make_endpoint(server.url, concurrency=32, max_retries=14)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answers, usage = ask(requests, endpoint, cache)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert server.busiest <= 32 and grown < memory, f"{grown:.0f} MiB"
    assert len(answers) == count
    for request, group in zip(requests, answers, strict=True):
        second = {expected_text(request, 1), expected_text(sent_for(request, 1), 0)}
        assert group[0].text == expected_text(request, 0) and group[1].text in second
    # Each whole answer was asked for once: nothing that had arrived was asked again.
    assert max(server.answered.values()) == 1
    assert sum(server.answered.values()) == count + server.met["fewer"] + server.met["duplicated"]
    assert usage.calls == len(server.asked) and usage.choices == 2 * count
    faults = sum(number for name, number in server.met.items() if name not in ("fewer", "duplicated"))
    assert sum(usage.faults.values()) == faults > 0.1 * count
    assert not [t for t in threading.enumerate() if t.name.startswith("asking")]


def test_a_thousand_requests_at_20_percent_faults(cache, quick):
    check_flood(cache, 1000, memory=60)


@pytest.mark.slow
def test_ten_thousand_requests_at_20_percent_faults(cache, quick):
    check_flood(cache, 10_000, memory=120)


CLIENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from pathlib import Path
sys.path.insert(0, "tests")
from fault_server import USE, make_endpoint, make_questions
from drot_utils.llm.cache import Cache
from drot_utils.llm.client import ask_all
ask_all(make_questions(300, n=2), make_endpoint(sys.argv[1], concurrency=8), USE, Cache(Path(sys.argv[2])), "asking")
"""


def start_client(server, cache):
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, server.url, str(cache.path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def wait_for(server, count):
    for _ in range(3000):
        if len(server.asked) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"only {len(server.asked)} requests came")


def test_killed_in_the_middle_only_what_is_missing_is_asked(cache):
    with FaultServer(latency=0.02) as server:
        client = start_client(server, cache)
        wait_for(server, 100)
        client.kill()
        client.wait()
        kept = len(cache.query("SELECT 1 FROM answers")) // 2
        answers, usage = ask(make_questions(300, n=2), make_endpoint(server.url, concurrency=8), cache)
    assert 80 <= kept < 300 and usage.from_cache == kept and usage.calls == 300 - kept
    assert sum(server.answered.values()) <= 300 + 8  # what was under way when it died
    assert [g[0].text for g in answers] == [expected_text(r, 0) for r in make_questions(300, n=2)]


def test_ctrl_c_ends_cleanly_and_keeps_what_was_under_way(cache):
    with FaultServer(latency=0.1) as server:
        client = start_client(server, cache)
        wait_for(server, 40)
        client.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, stderr = client.communicate(timeout=20)
    assert client.returncode != 0 and stderr.rstrip().endswith("KeyboardInterrupt") and time.monotonic() - began < 4
    assert "Task was destroyed" not in stderr and "never retrieved" not in stderr
    kept = len(cache.query("SELECT 1 FROM answers")) // 2
    assert kept == len(server.asked) == sum(server.answered.values())


def test_a_server_that_is_killed_and_comes_back(cache, quick):
    requests = make_questions(60)
    with FaultServer(latency=0.02) as server:
        threading.Thread(target=lambda: wait_for(server, 10) or server.kill()).start()
        with pytest.raises(EndpointError, match=r"got no answer in 3 tries") as caught:
            ask(requests, make_endpoint(server.url, max_retries=2), cache)
    assert "is in the cache" in str(caught.value)
    kept = len(cache.query("SELECT 1 FROM answers"))
    with FaultServer() as server:
        answers, usage = ask(requests, make_endpoint(server.url), cache)
    assert 0 < kept < 60 and usage.from_cache == kept and len(server.asked) == 60 - kept and len(answers) == 60


@pytest.mark.parametrize("number", [0, 3])
def test_one_request_that_never_works_does_not_stop_the_others(cache, quick, monkeypatch, number):
    monkeypatch.setattr(
        FaultServer, "_draw", lambda self, rates: "500" if f"Question {number}?" in str(self.asked[-1]) else None
    )
    with (
        FaultServer() as server,
        pytest.raises(EndpointError, match=rf"1 of 20 requests got no answer in 3 tries.*Question {number}\?"),
    ):
        ask(make_questions(20), make_endpoint(server.url, concurrency=1, max_retries=2), cache)
    assert len(cache.query("SELECT 1 FROM answers")) == 19 and GIVE_UP > 1


def test_the_servers_own_limit_is_borne(cache, quick):
    with FaultServer(per_minute=1200) as server:  # 20 a second
        began = time.monotonic()
        answers, usage = ask(make_questions(50), make_endpoint(server.url, concurrency=4, max_retries=99), cache)
        took = time.monotonic() - began
    assert len(answers) == 50 and 1.3 < took < 6 and usage.faults == {"HTTP 429": server.met["limit"]}


def test_limits_that_the_parameters_name_are_kept(cache):
    with FaultServer() as server:
        began = time.monotonic()
        ask(make_questions(15), make_endpoint(server.url, requests_per_minute=610), cache)  # 10 a second
        assert time.monotonic() - began > 0.45
    assert server.met["limit"] == 0


def test_limits_of_tokens_are_kept_by_requests_larger_than_a_seconds_worth_too(cache):
    with FaultServer() as server:
        began = time.monotonic()
        ask(
            make_questions(2, max_tokens=450), make_endpoint(server.url, tokens_per_minute=18_300), cache
        )  # 300 a second
        assert time.monotonic() - began > 1.8  # of 922 tokens 300 at once


@given(st.integers(1, 10**7))
def test_no_sixty_seconds_see_more_than_the_rate(per_minute):
    limit = _open_limit(per_minute)
    assert limit.max_rate + 60 * limit.max_rate / limit.time_period <= per_minute * (1 + 1e-9) + (per_minute < 61)


def test_it_works_inside_a_running_event_loop(cache):
    async def notebook(url):  # a cell of a notebook runs in a loop
        return ask(make_questions(3), make_endpoint(url), cache)

    with FaultServer() as server:
        answers, _ = asyncio.run(notebook(server.url))
    assert len(answers) == 3


def test_refresh_asks_anew_and_replaces(cache):
    (request,) = make_questions(1)
    cache.put([(request, {0: Answer("old")})])
    with FaultServer() as server:
        answers, usage = ask([request], make_endpoint(server.url), cache, cache="refresh")
    assert answers[0][0].text == expected_text(sent_for(request, 0), 0) and usage.asked == 1


def test_a_replay_names_what_is_missing_and_counts_it(cache):
    requests = make_questions(5)
    cache.put([(requests[0], {0: Answer("kept")})])
    with (
        FaultServer() as server,
        pytest.raises(EndpointError, match=r"4 of 5 requests have no answer.*'Question 1\?'") as caught,
    ):
        ask(requests, make_endpoint(server.url), cache, cache="only")
    assert server.asked == [] and "drot_utils answers import" in caught.value.todo


KEYED = {"api_key_env": "MY_KEY"}


@pytest.mark.parametrize(
    ("behaviour", "changes", "message"),
    [
        (
            {},
            {"api_key_env": "NOBODYS_KEY"},
            r"no key to ask with, and 3 requests .*'Question 0\?'\n.*environment variable NOBODYS_KEY",
        ),
        (
            {"key": "right"},
            KEYED,
            r"refused with HTTP 401 .* the request 'Question 0\?'\n.*check the key in the environment variable MY_KEY",
        ),
        ({"model": "other"}, {}, r"HTTP 404 \(The model `m` does not exist\).*\n.*check `model`"),
        ({}, {"base_url": "/nothing"}, r"HTTP 404 \(Invalid URL.*\n.*`base_url` \(most end in /v1\)"),
        ({"quota": 0}, {}, r"HTTP 429 \(You exceeded your current quota\).*\n.*no credit left"),
        ({"rates": {"wrong type": 1.0}}, {}, r"no OpenAI-compatible API \(no JSON: text/html.*\n.*`base_url`"),
        ({"rates": {"empty choices": 1.0}}, {}, r"no OpenAI-compatible API \(no choices"),
        ({"rates": {"500": 1.0}}, {}, r"3 of 3 requests got no answer in 3 tries.*HTTP 500"),
    ],
    ids=["no key", "wrong key", "unknown model", "wrong path", "quota", "web page", "no choices", "broken server"],
)
def test_bad_input_is_one_clear_error(cache, quick, monkeypatch, behaviour, changes, message):
    monkeypatch.setenv("MY_KEY", "sk-marked-secret")
    with FaultServer(**behaviour) as server:
        url = server.url + changes.get("base_url", "")
        changes = {name: value for name, value in changes.items() if name != "base_url"}
        with pytest.raises(EndpointError, match=message) as caught:
            ask(make_questions(3), make_endpoint(url, max_retries=2, **changes), cache)
    assert len(server.asked) <= (9 if "500" in message else 3) and "sk-marked-secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://no-such-host.invalid/v1"])
def test_a_wrong_address_shows_at_once(cache, url):
    began = time.monotonic()
    with pytest.raises(EndpointError, match=r"nobody answers at this address.*\n.*check `base_url`"):
        ask(make_questions(100), make_endpoint(url, max_retries=8), cache)
    assert time.monotonic() - began < 5


def test_a_wrong_setting_stops_at_once_and_keeps_the_rest(cache, monkeypatch):
    reply = FaultServer.reply
    refused = 400, {"error": {"message": "top_q is unknown"}}
    monkeypatch.setattr(
        FaultServer, "reply", lambda s, p, body: refused if "Question 20?" in str(body) else reply(s, p, body)
    )
    with (
        FaultServer(latency=0.01) as server,
        pytest.raises(EndpointError, match=r"HTTP 400 \(top_q is unknown\).*Question 20"),
    ):
        ask(make_questions(100), make_endpoint(server.url, concurrency=4), cache)
    assert len(server.asked) < 40
    assert len(cache.query("SELECT 1 FROM answers")) == sum(server.answered.values()) >= 20


CHEAP = {"model": "gpt-4o-mini", "max_tokens": 7}  # the server bills 10 tokens in, 7 out: $0.0000057


def test_a_budget_is_not_exceeded_over_restarts_either(cache):
    requests = make_questions(100, **CHEAP)
    with FaultServer() as server:
        endpoint = make_endpoint(server.url, model="gpt-4o-mini")
        with pytest.raises(BudgetError, match=r"this would cost about .*\n.*nothing was asked"):
            ask(requests, endpoint, cache, budget_usd=0.0002)
        assert server.asked == []
        _, usage = ask(requests[:40], endpoint, cache, budget_usd=0.001)
        assert [usage.spent_usd, usage.cost_usd] == pytest.approx([40 * 0.0000057] * 2)
        # The mean of the answers so far makes the estimate exact; the server now counts ten times as much.
        monkey = server.reply
        server.reply = lambda path, body: (
            200,
            {**monkey(path, body)[1], "usage": {"prompt_tokens": 10, "completion_tokens": 70}},
        )
        with pytest.raises(BudgetError, match=r"the budget of \$0.00 is spent .*under way"):
            ask(requests, endpoint, cache, budget_usd=0.0007)
    spent = 40 * 0.0000057 + (len(server.asked) - 40) * 0.0000435
    assert 0.0005 < spent <= 0.0007 + 8 * 0.0000435 and len(server.asked) < 60


def test_a_budget_without_a_price_is_an_error(cache):
    with FaultServer() as server, pytest.raises(BudgetError, match=r"price of m \(direct\) is not known"):
        ask(make_questions(1), make_endpoint(server.url), cache, budget_usd=1.0)
    assert server.asked == []


def test_no_key_reaches_any_file(output, tmp_path, quick, monkeypatch, capfd):
    secret = "sk-marked-secret-0123456789"
    monkeypatch.setenv("MY_KEY", secret)
    cache, said = Cache(tmp_path / "data" / "answers.sqlite"), []
    for behaviour, changes in (
        ({"key": secret, "rates": QUICK, "text": f"You sent {secret}, and I say it again."}, {}),
        ({"key": "other"}, {}),
        ({"key": secret, "rates": {"wrong type": 1.0}}, {}),
        ({"key": secret, "batch_lines": {"500": 0.3}}, {"transport": "batch"}),
        ({"key": secret, "batch_refusals": [f"bad key {secret}"]}, {"transport": "batch"}),
    ):
        with FaultServer(**behaviour) as server:
            endpoint = make_endpoint(server.url, api_key_env="MY_KEY", max_retries=9, timeout_s=2, **changes)
            try:
                requests = make_questions(20, seed=len(said))
                answers, usage = ask(requests, endpoint, cache)
                said += [str(answers), str(usage)]
            except EndpointError as error:
                said += [str(error), repr(error), repr(error.__cause__), repr(error.__context__)]
            assert f"Bearer {secret}" in server.keys
    cache.file.close()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert cache.path in written and all(secret.encode() not in path.read_bytes() for path in written)
    streams = capfd.readouterr()
    assert secret not in "".join(said) + streams.out + streams.err + json.dumps(dict(os.environ), default=str).replace(
        json.dumps(secret), ""
    )
    assert any("[key]" in text for text in said)


REFUSED = {
    "Question 3?": "content_filter",
    "Question 4?": {"code": "400", "innererror": {"code": "ResponsibleAIPolicyViolation"}},
}


@pytest.mark.parametrize("transport", ["direct", "batch"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_no_to_one_input_is_its_answer_and_says_nothing_of_n(cache, quick, transport, n):
    requests = make_questions(8, n=n)
    with FaultServer(refuses=REFUSED) as server:
        endpoint = make_endpoint(server.url, transport=transport)
        answers, usage = ask(requests, endpoint, cache)
        assert len(server.asked) == 8 and max(server.answered.values()) == 1
        again, usage_again = ask(requests, endpoint, Cache(cache.path))
        assert len(server.asked) == 8 and again == answers  # a no is kept, too
        server.behaviour.refuses = {}
        anew, _ = ask(requests, endpoint, cache, cache="refresh")
    assert answers[3] == [Answer("", "refused: content_filter", 0, 0)] * n
    assert {a.finish for a in answers[4]} == {"refused: ResponsibleAIPolicyViolation"}
    assert [a.text for a in answers[5]] == [a.text for a in anew[5]] != ["", ""] and anew[3][0].text
    expected = {"refused: ResponsibleAIPolicyViolation": n, "refused: content_filter": n}
    assert usage.unfinished == usage_again.unfinished == expected
    assert usage.ignored == usage.faults == {} and usage.unmetered == 2 and usage_again.calls == 0
    assert usage.completion_tokens == 6 * 7 * n


def test_a_no_whose_words_say_nothing_is_tried_one_by_one_and_n_is_not_blamed_for_it(cache, quick):
    requests = make_questions(4, n=2)
    with (
        FaultServer(refuses={"Question 2?": {"code": "400"}}) as server,
        pytest.raises(EndpointError, match=r"HTTP 400 \(This was refused\).*Question 2"),
    ):
        ask(requests, make_endpoint(server.url, concurrency=1), cache)
    assert [body.get("n", 1) for _, body in server.asked] == [2, 2, 2, 1]
    assert ask(requests[:2], make_endpoint(server.url), cache)[1].ignored == {}


@pytest.mark.parametrize("transport", ["direct", "batch"])
@pytest.mark.parametrize("n", ["given", "refused"])
def test_a_gateway_that_refuses_both_names_as_one_ends_the_run(cache, quick, transport, n, monkeypatch):
    no = {"error": {"message": "does not support parameters: ['max_tokens']", "code": 400}}
    usual = FaultServer.reply
    monkeypatch.setattr(
        FaultServer, "reply", lambda s, p, b: (400, no) if b.get("n", 1) == 1 or n == "given" else usual(s, p, b)
    )
    with FaultServer(n=n) as server:
        with pytest.raises(EndpointError, match=r"refused with HTTP 400 .*max_tokens"):
            ask(make_questions(2, n=3), make_endpoint(server.url, transport=transport), cache)
        assert len(server.asked) <= 14


@pytest.mark.parametrize("transport", ["direct", "batch"])
def test_the_name_of_the_length_is_learnt_for_choices_that_are_asked_for_one_by_one(
    cache, quick, transport, monkeypatch
):
    usual, no = FaultServer.reply, {"error": {"message": "max_tokens is not supported", "code": 400}}
    monkeypatch.setattr(
        FaultServer, "reply", lambda s, p, b: (400, no) if "max_tokens" in b and b.get("n", 1) == 1 else usual(s, p, b)
    )
    with FaultServer(n="refused") as server:
        answers, _ = ask(make_questions(3, n=3), make_endpoint(server.url, transport=transport), cache)
    assert [len(group) for group in answers] == [3, 3, 3]


@pytest.mark.parametrize("transport", ["direct", "batch"])
def test_the_name_of_the_length_is_learnt_once_and_the_cache_knows_one_name(cache, quick, transport):
    requests = make_questions(20, n=2)
    with FaultServer(unknown=("max_tokens",)) as server:
        endpoint = make_endpoint(server.url, transport=transport)
        _, usage = ask(requests[:10], endpoint, cache)
        refused = [body for _, body in server.asked if "max_tokens" in body]
        assert len(refused) == (1 if transport == "direct" else 10) and usage.ignored == {
            "max_tokens: refused": len(refused[:1])
        }
        _, usage = ask(requests, endpoint, Cache(cache.path))
    assert usage.calls == 10 and usage.from_cache == 10 and len(server.asked) == 20 + len(refused)
    assert all(body["max_completion_tokens"] == 20 and body["n"] == 2 for _, body in server.asked[len(refused) :])
    with FaultServer(unknown=("max_tokens",)) as server:
        named = make_endpoint(server.url, names={"max_tokens": "max_completion_tokens", "seed": None})
        _, usage = ask(requests[:10], named, cache)
        assert usage.calls == 0  # the name is no part of the key
        ask(make_questions(1, temperature=0.5), named, cache)
    assert "max_tokens" not in server.asked[0][1] and "seed" not in server.asked[0][1]


def test_a_server_that_takes_neither_name_of_the_length(cache, quick):
    with (
        FaultServer(unknown=("max_tokens", "max_completion_tokens")) as server,
        pytest.raises(
            EndpointError, match=r"Unsupported parameter: 'max_completion_tokens'.*\n.*`names: {max_tokens: null}`"
        ),
    ):
        ask(make_questions(3), make_endpoint(server.url), cache)
    assert len(server.asked) == 2
    with FaultServer(unknown=("max_tokens", "max_completion_tokens")) as server:
        assert ask(make_questions(3), make_endpoint(server.url, names={"max_tokens": None}), cache)[0][0][0].text


@pytest.mark.parametrize("transport", ["direct", "batch"])
def test_another_setting_that_is_refused_ends_the_run_with_its_key(cache, quick, transport):
    with (
        FaultServer(unknown=("temperature",)) as server,
        pytest.raises(EndpointError, match=r"'temperature' is not supported.*\n.*set `teacher.temperature` to null"),
    ):
        ask(make_questions(3, n=2), make_endpoint(server.url, transport=transport), cache)
    assert len(server.asked) == (1 if transport == "direct" else 3)
    assert cache.query("SELECT * FROM ledger") == []


@pytest.mark.parametrize("transport", ["direct", "batch"])
@pytest.mark.parametrize("text", ["", "<think>The user wants"])
def test_a_model_that_only_thinks_is_stopped_after_the_first_few(cache, quick, transport, text):
    with (
        FaultServer(finish=lambda body, k: ("length", text)) as server,
        pytest.raises(EndpointError, match=r"all of `max_tokens` for thinking\n.*raise `teacher.max_tokens`"),
    ):
        ask(make_questions(50, n=2), make_endpoint(server.url, transport=transport, concurrency=2), cache)
    assert len(server.asked) <= (6 if transport == "direct" else 50)


def test_some_that_only_think_do_not_stop_the_others(cache):
    def finish(body, choice):
        return ("stop", None) if "Question 0?" in str(body) else ("length", "")

    with FaultServer(finish=finish) as server:
        _, usage = ask(make_questions(9), make_endpoint(server.url, concurrency=1), cache)
    assert usage.unfinished == {"max_tokens used up": 8}


def test_a_choice_that_is_an_error_is_asked_again(cache, quick):
    def finish(body, choice):
        fails = choice == 1 and body["seed"] == 5
        return ("error", "half of") if fails else ("stop", None)

    with FaultServer(finish=finish) as server:
        answers, usage = ask(make_questions(4, n=3), make_endpoint(server.url), cache)
    assert len(server.asked) == 8 and usage.faults == {"broken choice": 4} and usage.ignored == {}
    assert all(len({a.text for a in group}) == 3 and {a.finish for a in group} == {"stop"} for group in answers)


def test_a_delay_that_only_the_body_names_is_heeded_and_a_header_counts_more(cache, quick, monkeypatch):
    refusals = [({}, "Please try again in 300ms."), ({"retry-after": "0.2"}, "Please try again in 9h.")]
    send = FaultServer._send

    def refuse_first(self, writer, status, body, headers=None):
        if not refusals:
            return send(self, writer, status, body, headers)
        named, said = refusals.pop(0)
        return send(self, writer, 429, json.dumps({"error": {"message": said}}).encode(), named)

    monkeypatch.setattr(FaultServer, "_send", refuse_first)
    with FaultServer() as server:
        began = time.monotonic()
        _, usage = ask(make_questions(1), make_endpoint(server.url), cache)
    assert 0.5 < time.monotonic() - began < 3 and usage.faults == {"HTTP 429": 2}


def test_a_pause_of_hours_is_not_waited_for(cache):
    with FaultServer(rates={"429 retry-after": 1.0}, retry_after="7200") as server:
        with pytest.raises(EndpointError, match=r"not to be asked again yet \(retry-after: 7200; HTTP 429: Rate limit"):
            ask(make_questions(1), make_endpoint(server.url), cache)
        assert len(server.asked) == 1


def test_load_is_borne_longer_than_the_tries_allow(cache, quick, monkeypatch):
    monkeypatch.setattr("drot_utils.llm.server.PATIENCE", 0.5)
    draw = FaultServer._draw
    monkeypatch.setattr(FaultServer, "_draw", lambda self, rates: "503" if len(self.asked) < 6 else draw(self, rates))
    with FaultServer() as server:
        answers, usage = ask(make_questions(1), make_endpoint(server.url, max_retries=2), cache)
    assert answers[0][0].text and usage.faults == {"HTTP 503": 5}
