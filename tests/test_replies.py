"""Tests of `replies`."""

import json
import time

import pytest
from conftest import make_endpoint
from hypothesis import given
from hypothesis import strategies as st

from drot_utils.llm.cache import Answer, request_key
from drot_utils.llm.faults import Fault
from drot_utils.llm.replies import (
    Work,
    derive_choice_seed,
    describe_request,
    explain_finish,
    is_thought_away,
    list_missing,
    phrase_request,
    read_json,
    read_reply,
    read_whole,
)


def test_a_request_is_known_by_its_end():
    prompt = "Given an action " * 20 + "\nAction: Lying\nSituation:"
    assert describe_request({"prompt": prompt}).endswith("Action: Lying Situation:'")
    assert describe_request({"messages": [{"role": "user", "content": "Hi"}]}) == "the request 'Hi'"


LONG = "a text that is long enough not to be the same by chance"
REQUEST = {"model": "m", "prompt": "p", "n": 3, "temperature": 1.0, "max_tokens": 50, "seed": 7}


def work(missing=(0, 1, 2), **changes):
    return Work("key", {**REQUEST, **changes}, list(missing))


def reply(*texts, prompt=10, completion=30, chat=False):
    choices = [{"finish_reason": "stop", **({"message": {"content": t}} if chat else {"text": t})} for t in texts]
    return {"model": "m-1", "choices": choices, "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


def test_missing_choices_and_repeated_requests(cache):
    other = {**REQUEST, "seed": 8}
    cache.put([(REQUEST, {1: Answer("x")})])
    requests = [REQUEST, other, {**other, "n": 5}, {**REQUEST, "n": 2}]
    keys = [request_key(r) for r in requests]
    works = list_missing(requests, keys, cache, refresh=False)
    assert [(w.key, w.missing) for w in works] == [(keys[0], [0, 2]), (keys[1], [0, 1, 2, 3, 4])]
    assert [w.missing for w in list_missing(requests, keys, cache, refresh=True)] == [[0, 1, 2], [0, 1, 2, 3, 4]]
    assert [w.missing for w in list_missing(requests, keys, None, refresh=False)] == [[0, 1, 2], [0, 1, 2, 3, 4]]


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
    answers, fewer = read_reply(todo, todo.outgoing(), reply("aaaa", "bb", "", completion=8, chat=chat))
    assert list(answers) == [1, 3, 4] and todo.missing == [] and not fewer
    assert answers[1] == Answer("aaaa", "stop", 10, 5, "m-1") and answers[4] == Answer("", "stop", 0, 1, "m-1")
    assert sum(e.completion_tokens for e in answers.values()) == 8


def test_a_reply_that_counts_nothing():
    for usage in (None, {}, {"prompt_tokens": 5}, {"prompt_tokens": "5", "completion_tokens": 1}, "none"):
        todo = work()
        answers, _ = read_reply(todo, todo.outgoing(), {**reply("a", "b", "c"), "usage": usage})
        assert {(e.prompt_tokens, e.completion_tokens) for e in answers.values()} == {(None, None)}


def test_fewer_choices_than_asked():
    todo = work()
    answers, fewer = read_reply(todo, todo.outgoing(), reply("one"))
    assert list(answers) == [0] and todo.missing == [1, 2] and todo.alone
    assert fewer


def test_one_text_for_all_choices_counts_once_with_the_whole_bill():
    todo = work()
    answers, fewer = read_reply(todo, todo.outgoing(), reply(LONG, LONG, LONG))
    assert answers == {0: Answer(LONG, "stop", 10, 30, "m-1")} and todo.missing == [1, 2] and todo.alone
    assert fewer


def test_what_may_be_the_same_by_chance_or_must_be():
    for texts, changes in ((["Yes.", "Yes.", "Yes."], {}), ([LONG] * 3, {"temperature": 0}), ([LONG, LONG, "no"], {})):
        todo = work(**changes)
        answers, fewer = read_reply(todo, todo.outgoing(), reply(*texts))
        assert len(answers) == 3 and not fewer


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
    answers, _ = read_reply(todo, todo.outgoing(), {"choices": [{"message": m, "finish_reason": 3} for m in messages]})
    assert [e.text for e in answers.values()] == ["I will not.", "two parts", ""] and answers[0].finish is None


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
        answers, _ = read_reply(todo, todo.outgoing(), parsed)
    except Fault:
        return
    assert answers and all(isinstance(e.text, str) for e in answers.values())


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
    for text in ("." * 50_000 + "x", "\n " * 50_000 + "x", "}" * 50_000 + "x", '."' * 50_000 + "x", "a" * 100_000):
        read_whole(Answer(text, "length", None, None))
    assert time.perf_counter() - began < 2


def test_broken_choices_are_missing_still():
    todo, said = work(), reply("one", "half a", "three")
    said["choices"][1] |= {"finish_reason": "error", "error": {"code": 502, "message": "gone"}}
    answers, fewer = read_reply(todo, todo.outgoing(), said)
    assert [e.text for e in answers.values()] == ["one", "three"] and todo.missing == [2] and not fewer
    assert not todo.alone
    todo, said = work([0]), reply("half a")
    said["choices"][0]["finish_reason"] = "error"
    with pytest.raises(Fault, match="broken choice"):
        read_reply(todo, todo.outgoing(), said)
    assert todo.missing == [0]


def test_what_was_thought_away():
    for text, finish, away in (
        ("", "length", True), (" \n", "max_tokens", True), ("<think>Well, the user", "length", True), ("", "stop", False),
        ("<think>Well</think> at a", "length", False), ("at a", "length", False), ("", "content_filter", False),
    ):  # fmt: skip
        assert is_thought_away(Answer(text, finish)) is away


def test_a_setting_that_is_null_is_not_sent():
    request = phrase_request(make_endpoint(), "x", temperature=None, top_p=0.9, max_tokens=None)
    assert set(request) == {"model", "messages", "top_p"}
