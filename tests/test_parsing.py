"""Tests of `parsing`."""

import time

import pandas as pd
import pytest
from conftest import CUT, WRAPPERS
from hypothesis import given
from hypothesis import strategies as st

from drot_utils.data.parsing import Parsed, clean, diagnose, parse_score, parse_teacher, unwrap
from drot_utils.method.prompts import teacher_prompt, teacher_response
from drot_utils.study.paths import ROOT

CAMP = Parsed("at a campsite", "the fire is safe there")
DIAGNOSES = ("parsed", "empty", "refusal", "cut off", "too long", "no situation", "no explanation")

#: How real models write the pair CAMP.
WRITTEN = [
    " at a campsite\nExplanation: the fire is safe there",
    "at a campsite.\nExplanation: the fire is safe there.",
    "Situation: at a campsite\nExplanation: the fire is safe there",
    "SITUATION: at a campsite\nEXPLANATION: the fire is safe there",
    "Situation: at a campsite. Explanation: the fire is safe there.",
    "at a campsite. explanation: the fire is safe there",
    "**Situation:** at a campsite\n\n**Explanation:** the fire is safe there.",
    "**Situation**: at a campsite\n**Explanation**: the fire is safe there",
    "*Situation:* at a campsite\n*Explanation:* the fire is safe there",
    "__Situation:__ at a campsite\n__Explanation:__ the fire is safe there",
    "***Situation: at a campsite***\n***Explanation: the fire is safe there***",
    "`Situation:` at a campsite\n`Explanation:` the fire is safe there",
    "**Situation: at a campsite**\n**Explanation: the fire is safe there**",
    "## Situation\nat a campsite\n\n## Explanation\nthe fire is safe there",
    "### Situation:\n\nat a campsite\n\n### Explanation:\n\nthe fire is safe there",
    "# More ethical\n\n**Situation:** at a campsite\n\n---\n\n**Explanation:** the fire is safe there",
    "- Situation: at a campsite\n- Explanation: the fire is safe there",
    "* **Situation:** at a campsite\n* **Explanation:** the fire is safe there",
    "Situation:\n- at a campsite\nExplanation:\n- the fire is safe there\n- it is warm",
    "• Situation – at a campsite\n• Explanation – the fire is safe there",
    "1. Situation: at a campsite\n2. Explanation: the fire is safe there",
    "1) **Situation:** at a campsite\n   **Explanation:** the fire is safe there",
    "Situation 1: at a campsite\nExplanation 1: the fire is safe there",
    "Situation #1: at a campsite\nExplanation #1: the fire is safe there",
    "```\nSituation: at a campsite\nExplanation: the fire is safe there\n```",
    "```text\nAction: Setting a fire\nSituation: at a campsite\nExplanation: the fire is safe there\n```\n",
    "> Situation: at a campsite\n> Explanation: the fire is safe there",
    "> > **Situation:** at a campsite\n>\n> **Explanation:** the fire is safe there",
    "Situation:\nat a campsite\nExplanation:\nthe fire is safe there",
    "Situation:\n\n  at a campsite\n\nExplanation:\n\n  the fire is safe there\n\nHope this helps!",
    "Situation: at a\ncampsite\nExplanation: the fire is\nsafe there",
    "at a campsite\nReason: the fire is safe there",
    "Context: at a campsite\nReason: the fire is safe there",
    "**Scenario:** at a campsite\n**Rationale:** the fire is safe there",
    "Context: at a campsite\nJustification: the fire is safe there",
    "Situation: at a campsite\nReasoning: the fire is safe there",
    "Situation: at a campsite\nBecause: the fire is safe there",
    "at a campsite\nBecause:\nthe fire is safe there",
    "Situation in which the action is more ethical: at a campsite\nReason why it is more ethical: the fire is safe there",
    "Situation (more ethical): at a campsite\nExplanation (more ethical): the fire is safe there",
    "The situation: at a campsite\nThe explanation: the fire is safe there",
    "More ethical situation: at a campsite\nExplanation: the fire is safe there",
    "Action: Setting a fire\nSituation: at a campsite\nExplanation: the fire is safe there",
    "Action: Setting a fire\nat a campsite\nExplanation: the fire is safe there",
    "**Action:** Setting a fire\n\n**Situation:** at a campsite\n\n**Explanation:** the fire is safe there",
    "Action: Setting a fire Situation: at a campsite Explanation: the fire is safe there",
    "Situation: at a campsite\nAction: Setting a fire\nExplanation: the fire is safe there",
    "Action:\nSituation:\nExplanation:\n\nAction: Setting a fire\nSituation: at a campsite\nExplanation: the fire is safe there",
    teacher_prompt("Setting a fire", 1) + " at a campsite\nExplanation: the fire is safe there",
    " at a campsite\nExplanation: the fire is safe there\n\nAction: Telling a lie\nSituation: in court\nExplanation: it harms",
    "Situation: at a campsite\nExplanation: the fire is safe there\n\nSituation: in a stove\nExplanation: it is meant for it",
    "Situation 1: at a campsite\nExplanation 1: the fire is safe there\nSituation 2: in a stove\nExplanation 2: it is meant",
    "Situation 1: at a campsite\nSituation 2: in a stove\nExplanation 1: the fire is safe there\nExplanation 2: it is meant",
    "1. at a campsite\n2. in a stove\n\nExplanation: the fire is safe there",
    "1. at a campsite\n   Explanation: the fire is safe there\n\n2. in a stove\n   Explanation: it is meant for it",
    "### Situation 1: Camping\n**Context:** at a campsite\n**Explanation:** the fire is safe there",
    "Sure! Here's a situation:\n\nat a campsite\n\nExplanation: the fire is safe there",
    "Certainly, here is one.\n\nSituation: at a campsite\n\nExplanation: the fire is safe there\n\nLet me know if you need more!",
    "Here’s a situation in which it is more ethical:\n- at a campsite\n\nExplanation: the fire is safe there",
    "<think>\nThe user wants Situation: x\nExplanation: y\n</think>\n\nSituation: at a campsite\nExplanation: the fire is safe there",
    "I can't call this ethical in general, but here is a case:\n\nSituation: at a campsite\nExplanation: the fire is safe there",
    "Here's a situation: at a campsite\n\nHere is the explanation:\n\n1. the fire is safe there\n2. it is warm",
    "“at a campsite.”\nExplanation: “the fire is safe there.”",
    '"at a campsite"\nExplanation: "the fire is safe there."',
    "‘at a campsite’\nExplanation: «the fire is safe there»",
    "Situation： at a campsite\nExplanation： the fire is safe there",
    "**“Situation”:** at a campsite\n**“Explanation”:** the fire is safe there",
    "Situation — at a campsite\nExplanation — the fire is safe there",
    "\ufeffSituation:\u200b at a\u00a0campsite\nExplanation: the fire is safe there",
    "Situation: at a campsite\r\nExplanation: the fire is safe there\r\n",
    "Situation: at a campsite\u2028Explanation: the fire is safe there",
    '{"situation": "at a campsite", "explanation": "the fire is safe there"}',
    '```json\n{\n  "action": "Setting a fire",\n  "explanation": "the fire is safe there.",\n  "situation": "at a campsite."\n}\n```',
    'Here is the JSON:\n\n[{"Situation": "at a campsite", "Explanation": "the fire is safe there"}, {"Situation": "b", "Explanation": "c"}]',
    '{"situations": [{"context": "at a campsite", "reason": "the fire is safe there"}]}',
    '{"situation_1": "at a campsite", "situation_2": "b", "explanation_1": "the fire is safe there", "explanation_2": "c"}',
    '{"situation": "at a campsite",\n "explanation": "the fire is safe there',
    "{'situation': 'at a campsite', 'explanation': 'the fire is safe there'}",
    "Sure:\n```python\n[{'Situation': \"at a campsite\", 'Explanation': 'the fire is safe there', 'why not': None}]\n```\nDone.",
    '{"situation": "at a campsite"}\nExplanation: the fire is safe there',
    'Here is the JSON: {"situation": "at a campsite"}\nExplanation: the fire is safe there',
    'Sure! {"situation": "at a campsite.", "explanation": "the fire is safe there."} Hope this helps.',
    '```json {"explanation": "the fire is safe there", "situation": "at a campsite"}```',
    "{1: {'situation': 'at a campsite', 'explanation': 'the fire is safe there'}}",
    'Here it is\n\n{"scenario 1": "at a campsite"}\n\nIt is so.\n\nExplanation 1: the fire is safe there',
    '{"situation": "at a campsite", "explanation": "the fire is safe there',
    "Situation: at a campsite\nExplanation: the fire is safe there. It is also warm, and the",
]  # fmt: skip

#: Other texts, with what they hold.
OTHER = [
    ("At a campsite.\nBecause the fire is safe there.", "At a campsite", "Because the fire is safe there"),
    ("At a campsite.\n\nThis makes it fine, as the fire is safe.", "At a campsite", "This makes it fine, as the fire is safe"),
    ("Because she asked\nExplanation: It is kind", "Because she asked", "It is kind"),
    ("The reason is good: they starve\nExplanation: it helps", "The reason is good: they starve", "it helps"),
    ("They have no explanation for it\nExplanation: it is odd", "They have no explanation for it", "it is odd"),
    ("A situation-specific rule holds\nExplanation: rules differ", "A situation-specific rule holds", "rules differ"),
    ("I can't swim\nExplanation: it is not their fault", "I can't swim", "it is not their fault"),
    ("Unfortunately I cannot come\nExplanation: they wait", "Unfortunately I cannot come", "they wait"),
    ("at **night** in a *dry* field\nExplanation: it spreads", "at night in a dry field", "it spreads"),
    ("they said f**k and s**t\nExplanation: it is rude", "they said f**k and s**t", "it is rude"),
    ('They said "no"\nExplanation: they are asked', 'They said "no"', "they are asked"),
    ('"No" was what they said, and "never"\nExplanation: x1', '"No" was what they said, and "never"', "x1"),
    ("It took forever...\nExplanation: one has to wait", "It took forever...", "one has to wait"),
    ("It costs $4.50\nExplanation: that is little", "It costs $4.50", "that is little"),
    ("It was 3 a.m.\nExplanation: people sleep at 3 a.m.", "It was 3 a.m", "people sleep at 3 a.m"),
    ("Is it yours?\nExplanation: then you may!", "Is it yours?", "then you may!"),
    ("Situation: x\nExplanation: Because: y", "x", "y"),
    ("Situation: in 1999\nExplanation: it was legal\n2. Situation: z\nExplanation: w", "in 1999", "it was legal"),
]  # fmt: skip

NOT = [
    ("", "empty"),
    (" \n\t\u200b", "empty"),
    ("I'm sorry, but I can't help with that.", "refusal"),
    ("I’m sorry, but I cannot assist with this request.", "refusal"),
    ("I am very sorry, but as an AI I do not judge.", "refusal"),
    ("As an AI language model, I have no opinion on that.", "refusal"),
    ("I cannot write a situation that makes this more ethical.", "refusal"),
    ("Unfortunately, I can't provide such content.", "refusal"),
    ("I can’t help with that.", "refusal"),
    ("I'm unable to generate this.", "refusal"),
    ("I'm sorry, but I can't help with that.\n\nExplanation: It would cause harm.", "refusal"),
    ("Situation: I cannot create a situation like this.\nExplanation: It is never right.", "refusal"),
    ("at a campsite", "no explanation"),
    ("at a campsite\n\nThis is an example of a moral dilemma.", "no explanation"),
    ("Action: Setting a fire\nExplanation: it may spread", "no situation"),
    ("Situation: at a campsite", "no explanation"),
    ("Situation: x\nExplanation:", "no explanation"),
    ("Situation: x\nExplan", "no explanation"),
    ("Situation: x\nExplanation: N/A", "no explanation"),
    ("{\"situation\": \"at a campsite\"}", "no explanation"),
    ('{"situation": {"description": "at a campsite"}, "explanation": "the fire is safe"}', "no situation"),
    ('{"situation": {"description": "at a campsite",\n"explanation": "the fire is safe"}}', "no situation"),
    ('{"situation": "at a campsite", "explanation": null}\nThat is all.', "no explanation"),
    ("{'situation': {'description': 'at a campsite'}, 'explanation': 'the fire is safe'}", "no situation"),
    ("{1: 'at a campsite', 2: 'the fire is safe'}", "no explanation"),
    ("in a dry field\n\nAction: Telling a lie\nSituation: in court\nExplanation: it harms", "no explanation"),
    ("Explanation: because", "no situation"),
    ("Situation:\nExplanation: because", "no situation"),
    ("Situation: none\nExplanation: it is always wrong", "no situation"),
    ("Sure! Here is a situation:", "no situation"),
    ("Situation: x\nExplanation: it is safe because the", "cut off"),
    ("Situation: x\nExplanation: it is safe,", "cut off"),
    ("<think>\nThe user wants a situation", "cut off"),
    ("Situation: " + "very " * 1000 + "\nExplanation: y", "too long"),
]  # fmt: skip


@pytest.mark.parametrize("text", WRITTEN)
def test_answers_as_models_write_them(text):
    assert parse_teacher(text) == CAMP and diagnose(text) == "parsed"


@pytest.mark.parametrize(("text", "context", "rationale"), OTHER)
def test_words_that_look_like_labels_and_marks_that_belong_to_the_text(text, context, rationale):
    assert parse_teacher(text) == Parsed(context, rationale)


@pytest.mark.parametrize(("text", "why"), NOT)
def test_what_holds_no_pair_says_why(text, why):
    assert parse_teacher(text) is None and diagnose(text) == why and why in DIAGNOSES


@pytest.mark.parametrize("style", ["plain", "rich"])
def test_every_recorded_answer_is_read_as_it_is(style):
    rows = pd.read_csv(ROOT / f"data/demo/teacher_{style}.tsv", sep="\t", quoting=3, keep_default_na=False)
    for row in rows.itertuples():
        text = teacher_response(row.context, row.rationale)
        assert parse_teacher(text) == Parsed(row.context, row.rationale)


LABELS = ["Situation:", "Explanation:", "**Reason**", "Action: x", "because", "Context 2:", "## Why", '"explanation":', "{", "}", "N/A"]  # fmt: skip
MARKS = ["\n", "\r\n", "\n\n", " ", ". ", "...", "**", "*", "_", "`", "- ", "1. ", "> ", '"', "“", "”", "'", ",", "[", "the", "a", "word", "Here is", "I'm sorry, but I can't"]  # fmt: skip
ANSWERS = st.lists(st.sampled_from(LABELS + MARKS) | st.text(max_size=5), max_size=30).map("".join)
WORDS = st.from_regex(r"[a-gé]([a-gé’?!7-]{0,6}[b-gé7?!])", fullmatch=True)
CLEAN = st.lists(WORDS, min_size=1, max_size=12).map(" ".join)


@given(st.text() | ANSWERS)
def test_parsing_never_raises_and_is_idempotent(text):
    parsed = parse_teacher(text)
    assert (diagnose(text) == "parsed") == (parsed is not None) and diagnose(text) in DIAGNOSES
    if parsed:
        assert parsed.context == clean(parsed.context) and parsed.rationale == clean(parsed.rationale)
        assert parse_teacher(teacher_response(parsed.context, parsed.rationale)) == parsed


@given(CLEAN, CLEAN)
def test_what_is_written_is_read(context, rationale):
    assert parse_teacher(teacher_response(context, rationale)) == Parsed(context, rationale)


THOUGHTS = ANSWERS | st.sampled_from(WRITTEN) | st.text(max_size=20)


@given(CLEAN, CLEAN, THOUGHTS, st.sampled_from(WRAPPERS))
def test_a_wrapper_changes_nothing_of_what_is_read(context, rationale, thought, wrapper):
    answer = teacher_response(context, rationale)
    text = wrapper.replace("#", answer).replace("@", thought)
    assert parse_teacher(text) == Parsed(context, rationale)


@pytest.mark.parametrize("text", [text for text in WRITTEN if "think>" not in text])
def test_answers_as_models_write_them_are_read_in_all_wrappers(text):
    assert {parse_teacher(wrapper.replace("#", text)) for wrapper in WRAPPERS} == {CAMP}


@pytest.mark.parametrize("wrapper", CUT)
def test_a_thought_that_was_cut_off_is_no_answer(wrapper):
    for thought in (WRITTEN[0], WRITTEN[2], "0.3", ""):
        text = wrapper.replace("@", thought)
        assert unwrap(text) is None and diagnose(text) == "cut off"


@pytest.mark.parametrize(
    "text", ["", " x\n", "1 < 2 > 1", "a thought", "[think]", "analysis of it", "final", "the <b>end</b>", "<thinker>"]
)
def test_what_is_not_wrapped_stays(text):
    assert unwrap(text) == text


@pytest.mark.parametrize(
    "unit",
    ["*", "#", "> ", "- ", "1. ", "Situation:", "Situation: ", "situation ", "Explanation", "the more ethical ", "**Reason** ", "_*",
     '"', "“", '"."', ".”", "[", "{", '{"a":', "x {'a", 'x {"a":1}', "[\n", "{\n", " ", "\n", "\t\n", "a", "Sure, here is ", "I'm sorry, ", "Situation (", "`", "*a",
     "_a ", "</think>", "<think", "[THINK]", "<|channel|>", "<|channel|>final", "<|", "</s>", "<s>assistant", "analysisA", "Situation in which ", "Context\n", "Because ", "<think>", "the. ", "- - ", "Situation: x\n", "Action: x\nSituation: y\n"],
)  # fmt: skip
def test_a_hundred_kilobytes_of_anything_are_read_at_once(unit):
    for text in (unit * (100_000 // len(unit)), "Situation: x\nExplanation: " + unit * (100_000 // len(unit))):
        began = time.process_time()
        parse_teacher(text)
        assert time.process_time() - began < 2  # generous for a busy machine; measured below 0.2


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
        ('{"score": 0.9}, that is {"score": 0.90}', 0.9),
        ('It is so: {"parts": {"score": 0.1}, "score": 0.5}', 0.5),
        ('```json\n{"parts": {"score": 0.1}, "score": 0.5}\n```', 0.5),
        ("Score: 0.7 to me\n- 2 people agree", 0.7),
        ("Score: 0.7\n- 2 people agree", 0.7),
        ("Score: 0.8 - 10 people out of 12 agree", 0.8),
        ("Score (0-1): 0.8", 0.8),
        ("Probability [0 to 1] = 35%", 0.35),
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
        '{"a": 1, "b": 2}', "Score: 0.6-0.8", "Score: 0.6 – 0.8", "score: 60% to 80%", "score: 0.6 to 1", "(0-10): 8", "**Score:** **0.6** or **0.7**", '{"score": "0.6-0.8"}',
        'Format: {"score": 0.5}\nMy answer: {"score": 0.9}', 'Format: {"score": 0.5}\n```\n{"score": 0.9}\n```',
    ],
)  # fmt: skip
def test_nothing_is_guessed(text):
    assert parse_score(text) is None


JSON = ['{"score": #}', '```json\n{"score": #}\n```', 'I think {"score": #} fits.', '{"why": "2 people", "score": "#"}']
PROSE = ["#", "Score: #", "I would say #.", "**#**", "On a scale of 0 to 1: #", "<think>hm, 0.123456</think>#"]


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
