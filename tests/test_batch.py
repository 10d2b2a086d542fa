"""The Batch API: joined by line, resumed after every kind of stop, and never handed in twice."""

import asyncio
import io
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fault_server import USE, FaultServer, expected_text, make_endpoint, make_questions
from openai.resources.batches import AsyncBatches
from openai.resources.files import AsyncFiles

from drot_utils.llm import batch
from drot_utils.llm.accounts import Accounts
from drot_utils.llm.cache import Cache, request_key
from drot_utils.llm.client import ask_all
from drot_utils.llm.faults import Fault
from drot_utils.llm.replies import Work, derive_choice_seed
from drot_utils.llm.server import Server
from drot_utils.study.errors import BudgetError, EndpointError
from drot_utils.study.paths import ROOT, exclusive

pytestmark = pytest.mark.usefixtures("quick")


def ask(requests, server, file, changes=None, **settings):
    endpoint = make_endpoint(server.url, transport="batch", **(changes or {}))
    return ask_all(requests, endpoint, USE.model_copy(update=settings), file, "asking")


def texts(answers):
    return [[a.text for a in group] for group in answers]


def test_answers_are_joined_by_line_whatever_their_order(cache, monkeypatch):
    monkeypatch.setattr(batch, "MOST_LINES", 8)
    requests = make_questions(20, n=2)
    with FaultServer() as server:
        answers, usage = ask(requests, server, cache)
        again, usage_again = ask(requests, server, cache)
    assert texts(answers) == [[expected_text(r, k) for k in range(2)] for r in requests] and again == answers
    assert len(server.batches) == 3 and len(server.asked) == 20 == usage.calls and usage_again.calls == 0
    assert [b["completion_window"] for b in server.batches.values()] == ["24h"] * 3
    assert cache.query("SELECT count(*) FROM batches") == [(0,)]


def test_failed_expired_and_missing_lines_are_counted_and_asked_again(cache):
    requests = make_questions(60)
    with FaultServer(batch_lines={"500": 0.2, "expired": 0.2, "missing": 0.2}, luck=1) as server:
        answers, usage = ask(requests, server, cache)
    assert [len(group) for group in answers] == [1] * 60 and max(server.answered.values()) == 1
    assert usage.faults["HTTP 500"] == server.met["500"] > 0
    assert usage.faults["batch: batch_expired"] == server.met["expired"] > 0
    assert usage.faults["batch completed"] + usage.faults["batch expired"] == server.met["missing"] > 0


def test_a_refused_line_stops_and_the_others_are_kept(cache):
    with (
        FaultServer(batch_lines={"400": 0.2}, luck=1) as server,
        pytest.raises(EndpointError, match=r"refused with HTTP 400 .* line 0000"),
    ):
        ask(make_questions(20), server, cache)
    assert len(cache.query("SELECT 1 FROM answers")) == sum(server.answered.values()) > 0 < server.met["400"]


@pytest.mark.parametrize("n", ["ignored", "repeated", "refused"])
def test_a_server_that_does_not_heed_n(cache, n):
    requests = make_questions(4, n=3)
    with FaultServer(n=n) as server:
        answers, usage = ask(requests, server, cache)
    assert len(server.batches) == 2 and usage.ignored  # all the missing choices in one batch more
    body = {name: value for name, value in requests[0].items() if name != "n"}
    seeded = [{**body, "seed": derive_choice_seed(5, f"choice {k}")} for k in (1, 2)]
    assert texts(answers)[0][1:] == [expected_text(b, 0) for b in seeded]


def test_a_full_queue_is_waited_for_and_another_refusal_is_not(cache):
    with FaultServer(batch_refusals=["token_limit_exceeded"] * 2) as server:
        answers, _ = ask(make_questions(3), server, cache)
    assert len(answers) == 3 and len(server.batches) == 3
    with FaultServer(batch_refusals=["invalid_json_line"]) as server:
        with pytest.raises(EndpointError, match=r"refused the batch \(invalid_json_line: not today\)"):
            ask(make_questions(3, seed=1), server, cache)
        ask(make_questions(3, seed=1), server, cache)


def test_lines_that_never_come_end_after_all_tries(cache):
    with (
        FaultServer(batch_lines={"missing": 1.0}) as server,
        pytest.raises(EndpointError, match=r"3 requests got no answer in 3 batches"),
    ):
        ask(make_questions(3), server, cache, {"max_retries": 2})


CLIENT = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from fault_server import USE, make_endpoint, make_questions
from drot_utils.llm import batch
from drot_utils.llm.cache import Cache
from drot_utils.llm.client import ask_all
batch.POLL = 0.01
ask_all(make_questions(30), make_endpoint(sys.argv[1], transport="batch"), USE, Cache(Path(sys.argv[2])), "asking")
"""


def test_killed_while_it_waits_it_finds_its_batch_again(cache):
    with FaultServer(batch_polls=10**9) as server:
        client = subprocess.Popen([sys.executable, "-c", CLIENT, server.url, str(cache.path)], cwd=ROOT)
        for _ in range(3000):
            if any(batch["polls"] for batch in server.batches.values()):
                break
            time.sleep(0.01)
        client.kill()
        client.wait()
        server.behaviour.batch_polls = 0
        # Another notebook, with other requests too, takes in what is there.
        answers, usage = ask(make_questions(40), server, cache)
    assert len(server.batches) == 2 and len(server.asked) == 40 and max(server.answered.values()) == 1
    assert texts(answers) == [[expected_text({k: v for k, v in r.items() if k != "n"}, 0)] for r in make_questions(40)]
    assert usage.calls == 40


def test_a_batch_whose_number_was_not_written_down_in_time(cache, monkeypatch):
    create = AsyncBatches.create

    async def die_when_it_is_made(self, **body):
        await create(self, **body)
        raise ZeroDivisionError

    with FaultServer() as server:
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(AsyncBatches, "create", die_when_it_is_made)
            ask(make_questions(5), server, cache)
        answers, _ = ask(make_questions(5), server, cache)
    assert len(server.batches) == 1 and len(server.asked) == 5 and len(answers) == 5


def test_a_batch_that_was_never_made_is_made(cache, monkeypatch):
    async def fail(*args, **options):
        raise ZeroDivisionError

    with FaultServer() as server:
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(AsyncFiles, "create", fail)
            ask(make_questions(5), server, cache)
        ask(make_questions(5), server, cache)
    assert len(server.batches) == 1 and cache.query("SELECT count(*) FROM lines") == [(0,)]


def test_a_broken_connection_does_not_make_a_batch_twice(cache, monkeypatch):
    create, broken = AsyncBatches.create, []

    async def lose_the_answer(self, **body):
        reply = await create(self, **body)
        if not broken:
            broken.append(reply.id)
            raise Fault("broken connection")
        return reply

    monkeypatch.setattr(AsyncBatches, "create", lose_the_answer)
    with FaultServer() as server:
        ask(make_questions(5), server, cache)
    assert broken == list(server.batches) and len(broken) == 1


def test_a_batch_that_the_server_forgot(cache, monkeypatch):
    with FaultServer(batch_polls=10**9) as server:
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr("drot_utils.llm.batch.Batches._wait_for", lambda *args: 1 / 0)
            ask(make_questions(5), server, cache)
        server.batches.clear()
        server.behaviour.batch_polls = 0
        answers, usage = ask(make_questions(5), server, cache)
    assert len(answers) == 5 and usage.faults == {"batch gone": 5}


def test_a_batch_whose_file_is_not_found_is_kept(cache, monkeypatch):
    manage = FaultServer._manage
    lost = 404, b'{"error": {"message": "No such File object"}}'
    with FaultServer() as server:
        with monkeypatch.context() as patch:
            patch.setattr(FaultServer, "_manage", lambda s, m, p, *a: lost if "/content" in p else manage(s, m, p, *a))
            with pytest.raises(
                EndpointError, match=r"batch-0 is completed, .*\n.*DELETE FROM batches WHERE id = 'batch-0'"
            ):
                ask(make_questions(5), server, cache)
        answers, usage = ask(make_questions(5), server, cache)
    assert len(server.batches) == 1 and len(answers) == 5 == usage.calls and usage.faults == {}


@pytest.mark.parametrize("mode", ["use", "refresh"])
def test_a_batch_that_two_processes_wait_for_is_billed_once(cache, monkeypatch, mode):
    wait_for, others = batch.Batches._wait_for, []

    async def be_late(self, *args):
        state = await wait_for(self, *args)
        if not others:
            others.append("asks")  # takes the batch in while this one has its state already
            others.append(ask(make_questions(8), server, Cache(cache.path)))
        return state

    monkeypatch.setattr(batch.Batches, "_wait_for", be_late)
    with FaultServer() as server:
        answers, usage = ask(make_questions(5), server, cache, cache=mode)
    assert len(server.batches) == 2 and len(server.asked) == 8 and answers == others[1][0][:5]
    assert usage.calls == 0 and usage.spent_usd == 0 and others[1][1].calls == 8
    assert cache.list_spent() == [("m", "batch", 80, 56)]


def test_a_batch_that_another_process_is_handing_in_is_waited_for(cache, monkeypatch):
    create, others = AsyncFiles.create, []

    async def be_slow(self, **body):
        if not others:
            others.append(pool.submit(ask, make_questions(5), server, Cache(cache.path)))
            await asyncio.sleep(0.5)  # the other finds the batch without a number
        return await create(self, **body)

    monkeypatch.setattr(AsyncFiles, "create", be_slow)
    with FaultServer() as server, ThreadPoolExecutor(1) as pool:
        answers, _ = ask(make_questions(5), server, cache)
        assert others[0].result()[0] == answers
    assert len(server.batches) == 1 and len(server.asked) == 5


def test_who_waits_for_another_process_can_be_stopped(cache):
    with FaultServer() as server:
        accounts = Accounts(make_endpoint(server.url, transport="batch"), USE, cache)
        batches = batch.Batches([Work("k", make_questions(1)[0], [0])], Server(accounts))
        with exclusive(batches.lock, wait=True), pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(batches.ask(), 0.3))
    assert not server.batches and "another process is handing in a batch" in accounts.note


def test_an_earlier_models_batch_is_billed_to_that_model(cache, monkeypatch):
    with FaultServer() as server:
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr("drot_utils.llm.batch.Batches._wait_for", lambda *args: 1 / 0)
            ask(
                [*make_questions(1, model="gpt-4o"), *make_questions(2, model="gpt-4o", max_tokens=None)], server, cache
            )
        with monkeypatch.context() as patch:
            reply = FaultServer.reply
            no = 400, {"error": {"message": "max_tokens is not supported"}}
            patch.setattr(
                FaultServer,
                "reply",
                lambda s, p, b: no if b.get("max_tokens") and b["model"] == "gpt-4o" else reply(s, p, b),
            )
            _, usage = ask(make_questions(1, model="gpt-4o-mini"), server, cache, {"model": "gpt-4o-mini"})
    assert cache.list_spent() == [("gpt-4o", "batch", 20, 14), ("gpt-4o-mini", "batch", 10, 7)]
    prices = {"gpt-4o": (2.5, 10), "gpt-4o-mini": (0.15, 0.6)}
    expected = sum(
        times * (10 * prices[m][0] + 7 * prices[m][1]) / 2e6 for m, times in (("gpt-4o", 2), ("gpt-4o-mini", 1))
    )
    assert usage.spent_usd == pytest.approx(expected) and usage.ignored == {}


def test_half_the_price_and_the_budget(cache):
    requests = make_questions(10, model="gpt-4o-mini")
    with FaultServer() as server:
        with pytest.raises(BudgetError, match="would cost"):
            ask(requests, server, cache, {"model": "gpt-4o-mini"}, budget_usd=0.00001)
        assert server.batches == {} and cache.query("SELECT count(*) FROM batches") == [(0,)]
        _, usage = ask(requests, server, cache, {"model": "gpt-4o-mini"}, budget_usd=1.0)
    assert [usage.spent_usd, usage.cost_usd] == pytest.approx([10 * 0.0000057 / 2] * 2)


def test_it_works_inside_a_running_event_loop(cache):
    async def notebook(server):
        return ask(make_questions(2), server, cache)

    with FaultServer() as server:
        assert len(asyncio.run(notebook(server))[0]) == 2


def test_unreadable_lines_are_asked_again(cache, monkeypatch):
    manage = FaultServer._manage

    def cut_once(self, method, path, headers, content):
        status, body = manage(self, method, path, headers, content)
        if path.endswith("/content") and len(self.batches) == 1:
            body = body[:-30] + b"\n\n[1]\n"
        return status, body

    monkeypatch.setattr(FaultServer, "_manage", cut_once)
    with FaultServer() as server:
        answers, usage = ask(make_questions(5), server, Cache(cache.path))
    assert len(answers) == 5 and usage.faults["batch: unreadable line"] == 2 and len(server.batches) == 2


def open_works(count, **changes):
    return [Work(request_key(r), r, list(range(r["n"]))) for r in make_questions(count, **changes)]


def test_work_is_cut_to_sizes_that_the_server_takes(monkeypatch):
    monkeypatch.setattr(batch, "MOST_LINES", 4)
    assert [len(part) for part in batch.cut_work(open_works(10))] == [4, 4, 2]
    monkeypatch.setattr(batch, "MOST_LINES", 100)
    monkeypatch.setattr(batch, "MOST_BYTES", 1000)
    parts = list(batch.cut_work(open_works(10)))
    assert [len(part) for part in parts] == [2] * 5
    assert list(batch.cut_work([])) == []


def test_choices_that_come_one_by_one_are_lines_of_their_own():
    one, two = open_works(2, n=3)
    one.alone = True
    (part,) = batch.cut_work([one, two])
    assert [work.missing for work in part] == [[0], [1], [2], [0, 1, 2]]


def open_batches(works, cache, **changes):
    endpoint = make_endpoint(transport="batch", **changes)
    return batch.Batches(works, Server(Accounts(endpoint, USE, cache)))


def test_a_batch_is_written_down_before_it_is_sent(cache):
    works = open_works(3, n=2)
    batches = open_batches(works, cache)
    file = io.BytesIO()
    token = batches.write(works, file)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    noted = cache.query("SELECT id, key, choices FROM lines ORDER BY id")
    assert noted == [(line["custom_id"], work.key, "[0, 1]") for line, work in zip(lines, works, strict=True)]
    assert lines[0]["url"] == "/v1/chat/completions"
    assert [line["body"] for line in lines] == [work.outgoing() for work in works]
    assert cache.query("SELECT * FROM batches") == [(token, batches.place, None)]
    assert open_batches([], cache, kind="completions").place != batches.place
    kept = [json.loads(body) for (body,) in cache.query("SELECT body FROM requests")]
    assert {name: value for name, value in works[1].request.items() if name != "n"} in kept
    batches.forget(token)
    assert cache.query("SELECT * FROM batches") == cache.query("SELECT * FROM lines") == []
