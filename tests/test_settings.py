"""Models, endpoints and who answers: what is refused."""

import pytest
from conftest import make_endpoint
from pydantic import ValidationError

from drot_utils.settings import ModelRef, Respondent

LOCAL = ModelRef(source="package", name="smollm2-135m-instruct")


def test_a_hub_model_without_a_commit_is_refused():
    with pytest.raises(ValidationError, match="pinned"):
        ModelRef(source="hub", name="google/flan-t5-xl", revision="main")


def test_a_respondent_answers_in_exactly_one_way():
    assert Respondent(name="local", model=LOCAL).model == LOCAL
    with pytest.raises(ValidationError, match="exactly one"):
        Respondent(name="nobody")
    with pytest.raises(ValidationError, match="exactly one"):
        Respondent(name="both", model=LOCAL, recorded="data/demo/teacher_rich.tsv")


def test_a_respondents_name_can_be_a_files():
    with pytest.raises(ValidationError):
        Respondent(name="../elsewhere", model=LOCAL)


def test_an_endpoint_is_an_address_without_secrets_and_names_a_variable():
    assert make_endpoint("https://api.openai.com/v1", api_key_env="OPENAI_API_KEY").model == "m"
    for wrong in (
        {"url": "ftp://host/v1"},
        {"url": "host"},
        {"url": "http://u:p@host/v1"},
        {"api_key_env": "sk-1"},
        {"concurrency": 5000},
    ):
        with pytest.raises(ValidationError):
            make_endpoint(**wrong)
