import json

import pytest
from conftest import make_endpoint
from hypothesis import given
from hypothesis import strategies as st

from drot_utils import faults
from drot_utils.errors import EndpointError
from drot_utils.faults import (
    Declined,
    Fault,
    Refusal,
    describe_request,
    find_setting,
    read_error,
    read_status,
)


def said(message, code=None):
    return json.dumps({"error": {"message": message, "code": code, "type": "t"}}).encode()


def read(status, headers=None, body=b"", **changes):
    return read_status(
        status, headers or {}, body, make_endpoint(api_key_env="MY_KEY", **changes), "the request 'x'"
    )


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_what_passes(status):
    fault = read(status, {"retry-after": "3"}, said("busy"))
    assert (
        isinstance(fault, Fault)
        and fault.wait == 3
        and fault.kind == f"HTTP {status}"
        and "busy" in str(fault)
    )
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
    assert (
        caught.value.status == status
        and todo in text
        and "the request 'x'" in text
        and f"HTTP {status}" in text
    )
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
    assert faults.PATIENCE >= 120
    for fault, attempt, waited, expected in (
        (other, 4, 0, True), (other, 5, 0, False), (load, 5, 15, True), (load, 30, 119, True), (load, 30, 121, False),
        (load, 4, 999, True),
    ):  # fmt: skip
        assert faults.keeps_asking(fault, attempt, 5, waited) is expected
    assert not faults.keeps_asking(load, 0, 0, 0)  # `max_retries: 0` means it
