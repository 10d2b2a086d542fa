import pytest
from hypothesis import given
from hypothesis import strategies as st

from drot_utils import prompts

WORDS = st.text(st.sampled_from("abcdefg "), min_size=1).map(str.split).filter(bool).map(" ".join)


def test_teacher_prompt_is_appendix_a():
    text = prompts.teacher_prompt("Setting a fire", -1)
    assert text.startswith(
        "Given an action, write down a\nsituation in which the action is\nmore unethical\n"
    )
    assert text.endswith("Action: Setting a fire\nSituation:")


@pytest.mark.parametrize(
    "text",
    [
        " at a campsite.\nExplanation: the fire is safe there.",
        "Situation: at a campsite\nExplanation: the fire is safe there",
        "**Situation:** at a campsite\n\n**Explanation:** the fire is safe there.",
        "Action: x\nSituation: at a campsite\nExplanation: the fire is safe there.\n\nAction: y",
        "- Situation: at  a\ncampsite\n- explanation: the fire is safe there",
        "“at a campsite.”\nExplanation: “the fire is safe there.”",
    ],
)
def test_teacher_answers_as_models_write_them(text):
    assert prompts.parse_teacher(text) == prompts.Parsed("at a campsite", "the fire is safe there")


@pytest.mark.parametrize(
    "text",
    ["", "I cannot help with that.", "at a campsite", "Explanation: because", "Situation: x\nExplanation:"],
)
def test_what_does_not_parse_is_none(text):
    assert prompts.parse_teacher(text) is None


@given(st.text())
def test_parsers_never_raise(text):
    for parse in (prompts.parse_teacher, prompts.parse_student):
        parsed = parse(text)
        assert parsed is None or (parsed.context and parsed.rationale)


@given(WORDS, WORDS)
def test_round_trips(context, rationale):
    expected = prompts.Parsed(context, rationale)
    assert prompts.parse_teacher(prompts.teacher_response(context, rationale)) == expected
    assert prompts.parse_student(prompts.student_target(context, rationale)) == expected


def test_student_format_is_appendix_d():
    assert (
        prompts.student_source("Setting a fire", 1, True)
        == "Action: Setting a fire.\nModifier: more ethical."
    )
    assert prompts.student_source("Setting a fire", 1, False).endswith("ethical.\n")
    assert (
        prompts.student_target("at a campsite", "it is safe!")
        == "Update: at a campsite. Explanation: it is safe!"
    )


@pytest.mark.parametrize(
    "text", ["Update: a campsite", "Explanation: x. Update: y.", "at a campsite", "Update:  Explanation: y"]
)
def test_cut_off_student_answers_do_not_parse(text):
    assert prompts.parse_student(text) is None


def test_critic_marks_action_and_direction():
    assert prompts.critic_text("Lying", -1, "to a judge") == "[ACTION] Lying [NEG] to a judge"


def test_no_other_direction():
    with pytest.raises(KeyError):
        prompts.direction(0)
