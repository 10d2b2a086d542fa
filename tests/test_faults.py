import json

import pytest
from conftest import make_endpoint
from hypothesis import given
from hypothesis import strategies as st

from drot_utils.errors import EndpointError
from drot_utils.faults import Fault, Refusal, describe_request, read_error, read_status


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
