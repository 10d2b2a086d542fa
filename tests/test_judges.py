"""Tests of `judges`."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_endpoint
from fault_server import FaultServer
from test_corpora import write

from drot_utils.analysis.evaluation import compare_with_gold
from drot_utils.data.table import read_table
from drot_utils.engine.load import build_tiny
from drot_utils.llm.replies import Answer
from drot_utils.method import consensus, distill, judges
from drot_utils.method.judges import Panel, load_panel, panel_thresholds, spread
from drot_utils.study.errors import DataError, EndpointError, MissingInputError, ModelError
from drot_utils.study.params import Judges, ModelRef, Respondent, Threshold

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
    rows = pd.DataFrame({"action": ["Don't lie", "don't lie"], "moral_variance": 1, "context": "at a campsite"})
    assert judges.ask_judge(study, given, rows)["score"].tolist() == [0.9, 0.9]


def test_recorded_scores_by_action_id(study, actions, tmp_path):
    first = actions.iloc[0]
    text = "action-id\tmoral-variance\tcontext\tscore\n" + f"{first['action_id']}\t-1\tat night\t1\n"
    asked = pd.DataFrame({"action": [first["action"]], "moral_variance": [-1], "context": ["at night"]})
    assert judges.ask_judge(study, recorded(tmp_path, text), asked)["score"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Lying\t1\tto a thief\t1.2\n", "1 rows have a score that is not a number from 0 to 1"),
        ("Lying\t1\tto a thief\thigh\n", "line 2, column score.*not a number from 0 to 1.*'high'"),
        ("Lying\t2\tto a thief\t0.2\n", "moral-variance other than"),
        ("Lying\t1\t \t0.2\n", "empty context"),
        ("Lying\t1\tto a thief\t0.2\nlying.\t1\tto a thief\t0.3\n", "line 3: .* again"),
        ("Lying\t1\tto a thief\n", "Row #2: Expected 4 columns, got 3"),
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
    model, tokenizer = build_tiny(name)
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
    model, tokenizer = build_tiny("tiny-llama")
    prompts = [judges.judge_prompt("Lying", 1, f"{'very ' * n}late") for n in range(7)]
    whole = judges.yes_and_no(model, tokenizer, prompts)
    monkeypatch.setattr(judges, "BATCH", 3)
    assert np.allclose(judges.yes_and_no(model, tokenizer, prompts), whole, rtol=1e-4)


def test_a_chat_model_is_asked_as_a_user():
    model, tokenizer = build_tiny("tiny-llama")
    plain = judges.yes_and_no(model, tokenizer, ["A"])
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}!"
    assert not np.allclose(judges.yes_and_no(model, tokenizer, ["A"]), plain)


def test_a_tokenizer_that_cannot_tell_yes_from_no(monkeypatch):
    model, tokenizer = build_tiny("tiny-llama")
    monkeypatch.setattr(judges, "_first_tokens", lambda tokenizer, word: {5})
    with pytest.raises(ModelError, match="begins yes and no alike"):
        judges.yes_and_no(model, tokenizer, ["A"])


def test_a_local_judge_is_not_asked_twice(study, rows, monkeypatch):
    given = judges.ask_judge(study, TINY, rows)
    assert given["score"].isna().tolist() == [False, False, True, False, False]
    assert given["score"].iloc[0] == given["score"].iloc[4] and given["raw"].iloc[0].startswith("P(yes)")
    monkeypatch.setattr(judges.load, "load_model", lambda *a: pytest.fail("loaded again"))
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


@pytest.fixture
def rows_panel():
    """Forty contexts of two actions, and one that is missing."""
    contexts = [f"in place {k}" for k in range(40)]
    rows_panel = pd.DataFrame({"action": ["Lying", "Setting a fire"] * 20, "moral_variance": 1, "context": contexts})
    return pd.concat([rows_panel, rows_panel.iloc[:1].assign(context=None)], ignore_index=True)


def with_judges(study, tmp_path, rows_panel, scores, **changes):
    """Give a study a panel of recorded judges: name to scores, one a row with a context."""
    asked, members = rows_panel.dropna(subset="context"), []
    for name, values in scores.items():
        lines = [
            f"{r.action}\t{r.moral_variance}\t{r.context}\t{'' if np.isnan(v) else v}\n"
            for r, v in zip(asked.itertuples(), values, strict=True)
        ]
        path = write(tmp_path / f"{name}.tsv", "action\tmoral-variance\tcontext\tscore\n" + "".join(lines))
        members.append(Respondent(name=name, recorded=str(path)))
    judges = Judges(**{"panel": members, "aggregate": "reliability", "sample": None, "filter": "judges", **changes})
    study.params = study.params.model_copy(update={"judges": judges})
    return study


@pytest.fixture
def judged(study, tmp_path, rows_panel):
    """A study with three judges who more or less agree; each left out some contexts."""
    rng = np.random.default_rng(1)
    truth = rng.random(40)
    scores = {f"j{k}": np.clip(truth + rng.normal(0, 0.1 + 0.1 * k, 40), 0, 1).round(3) for k in range(3)}
    for k, values in enumerate(scores.values()):
        values[[30 + k, 39]] = np.nan
    return with_judges(study, tmp_path, rows_panel, scores)


def test_a_panel_scores_as_a_critic_does(judged, rows_panel):
    board = Panel(judged)
    scores = board.score(rows_panel.set_index(pd.Index(range(100, 141))))
    assert scores.shape == (41,) and np.isnan(scores[[39, 40]]).all() and not np.isnan(scores[:39]).any()
    assert ((scores[:39] >= 0) & (scores[:39] <= 1)).all()


@pytest.mark.parametrize("aggregate", ["majority", "mean", "reliability"])
def test_all_ways_of_merging(judged, rows_panel, aggregate):
    section = judged.params.judges.model_copy(update={"aggregate": aggregate})
    judged.params = judged.params.model_copy(update={"judges": section})
    scores = Panel(judged).score(rows_panel)
    assert (set(scores[:39]) <= {0, 0.5, 1}) == (aggregate == "majority")


def test_answers_are_kept_with_their_words(judged, rows_panel):
    board = Panel(judged)
    answers = board.ask(rows_panel)
    assert len(answers) == 3 * 41 and answers["judge"].unique().tolist() == ["j0", "j1", "j2"]
    board.merge_all(answers, rows_panel.index)
    board.save(answers, {})
    kept = read_table(judged.run.data("judgments"))
    assert kept["score"].isna().sum() == answers["score"].isna().sum() == 3 * 3
    wide = spread(answers, rows_panel.index)
    assert wide.columns.tolist() == ["j0", "j1", "j2"] and wide.index.tolist() == rows_panel.index.tolist()


def test_what_notebook_12_found_is_used_later(judged, rows_panel):
    board = Panel(judged)
    answers = board.ask(rows_panel)
    merged = board.merge_all(answers, rows_panel.index)["reliability"].to_numpy()
    assert board.reliability.usable
    board.save(answers, {"distill": 0.6, "dataset": 0.8})
    again = load_panel(judged)
    pd.testing.assert_series_equal(again.reliability.sigma, board.reliability.sigma, check_names=False)
    some = rows_panel.iloc[[3, 12]]
    assert np.allclose(again.score(some), merged[[3, 12]])  # whatever else is scored
    text = (judged.run.model("judges") / "settings.json").read_text()
    assert json.loads(text)["thresholds"] == {"distill": 0.6, "dataset": 0.8} and "NaN" not in text


def test_one_judge_is_a_panel_whose_record_can_be_read(study, tmp_path, rows_panel):
    study = with_judges(study, tmp_path, rows_panel, {"alone": np.linspace(0, 1, 40)})
    board = Panel(study)
    answers = board.ask(rows_panel)
    merged = board.merge_all(answers, rows_panel.index)["reliability"].to_numpy()
    assert np.allclose(merged[:40], np.linspace(0, 1, 40)) and "of 1 judges" in board.reliability.note
    board.save(answers, {})
    assert np.allclose(load_panel(study).score(rows_panel)[:40], np.linspace(0, 1, 40))


def test_another_panel_or_none(judged, rows_panel, tmp_path):
    with pytest.raises(MissingInputError, match="12_judges"):
        load_panel(judged)
    board = Panel(judged)
    answers = board.ask(rows_panel)
    board.merge_all(answers, rows_panel.index)
    board.save(answers, {})
    other = with_judges(judged, tmp_path, rows_panel, {"new": np.full(40, 0.3)})
    with pytest.raises(DataError, match="expected the judges new, found the record of j0, j1, j2"):
        load_panel(other)


def test_nobody_on_the_panel(study, rows_panel):
    section = Judges(panel=[], aggregate="mean", sample=None, filter="critic")
    study.params = study.params.model_copy(update={"judges": section})
    answers = Panel(study).ask(rows_panel)
    assert answers.empty and spread(answers, rows_panel.index).shape == (41, 0)


def with_rules(study, **rules):
    section = study.params.critic.model_copy(update={f"threshold_{k}": v for k, v in rules.items()})
    study.params = study.params.model_copy(update={"critic": section})
    return study


def test_the_critics_rules_are_read_off_the_panels_scores(judged):
    shown = pd.DataFrame({"valid": [True, False, True, True, False, True], "part": ["dev"] * 5 + ["test"]})
    scores = np.array([0.9, 0.8, 0.7, np.nan, 0.1, 0.05])
    study = with_rules(judged, seed=Threshold(share=0.5), distill=Threshold(recall=1.0), dataset=Threshold(value=0.75))
    assert panel_thresholds(study, shown, scores) == {"seed": 0.8, "distill": 0.7, "dataset": 0.75}
    with pytest.raises(DataError, match="none of the 1 judged contexts"):
        panel_thresholds(study, shown[:1].assign(valid=False), scores[:1])
    section = study.params.judges.model_copy(update={"filter": "critic"})
    study.params = study.params.model_copy(update={"judges": section})
    assert panel_thresholds(study, shown.assign(valid=False), scores) == {}


def test_a_panel_filters_in_the_critics_place(judged, rows_panel):
    board = Panel(judged)
    answers = board.ask(rows_panel)
    board.merge_all(answers, rows_panel.index)
    board.save(answers, {"seed": 0.5, "distill": 0.5, "dataset": 0.8})
    scorer = distill.load_scorer(judged)
    assert isinstance(scorer.score.__self__, Panel)
    candidates = rows_panel.assign(nli_kept=True, candidate=0, source="s", action_id="a", critic_score=None)
    flagged, _, dropped = distill.apply_filters(judged, candidates, scorer, "distill", ("nli", "per_prompt", "repeats"))
    scored = flagged["critic_score"]
    assert flagged["kept"].sum() == (scored > 0.5).sum() > 5 and not flagged["kept"][39] and not flagged["kept"][40]
    assert dropped["unparsed"] == dropped["unscored"] == 1
    assert sum(dropped.values()) + flagged["kept"].sum() == len(rows_panel)


def test_a_local_judge_on_the_panel(study, rows_panel):
    board = Panel(study)
    assert [j.model for j in study.params.judges.panel] == [ModelRef(source="random", name="tiny-llama")]
    scores = board.score(rows_panel)
    assert np.isnan(scores[40]) and ((scores[:40] > 0) & (scores[:40] < 1)).all()


def test_a_panel_that_answers_nothing_and_a_panel_that_is_asked_nothing(study, tmp_path, rows_panel):
    study = with_judges(study, tmp_path, rows_panel, {name: np.full(40, np.nan) for name in ("a", "b")})
    board = Panel(study)
    answers = board.ask(rows_panel)
    assert (
        np.isnan(board.merge_all(answers, rows_panel.index)).all(axis=None)
        and "0 of 2 judges" in board.reliability.note
    )
    scores = spread(answers, rows_panel.index)
    standing = consensus.describe_judges(scores, np.full(41, np.nan), board.reliability)
    assert standing["scored"].tolist() == [0, 0] and not standing["far"].any()
    against = compare_with_gold(scores, np.arange(41) > 20, 20, 0)
    assert against["unscored"].tolist() == [41, 41] and against["accuracy"].isna().all()
    board.save(answers, {})
    assert np.isnan(load_panel(study).score(rows_panel)).all()
    assert board.score(rows_panel.iloc[:0]).shape == (0,)
