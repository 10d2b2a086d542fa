import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_endpoint
from fault_server import FaultServer
from test_corpora import write

from drot_utils import judges, models
from drot_utils.answers import Answer
from drot_utils.errors import DataError, EndpointError, ModelError
from drot_utils.settings import ModelRef, Respondent

HEAD = "action\tmoral-variance\tcontext\tscore\n"
TINY = Respondent(name="tiny", model=ModelRef(source="random", name="tiny-llama"))


@pytest.fixture
def rows():
    """Contexts of three actions; one is missing, one is repeated."""
    return pd.DataFrame(
        {
            "action": ["Setting a fire", "Setting a fire", "Lying", "Lying", "Setting a fire"],
            "moral_variance": [1, -1, 1, 1, 1],
            "context": ["at a campsite", "in a dry field", None, "to a thief", "at a campsite"],
        },
        index=[7, 3, 5, 1, 0],
    )


def recorded(tmp_path, text):
    return Respondent(name="file", recorded=str(write(tmp_path / "j.tsv", text)))


def test_the_question_names_the_direction():
    up, down = (judges.judge_prompt("Lying", variance, "in court") for variance in (1, -1))
    assert "more acceptable" in up and "less acceptable" in down and "Lying" in up and "in court" in up


def test_recorded_scores_are_joined_and_missing_ones_are_null(study, rows, tmp_path):
    text = HEAD + "Setting a fire\t1\tat a campsite\t0.9\nSetting a fire\t-1\tin a dry field\t\n"
    given = judges.ask_judge(study, recorded(tmp_path, text), rows)
    assert given.index.tolist() == rows.index.tolist()
    assert given["score"].fillna(-1).tolist() == [0.9, -1, -1, -1, 0.9]


def test_recorded_scores_of_an_action_typed_otherwise(study, tmp_path):
    given = recorded(tmp_path, HEAD + "Don’t  lie.\t1\tat a campsite\t0.9\n")
    rows = pd.DataFrame(
        {"action": ["Don't lie", "don't lie"], "moral_variance": 1, "context": "at a campsite"}
    )
    assert judges.ask_judge(study, given, rows)["score"].tolist() == [0.9, 0.9]


def test_recorded_scores_by_action_id(study, actions, tmp_path):
    first = actions.iloc[0]
    text = "action-id\tmoral-variance\tcontext\tscore\n" + f"{first['action_id']}\t-1\tat night\t1\n"
    asked = pd.DataFrame({"action": [first["action"]], "moral_variance": [-1], "context": ["at night"]})
    assert judges.ask_judge(study, recorded(tmp_path, text), asked)["score"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Lying\t1\tto a thief\t1.2\n", "1 rows have a score that is no number from 0 to 1"),
        ("Lying\t1\tto a thief\thigh\n", "line 2, column score.*no number from 0 to 1.*'high'"),
        ("Lying\t2\tto a thief\t0.2\n", "moral-variance other than"),
        ("Lying\t1\t \t0.2\n", "empty context"),
        ("Lying\t1\tto a thief\t0.2\nlying.\t1\tto a thief\t0.3\n", "line 3: .* again"),
        ("Lying\t1\tto a thief\n", "malformed lines"),
        ("Lying\t1\tsomething else\t0.2\n", "scored none of the 3 contexts asked about"),
    ],
)
def test_bad_judgments_are_one_clear_error(study, rows, tmp_path, line, message):
    with pytest.raises(DataError, match=message) as caught:
        judges.ask_judge(study, recorded(tmp_path, HEAD + line), rows)
    assert "j.tsv" in str(caught.value)


def test_judgments_of_unknown_actions(actions, tmp_path):
    path = write(tmp_path / "j.tsv", "action-id\tmoral-variance\tcontext\tscore\nnobody\t1\tx\t0.5\n")
    with pytest.raises(DataError, match="action-id that the actions file does not have"):
        judges.read_judgments(str(path), actions)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_a_local_judge_gives_the_probability_of_yes(name):
    model, tokenizer = models.build_tiny(name)
    prompts = [judges.judge_prompt("Lying", 1, "x " * n) for n in (40, 1, 9)]
    both = judges.yes_and_no(model, tokenizer, prompts)
    assert both.shape == (3, 2) and (both > 0).all() and (both.sum(axis=1) < 1).all()
    alone = np.concatenate([judges.yes_and_no(model, tokenizer, [prompt]) for prompt in prompts])
    assert np.allclose(both, alone, rtol=1e-4)  # whoever shares the batch
    encoded = tokenizer(f"{prompts[0]}\nAnswer (yes or no):", return_tensors="pt")
    start = {"decoder_input_ids": torch.zeros((1, 1), dtype=torch.int64)} if name == "tiny-t5" else {}
    share = model(**encoded, **start).logits[0, -1].softmax(-1)
    yes, no = (judges._first_tokens(tokenizer, word) for word in ("yes", "no"))
    assert both[0, 0] == pytest.approx(share[sorted(yes - no)].sum().item(), rel=1e-4)


def test_more_batches_change_nothing(monkeypatch):
    model, tokenizer = models.build_tiny("tiny-llama")
    prompts = [judges.judge_prompt("Lying", 1, f"{'very ' * n}late") for n in range(7)]
    whole = judges.yes_and_no(model, tokenizer, prompts)
    monkeypatch.setattr(judges, "BATCH", 3)
    assert np.allclose(judges.yes_and_no(model, tokenizer, prompts), whole, rtol=1e-4)


def test_a_chat_model_is_asked_as_a_user():
    model, tokenizer = models.build_tiny("tiny-llama")
    plain = judges.yes_and_no(model, tokenizer, ["A"])
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}!"
    assert not np.allclose(judges.yes_and_no(model, tokenizer, ["A"]), plain)


def test_a_tokenizer_that_cannot_tell_yes_from_no(monkeypatch):
    model, tokenizer = models.build_tiny("tiny-llama")
    monkeypatch.setattr(judges, "_first_tokens", lambda tokenizer, word: {5})
    with pytest.raises(ModelError, match="begins yes and no alike"):
        judges.yes_and_no(model, tokenizer, ["A"])


def test_a_local_judge_is_not_asked_twice(study, rows, monkeypatch):
    given = judges.ask_judge(study, TINY, rows)
    assert given["score"].isna().tolist() == [False, False, True, False, False]
    assert given["score"].iloc[0] == given["score"].iloc[4] and given["raw"].iloc[0].startswith("P(yes)")
    monkeypatch.setattr(judges.models, "load", lambda *a: pytest.fail("loaded again"))
    pd.testing.assert_frame_equal(judges.ask_judge(study, TINY, rows), given)


def test_nothing_to_judge(study, rows):
    given = judges.ask_judge(study, TINY, rows.assign(context=None))
    assert given["score"].isna().all() and len(given) == len(rows)


def test_a_model_that_is_not_there(study, rows):
    judge = Respondent(name="gone", model=ModelRef(source="folder", name="/no/such/folder"))
    with pytest.raises(ModelError, match="/no/such/folder"):
        judges.ask_judge(study, judge, rows)


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_an_endpoint_judges_by_a_structured_score_and_nothing_is_asked_twice(study, rows, replier, kind):
    says = {"campsite": '```json\n{"score": 0.9}\n```', "field": "I would say 80%.", "thief": "It depends."}

    def reply(body):
        text = body["prompt"] if kind == "completions" else body["messages"][0]["content"]
        return next(said for word, said in says.items() if word in text)

    replier.reply = reply
    judge = Respondent(name="far", endpoint=make_endpoint(replier.url, kind=kind))
    given = judges.ask_judge(study, judge, rows)
    assert given["score"].fillna(-1).tolist() == [0.9, 0.8, -1, -1, 0.9] and given["raw"][1] == "It depends."
    assert len(replier.bodies) == 3 and study.record["usage of far"]["choices"] == 3
    assert ("response_format" in replier.bodies[0]) == (kind == "chat")
    pd.testing.assert_frame_equal(judges.ask_judge(study, judge, rows), given)
    assert len(replier.bodies) == 3
    usage = study.record["usage of far"]  # of both times together
    assert (usage["choices"], usage["calls"], usage["from_cache"]) == (6, 3, 3)


@pytest.mark.parametrize(
    ("text", "finish", "score"),
    [
        ("0.8", "stop", 0.8),
        ("It is 0.", "length", None),
        ('{"score": 0.7}', "length", 0.7),
        ("", "length", None),
        ("0.8", "content_filter", None),
        ("0.8", "error", None),
        ("", "refused: content_filter", None),
    ],
)
def test_a_number_that_was_cut_off_is_not_known(text, finish, score):
    assert judges._read_score(Answer(text, finish, None, None)) == score


def test_a_judge_that_refuses_one_context_says_nothing_of_it(study, rows):
    with FaultServer(refuses={"at a campsite": "content_filter"}, text='{"score": 0.3}') as server:
        judge = Respondent(name="far", endpoint=make_endpoint(server.url))
        given = judges.ask_judge(study, judge, rows)
    assert given["score"].fillna(-1).tolist() == [-1, 0.3, -1, 0.3, -1]
    assert given["raw"].isna().tolist() == [True, False, True, False, True]
    assert study.record["usage of far"]["unfinished"] == {"refused: content_filter": 1}


def test_an_endpoint_that_is_not_there(study, rows, quick):
    judge = Respondent(name="gone", endpoint=make_endpoint(max_retries=0))
    with pytest.raises(EndpointError):
        judges.ask_judge(study, judge, rows)
