"""Tests of `prompts`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drot_utils.data.parsing import Parsed
from drot_utils.method import prompts

WORDS = st.text(st.sampled_from("abcdefg "), min_size=1).map(str.split).filter(bool).map(" ".join)


def test_teacher_prompt_is_appendix_a():
    text = prompts.teacher_prompt("Setting a fire", -1)
    assert text.startswith("Given an action, write down a\nsituation in which the action is\nmore unethical\n")
    assert text.endswith("Action: Setting a fire\nSituation:")


@given(st.text())
def test_parsing_never_raises(text):
    parsed = prompts.parse_student(text)
    assert parsed is None or (parsed.context and parsed.rationale)


@given(WORDS, WORDS)
def test_what_a_student_learns_to_write_is_read(context, rationale):
    assert prompts.parse_student(prompts.student_target(context, rationale)) == Parsed(context, rationale)


def test_student_format_is_appendix_d():
    assert prompts.student_source("Setting a fire", 1, True) == "Action: Setting a fire.\nModifier: more ethical."
    assert prompts.student_source("Setting a fire", 1, False).endswith("ethical.\n")
    assert prompts.student_target("at a campsite", "it is safe!") == "Update: at a campsite. Explanation: it is safe!"


@pytest.mark.parametrize(
    "text", ["Update: a campsite", "Explanation: x. Update: y.", "at a campsite", "Update:  Explanation: y"]
)
def test_cut_off_student_answers_do_not_parse(text):
    assert prompts.parse_student(text) is None


def test_no_other_direction():
    with pytest.raises(KeyError):
        prompts.teacher_prompt("Lying", 0)
