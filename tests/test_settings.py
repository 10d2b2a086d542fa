"""Models, endpoints and who answers: what is refused."""

import pytest
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
