import pytest
from conftest import CUT, WRAPPERS
from hypothesis import given
from hypothesis import strategies as st

from drot_utils.scores import parse_score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 0.8}', 0.8),
        (' {"score": 1}\n', 1.0),
        ('```json\n{"score": 0.25}\n```', 0.25),
        ('Sure! Here it is:\n```\n{"Score": "0.25"}\n```\nHope this helps with the 2 questions.', 0.25),
        ('My judgment: {"reason": "it is 3 in the morning", "score": 0.3} as asked', 0.3),
        ('{"probability": "85%"}', 0.85),
        ('{"answer": "8/10"}', 0.8),
        ('{"thoughts": {"a": 1}, "score": 0.5}', 0.5),
        ('{"score": 0.8', 0.8),
        ("0.7", 0.7),
        (".7", 0.7),
        ("1.", 1.0),
        ("0", 0.0),
        ("1e-3", 0.001),
        ("85%", 0.85),
        ("About 85 percent of people would say so.", 0.85),
        ("**Score:** 0.65", 0.65),
        ("1. The beach is crowded.\n2. Fires spread.\nProbability = 0.1", 0.1),
        ("On a scale from 0 to 1, I would say 0.9.", 0.9),
        ("I give it 0.9, as it is safe there", 0.9),
        ("7 out of 10", 0.7),
        ("score: 7/10", 0.7),
        ("<think>0.1? No, 0.2.</think>\n0.6", 0.6),
        ("0.6 ... so, again: 0.6", 0.6),
    ],
)
def test_what_models_say(text, score):
    assert parse_score(text) == pytest.approx(score)


@pytest.mark.parametrize(
    "text",
    [
        "", "probably", "yes", "85", "1.2", "-0.3", "120%", "0.6 to 0.8", "0,8", '{"score": 85}', '{"score": null}',
        '{"score": true}', '{"score": NaN}', '{"score": Infinity}', '{"score": "high"}', '{"score": [0.1, 0.2]}', "3/0",
        "from 0 to 10, it is 8", "score: -0.3", "score: 0.2, or a score of 0.4", "<think>perhaps 0.3", "1.2.3", "GPT4", "Answer 1: 0.8", "{" * 5000,
        '{"a": 1, "b": 2}',
    ],
)  # fmt: skip
def test_nothing_is_guessed(text):
    assert parse_score(text) is None


JSON = [
    '{"score": #}',
    '```json\n{"score": #}\n```',
    'I think {"score": #} fits.',
    '{"why": "2 people", "score": "#"}',
]
PROSE = [
    "#",
    "Score: #",
    "I would say #.",
    "**#**",
    "On a scale of 0 to 1: #",
    "<think>hm, 0.123456</think>#",
]


@given(st.integers(0, 10_000), st.sampled_from([*JSON, *PROSE]))
def test_a_score_survives_its_wrapping(number, form):
    assert parse_score(form.replace("#", f"{number / 10_000:.4f}")) == number / 10_000


@given(st.integers(0, 10_000), st.sampled_from([*PROSE, JSON[-1]]))
def test_a_per_cent_survives_its_wrapping(number, form):
    assert parse_score(form.replace("#", f"{number / 100:.2f}%")) == pytest.approx(number / 10_000)


@given(st.integers(0, 10_000), st.sampled_from(JSON[:1] + PROSE[:-1]), st.sampled_from(WRAPPERS))
def test_a_score_survives_thoughts_and_special_tokens(number, form, wrapper):
    answer = form.replace("#", f"{number / 10_000:.4f}")
    assert parse_score(wrapper.replace("#", answer).replace("@", "0.2? Score: 0.3")) == number / 10_000


@pytest.mark.parametrize("wrapper", CUT)
def test_a_thought_that_was_cut_off_gives_no_score(wrapper):
    assert parse_score(wrapper.replace("@", "perhaps 0.3")) is None


@given(st.text(alphabet=st.sampled_from('0123456789.,%/-{}":`\n score eE</think>'), max_size=60))
def test_any_text_gives_null_or_a_score(text):
    score = parse_score(text)
    assert score is None or 0 <= score <= 1
