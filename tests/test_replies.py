"""Tests of `replies`."""

import json
import time

import pytest
from conftest import make_endpoint
from hypothesis import given
from hypothesis import strategies as st

from drot_utils.llm import replies
from drot_utils.llm.cache import Entry, request_key
from drot_utils.llm.replies import (
    Answer,
    Declined,
    Fault,
    Refusal,
    Work,
    derive_choice_seed,
    describe_request,
    explain_finish,
    find_setting,
    is_thought_away,
    list_missing,
    phrase_request,
    read_error,
    read_json,
    read_reply,
    read_status,
    read_whole,
)
from drot_utils.study.errors import EndpointError


def said(message, code=None):
    return json.dumps({"error": {"message": message, "code": code, "type": "t"}}).encode()


def read(status, headers=None, body=b"", **changes):
    return read_status(status, headers or {}, body, make_endpoint(api_key_env="MY_KEY", **changes), "the request 'x'")


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_what_passes(status):
    fault = read(status, {"retry-after": "3"}, said("busy"))
    assert isinstance(fault, Fault) and fault.wait == 3 and fault.kind == f"HTTP {status}" and "busy" in str(fault)
    assert fault.overload == (status in (429, 503)) and not fault.billed


@pytest.mark.parametrize(
    ("status", "body", "todo"),
    [
        (400, said("temperature too high"), "mend the setting"),
        (401, said("bad key"), "environment variable MY_KEY"),
        (402, said("pay"), "no credit left"),
        (403, said("not you"), "what the key in MY_KEY may do"),
        (404, said("no such model", "model_not_found"), "`model`"),
        (413, said("too long"), "mend the setting"),
        (422, b'{"detail": [{"msg": "extra field"}]}', "mend the setting"),
        (429, said("You exceeded your current quota", "insufficient_quota"), "no credit left"),
    ],
)
def test_what_stops_says_what_was_asked_what_came_back_and_what_to_do(status, body, todo):
    with pytest.raises(Refusal) as caught:
        read(status, body=body)
    text = str(caught.value)
    assert caught.value.status == status and todo in text and "the request 'x'" in text and f"HTTP {status}" in text
    assert read_error(body)[0] in text and "http://127.0.0.1:9/v1, model m" in text


def test_a_server_that_wants_a_key_after_all():
    with pytest.raises(Refusal, match="api_key_env"):
        read_status(401, {}, b"", make_endpoint(), "x")


def test_a_pause_of_hours_is_not_waited_for():
    with pytest.raises(EndpointError, match=r"not to come back for 2.0 hours"):
        read(429, {"retry-after": "7200"}, said("tokens per day"))


@given(st.binary())
def test_no_error_body_is_a_surprise(body):
    text, codes = read_error(body)
    assert text and len(text) <= 200 and "\n" not in text and isinstance(codes, list)


def test_errors_of_many_forms():
    assert read_error(b'{"error": "plain"}') == ("plain", [])
    assert read_error(b'{"detail": "fastapi"}') == ("fastapi", [])
    assert read_error(b'{"message": "flat", "code": 5}') == ("flat", ["5"])
    assert read_error(b"<html>\n<h1>502</h1>")[0] == "<html> <h1>502</h1>"
    assert read_error(b"") == ("an empty response", []) and read_error(b"[1]")[0] == "[1]"


def test_a_request_is_known_by_its_end():
    prompt = "Given an action " * 20 + "\nAction: Lying\nSituation:"
    assert describe_request({"prompt": prompt}).endswith("Action: Lying Situation:'")
    assert describe_request({"messages": [{"role": "user", "content": "Hi"}]}) == "the request 'Hi'"


AZURE = {
    "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.", "type": None,
    "param": "prompt", "code": "content_filter", "status": 400,
    "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (400, AZURE, "content_filter"),
        (400, {**AZURE, "code": "400"}, "ResponsibleAIPolicyViolation"),
        (400, {"message": "no", "code": "content_policy_violation"}, "content_policy_violation"),
        (
            400,
            {"message": "Invalid prompt: your prompt was flagged", "code": "invalid_prompt"},
            "invalid_prompt",
        ),
        (422, {"message": "no", "type": "content_filter"}, "content_filter"),
        (403, {"message": "flagged", "code": 403, "metadata": {"flagged_input": "x"}}, "flagged_input"),
        (400, {"message": "litellm.ContentPolicyViolationError: no", "code": "400"}, "content policy"),
    ],
)
def test_a_no_to_what_one_request_says(status, error, reason):
    for body in ({"error": error}, [{"error": error}], error):
        with pytest.raises(Declined) as caught:
            read(status, body=json.dumps(body).encode())
        assert caught.value.reason == reason


def test_a_no_to_an_account_is_none_to_a_request():
    with pytest.raises(Refusal):
        read(403, body=said("this key may not be used: see our content policy"))


@pytest.mark.parametrize(
    ("error", "setting", "key"),
    [
        ({"message": "Unsupported parameter: 'top_p' is not supported with this model.", "param": "top_p",
          "code": "unsupported_parameter"}, "top_p", "top_p"),
        ({"message": "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported.",
          "param": "temperature", "code": "unsupported_value"}, "temperature", "temperature"),
        ({"message": "Unrecognized request argument supplied: max_completion_tokens"}, "max_completion_tokens", "max_tokens"),
        ({"message": "Argument not supported on this model: presence_penalty"}, "presence_penalty", "presence_penalty"),
    ],
)  # fmt: skip
def test_a_setting_that_is_refused_is_named_with_its_key(error, setting, key):
    with pytest.raises(Refusal, match=rf"`names: {{{key}: null}}`.*`teacher.{key}` to null") as caught:
        read(400, body=json.dumps({"error": error}).encode())
    assert caught.value.setting == setting


def test_fastapi_names_a_setting_by_its_place():
    detail = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]
    with pytest.raises(Refusal, match=r"`names: {seed: null}` into this endpoint's") as caught:
        read(422, body=json.dumps({"detail": detail}).encode())
    assert caught.value.setting == "seed" and "teacher" not in str(caught.value)


@pytest.mark.parametrize(
    "message", ["max_tokens is too large: 99999", "temperature too high", "top_q is unknown", "no"]
)
def test_a_wrong_value_is_no_unknown_setting(message):
    assert find_setting(said(message)) is None


def test_a_delay_in_the_body_is_heeded_and_a_header_counts_more():
    body = said("Rate limit reached. Please try again in 1m2.5s.")
    assert read(429, body=body).wait == 62.5 and read(429, {"retry-after": "3"}, body).wait == 3
    with pytest.raises(EndpointError, match=r"not to come back for 2.0 hours"):
        read(429, body=said("Please try again in 2h0m"))


def test_load_has_two_minutes_at_least_by_default():
    load, other = read(429), read(500)
    assert replies.PATIENCE >= 120
    for fault, attempt, waited, expected in (
        (other, 4, 0, True), (other, 5, 0, False), (load, 5, 15, True), (load, 30, 119, True), (load, 30, 121, False),
        (load, 4, 999, True),
    ):  # fmt: skip
        assert replies.keeps_asking(fault, attempt, 5, waited) is expected
    assert not replies.keeps_asking(load, 0, 0, 0)  # `max_retries: 0` means it


LONG = "a text that is long enough not to be the same by chance"
REQUEST = {"model": "m", "prompt": "p", "n": 3, "temperature": 1.0, "max_tokens": 50, "seed": 7}


def work(missing=(0, 1, 2), **changes):
    return Work("key", {**REQUEST, **changes}, list(missing))


def reply(*texts, prompt=10, completion=30, chat=False):
    choices = [{"finish_reason": "stop", **({"message": {"content": t}} if chat else {"text": t})} for t in texts]
    return {
        "model": "m-1",
        "choices": choices,
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
    }


def test_missing_choices_and_repeated_requests(cache):
    other = {**REQUEST, "seed": 8}
    cache.put([(REQUEST, {1: Entry("x")})])
    requests = [REQUEST, other, {**other, "n": 5}, {**REQUEST, "n": 2}]
    keys = [request_key(r) for r in requests]
    works = list_missing(requests, keys, cache, refresh=False)
    assert [(w.key, w.missing) for w in works] == [(keys[0], [0, 2]), (keys[1], [0, 1, 2, 3, 4])]
    assert [w.missing for w in list_missing(requests, keys, cache, refresh=True)] == [
        [0, 1, 2],
        [0, 1, 2, 3, 4],
    ]
    assert [w.missing for w in list_missing(requests, keys, None, refresh=False)] == [
        [0, 1, 2],
        [0, 1, 2, 3, 4],
    ]


def test_later_choices_are_asked_with_another_seed():
    assert work().outgoing() == REQUEST
    later = work([1, 2]).outgoing()
    assert later["n"] == 2 and later["seed"] == derive_choice_seed(7, "choice 1") != 7
    assert "n" not in work([2]).outgoing()
    alone = Work("key", REQUEST, [0, 1], alone=True).outgoing()
    assert "n" not in alone and alone["seed"] == 7
    no_seed = {name: value for name, value in REQUEST.items() if name != "seed"}
    assert "seed" not in Work("key", no_seed, [1]).outgoing()


@given(st.integers(), st.text())
def test_seeds_fit_every_server(seed, what):
    assert 0 <= derive_choice_seed(seed, what) < 2**31


@pytest.mark.parametrize("chat", [True, False])
def test_choices_get_their_numbers_and_their_part_of_the_bill(chat):
    todo = work([1, 3, 4])
    entries, ignored = read_reply(todo, todo.outgoing(), reply("aaaa", "bb", "", completion=8, chat=chat))
    assert list(entries) == [1, 3, 4] and todo.missing == [] and ignored == []
    assert entries[1] == Entry("aaaa", "stop", 10, 5, "m-1") and entries[4] == Entry("", "stop", 0, 1, "m-1")
    assert sum(e.completion_tokens for e in entries.values()) == 8


def test_a_reply_that_counts_nothing():
    for usage in (None, {}, {"prompt_tokens": 5}, {"prompt_tokens": "5", "completion_tokens": 1}, "none"):
        todo = work()
        entries, _ = read_reply(todo, todo.outgoing(), {**reply("a", "b", "c"), "usage": usage})
        assert {(e.prompt_tokens, e.completion_tokens) for e in entries.values()} == {(None, None)}


def test_fewer_choices_than_asked():
    todo = work()
    entries, ignored = read_reply(todo, todo.outgoing(), reply("one"))
    assert list(entries) == [0] and todo.missing == [1, 2] and todo.alone
    assert ignored == ["n: fewer choices than asked"]


def test_one_text_for_all_choices_counts_once_with_the_whole_bill():
    todo = work()
    entries, ignored = read_reply(todo, todo.outgoing(), reply(LONG, LONG, LONG))
    assert entries == {0: Entry(LONG, "stop", 10, 30, "m-1")} and todo.missing == [1, 2] and todo.alone
    assert ignored == ["n: all choices the same"]
    _, ignored = read_reply(todo, todo.outgoing(), reply(LONG))
    assert ignored == ["seed or temperature: the same text again"]


def test_what_may_be_the_same_by_chance_or_must_be():
    for texts, changes in (
        (["Yes.", "Yes.", "Yes."], {}),
        ([LONG] * 3, {"temperature": 0}),
        ([LONG, LONG, "no"], {}),
    ):
        todo = work(**changes)
        entries, ignored = read_reply(todo, todo.outgoing(), reply(*texts))
        assert len(entries) == 3 and ignored == []


def test_other_settings_that_a_reply_shows_to_be_ignored():
    todo = work()
    assert read_reply(todo, todo.outgoing(), reply("a", "b", "c", completion=151))[1] == ["max_tokens"]
    for text, expected in (('{"a": 1}', []), ("sure!", ["response_format"])):
        todo = work([0], response_format={"type": "json_object"})
        assert read_reply(todo, todo.outgoing(), reply(text))[1] == expected


def test_more_choices_than_asked_are_cut():
    todo = work([0])
    assert len(read_reply(todo, todo.outgoing(), reply("a", "b"))[0]) == 1


def test_contents_of_all_forms():
    messages = [
        {"content": None, "refusal": "I will not."},
        {"content": [{"type": "text", "text": "two "}, {"text": "parts"}]},
        {},
    ]
    todo = work()
    entries, _ = read_reply(todo, todo.outgoing(), {"choices": [{"message": m, "finish_reason": 3} for m in messages]})
    assert [e.text for e in entries.values()] == ["I will not.", "two parts", ""] and entries[0].finish is None


@pytest.mark.parametrize(
    "broken",
    [{}, {"choices": []}, {"choices": None}, {"choices": ["x"]}, {"choices": [{}]}, {"choices": [None]},
     {"choices": [{"message": "x"}]}, {"error": {"message": "overloaded"}}],
)  # fmt: skip
def test_replies_without_choices_are_faults_and_nothing_is_taken(broken):
    todo = work()
    with pytest.raises(Fault):
        read_reply(todo, todo.outgoing(), broken)
    assert todo.missing == [0, 1, 2]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["choices", "message", "content", "text", "usage", "error", "model", "finish_reason"]), x)))  # fmt: skip
def test_no_reply_is_a_surprise(value):
    todo = work()
    try:
        parsed = read_json(json.dumps(value).encode(), "application/json")
        entries, _ = read_reply(todo, todo.outgoing(), parsed)
    except Fault:
        return
    assert entries and all(isinstance(e.text, str) for e in entries.values())


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [(b'{"choices": [', "application/json", "broken JSON"), (b"", "application/json", "broken JSON"),
     (b'{"a": "\xff"}', "text/plain", "broken JSON"), (b"<html>", "text/html", "no JSON"), (b"[]", "application/json", "no JSON"),
     (b"[" * 100_000, "application/json", "broken JSON")],
)  # fmt: skip
def test_bodies_that_are_no_answers(content, kind, expected):
    with pytest.raises(Fault) as caught:
        read_json(content, kind)
    assert caught.value.kind == expected


def test_json_is_taken_under_a_wrong_label():
    assert read_json(b'{"a": 1}', "text/plain") == {"a": 1}


@pytest.mark.parametrize(
    ("finish", "why"),
    [
        ("stop", None), (None, None), ("eos_token", None), ("length", "max_tokens used up"), ("MAX_TOKENS", "max_tokens used up"),
        ("content_filter", "content filter"), ("content_filter: SAFETY", "content filter"), ("error", "broken off"),
        ("refused: invalid_prompt", "refused: invalid_prompt"),
    ],
)  # fmt: skip
def test_why_an_answer_has_no_end_of_its_own(finish, why):
    assert explain_finish(finish) == why


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("at a camp\nExplanation: It is safe. Also peop", "at a camp\nExplanation: It is safe."),
        ('at a camp\nExplanation: "It is safe." Al', 'at a camp\nExplanation: "It is safe."'),
        ("at a camp\nExplanation: it is sa", ""),
        ("at a camp\nExplanation: Mr. Smith paid $3.50 to Dr. Ho", ""),
        ("camp\nExplanation: safe\n\nSituation 2: in a fo", "camp\nExplanation: safe\n\n"),
        ('{"situation": "a", "explanation": "b"}\n{"situ', '{"situation": "a", "explanation": "b"}'),
        ("It is safe. Also:\n1. Peo", "It is safe."),
        ("", ""),
    ],
)
def test_a_cut_answer_is_whole_as_far_as_its_sentences(text, whole):
    assert read_whole(Answer(text, "length", None, None)) == whole
    assert read_whole(Answer(text, "stop", None, None)) == read_whole(Answer(text, None, None, None)) == text
    for finish in ("content_filter", "error", "refused: content_filter"):
        assert read_whole(Answer(text, finish, None, None)) == ""


@given(st.text(alphabet=".?! \n}])\"'ab1*_"))
def test_what_is_whole_is_a_beginning(text):
    whole = read_whole(Answer(text, "length", None, None))
    assert text.startswith(whole) and read_whole(Answer(whole, "length", None, None)) == whole


def test_reading_what_is_whole_takes_linear_time():
    began = time.perf_counter()
    for text in (
        "." * 50_000 + "x",
        "\n " * 50_000 + "x",
        "}" * 50_000 + "x",
        '."' * 50_000 + "x",
        "a" * 100_000,
    ):
        read_whole(Answer(text, "length", None, None))
    assert time.perf_counter() - began < 2


def test_broken_choices_are_missing_still():
    todo, said = work(), reply("one", "half a", "three")
    said["choices"][1] |= {"finish_reason": "error", "error": {"code": 502, "message": "gone"}}
    entries, ignored = read_reply(todo, todo.outgoing(), said)
    assert [e.text for e in entries.values()] == ["one", "three"] and todo.missing == [2] and ignored == []
    assert not todo.alone
    todo, said = work([0]), reply("half a")
    said["choices"][0]["finish_reason"] = "error"
    with pytest.raises(Fault, match="broken choice"):
        read_reply(todo, todo.outgoing(), said)
    assert todo.missing == [0]


def test_a_cut_answer_says_nothing_of_the_format():
    todo, said = work([0], response_format={"type": "json_object"}), reply('{"score": 0.')
    said["choices"][0]["finish_reason"] = "length"
    assert read_reply(todo, todo.outgoing(), said)[1] == []


def test_what_was_thought_away():
    for text, finish, away in (
        ("", "length", True), (" \n", "max_tokens", True), ("<think>Well, the user", "length", True), ("", "stop", False),
        ("<think>Well</think> at a", "length", False), ("at a", "length", False), ("", "content_filter", False),
    ):  # fmt: skip
        assert is_thought_away(Entry(text, finish)) is away


def test_a_setting_that_is_null_is_not_sent():
    request = phrase_request(make_endpoint(), "x", temperature=None, top_p=0.9, max_tokens=None)
    assert set(request) == {"model", "messages", "top_p"}
