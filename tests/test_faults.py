"""Tests of `faults`."""

import json

import pytest
from conftest import make_endpoint
from hypothesis import given
from hypothesis import strategies as st

from drot_utils.llm.faults import Declined, Fault, Refusal, find_setting, open_error, read_delay, read_status, say_error


def said(message, code=None):
    return json.dumps({"error": {"message": message, "code": code, "type": "t"}}).encode()


def read(status, body=b"", **changes):
    return read_status(status, body, make_endpoint(api_key_env="MY_KEY", **changes), "the request 'x'")


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_what_passes(status):
    fault = read(status, said("busy"))
    assert isinstance(fault, Fault) and fault.kind == f"HTTP {status}" and "busy" in str(fault)
    assert fault.overload == (status in (429, 503)) and not fault.billed


@pytest.mark.parametrize(
    ("status", "body", "todo"),
    [
        (400, said("temperature too high"), "correct the setting"),
        (401, said("bad key"), "environment variable MY_KEY"),
        (402, said("pay"), "no credit left"),
        (403, said("not you"), "what the key in MY_KEY may do"),
        (404, said("no such model", "model_not_found"), "`model`"),
        (413, said("too long"), "correct the setting"),
        (422, b'{"detail": [{"msg": "extra field"}]}', "correct the setting"),
        (429, said("You exceeded your current quota", "insufficient_quota"), "no credit left"),
    ],
)
def test_what_stops_says_what_was_asked_what_came_back_and_what_to_do(status, body, todo):
    with pytest.raises(Refusal) as caught:
        read(status, body=body)
    text = str(caught.value)
    assert caught.value.status == status and todo in text and "the request 'x'" in text and f"HTTP {status}" in text
    assert say_error(body) in text and "http://127.0.0.1:9/v1, model m" in text


def test_a_server_that_wants_a_key_after_all():
    with pytest.raises(Refusal, match="api_key_env"):
        read_status(401, b"", make_endpoint(), "x")


@given(st.binary())
def test_no_error_body_is_a_surprise(body):
    text = say_error(body)
    assert len(text) <= 200 and "\n" not in text and isinstance(open_error(body), dict)


def test_errors_of_many_forms():
    assert (
        say_error(b'{"error": "plain"}') == "plain"
        and say_error({"error": {"message": "read already"}}) == "read already"
    )
    assert say_error(b'{"detail": "fastapi"}') == "fastapi"
    assert (
        say_error(b'{"message": "flat", "code": 5}') == "flat" and say_error(b'{"error": null, "message": "x"}') == "x"
    )
    assert say_error(b"<html>\n<h1>502</h1>") == "<html> <h1>502</h1>"
    assert say_error(b"") == "an empty response" and say_error(b"[1]") == "1" and say_error(b"[]") == "[]"


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
        (400, {"message": "Invalid prompt: your prompt was flagged", "code": "invalid_prompt"}, "invalid_prompt"),
        (422, {"message": "no", "type": "content_filter"}, "content_filter"),
        (403, {"message": "flagged", "code": 403, "metadata": {"flagged_input": "x"}}, "flagged_input"),
        (400, {"message": "litellm.ContentPolicyViolationError: no", "code": "400"}, "content policy"),
    ],
)
def test_a_no_to_what_one_request_says(status, error, reason):
    for body in ({"error": error}, [{"error": error}], error):
        with pytest.raises(Declined) as caught:
            read(status, body=json.dumps(body).encode())
        assert str(caught.value) == reason


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
    assert find_setting(open_error(said(message))) is None


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ("Please retry in 24s.", 24), ("Please try again in 1m2.5s. Visit", 62.5), ("Please retry after 24 seconds.", 24),
        ("Try again in 480ms", 0.48), ("Please wait 2 minutes and", 120), ("try again in 1 hour 3 minutes", 3780),
        ('{"error": {"message": "Please try again in 20s."}}', 20),
        ('[{"error": {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "24s"}]}}]', 24),
        ('{"error": {"details": [{"retryDelay": "24.5s"}], "message": "Please retry in 9h."}}', 24.5),
        ('{"retry_after": 7}', 7), ('{"retry_delay": {"seconds": 24}}', 24),
        ("The server had an error", None), ("Limit 3 requests a minute; retry later", None), ("", None), ("\xff{", None),
    ],
)  # fmt: skip
def test_delays_that_a_body_names(body, seconds):
    assert read_delay(body.encode("latin-1")) == pytest.approx(seconds)


@given(st.text())
def test_no_body_is_a_surprise_for_the_reader_of_delays(text):
    for body in (text, json.dumps({"retry_after": text}), f"retry in {text}"):
        delay = read_delay(body.encode("utf-8", "replace"))
        assert delay is None or 0 <= delay < float("inf")
