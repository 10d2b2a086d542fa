import json

import numpy as np
import pandas as pd
import pytest
from test_corpora import write

from drot_utils import dissent, distill, evaluation, opinions, panel
from drot_utils.errors import DataError, MissingInputError
from drot_utils.params import Judges
from drot_utils.schema import read_table
from drot_utils.settings import ModelRef, Respondent, Threshold


@pytest.fixture
def rows():
    """Forty contexts of two actions, and one that is missing."""
    contexts = [f"in place {k}" for k in range(40)]
    rows = pd.DataFrame(
        {"action": ["Lying", "Setting a fire"] * 20, "moral_variance": 1, "context": contexts}
    )
    return pd.concat([rows, rows.iloc[:1].assign(context=None)], ignore_index=True)


def with_judges(study, tmp_path, rows, scores, **changes):
    """Give a study a panel of recorded judges: name to scores, one a row with a context."""
    asked, members = rows.dropna(subset="context"), []
    for name, values in scores.items():
        lines = [
            f"{r.action}\t{r.moral_variance}\t{r.context}\t{'' if np.isnan(v) else v}\n"
            for r, v in zip(asked.itertuples(), values, strict=True)
        ]
        path = write(tmp_path / f"{name}.tsv", "action\tmoral-variance\tcontext\tscore\n" + "".join(lines))
        members.append(Respondent(name=name, recorded=str(path)))
    judges = Judges(
        **{"panel": members, "aggregate": "reliability", "sample": None, "filter": "judges", **changes}
    )
    study.params = study.params.model_copy(update={"judges": judges})
    return study


@pytest.fixture
def judged(study, tmp_path, rows):
    """A study with three judges who more or less agree; each left out some contexts."""
    rng = np.random.default_rng(1)
    truth = rng.random(40)
    scores = {f"j{k}": np.clip(truth + rng.normal(0, 0.1 + 0.1 * k, 40), 0, 1).round(3) for k in range(3)}
    for k, values in enumerate(scores.values()):
        values[[30 + k, 39]] = np.nan
    return with_judges(study, tmp_path, rows, scores)


def test_a_panel_scores_as_a_critic_does(judged, rows):
    board = panel.Panel(judged)
    scores = board.score(rows.set_index(pd.Index(range(100, 141))))
    assert scores.shape == (41,) and np.isnan(scores[[39, 40]]).all() and not np.isnan(scores[:39]).any()
    assert ((scores[:39] >= 0) & (scores[:39] <= 1)).all()


@pytest.mark.parametrize("aggregate", ["majority", "mean", "reliability"])
def test_all_ways_of_merging(judged, rows, aggregate):
    section = judged.params.judges.model_copy(update={"aggregate": aggregate})
    judged.params = judged.params.model_copy(update={"judges": section})
    scores = panel.Panel(judged).score(rows)
    assert (set(scores[:39]) <= {0, 0.5, 1}) == (aggregate == "majority")


def test_answers_are_kept_with_their_words(judged, rows):
    board = panel.Panel(judged)
    answers = board.ask(rows)
    assert len(answers) == 3 * 41 and answers["judge"].unique().tolist() == ["j0", "j1", "j2"]
    kept = read_table(panel.write_answers(answers, judged.run.data("judgments")))
    assert kept["score"].isna().sum() == answers["score"].isna().sum() == 3 * 3
    wide = panel.spread(answers, rows.index)
    assert wide.columns.tolist() == ["j0", "j1", "j2"] and wide.index.tolist() == rows.index.tolist()


def test_what_notebook_2_found_is_used_later(judged, rows):
    board = panel.Panel(judged)
    merged = board.fit(board.ask(rows), rows.index)
    assert board.reliability.usable
    board.save({"thresholds": {"distill": 0.6, "dataset": 0.8}})
    again = panel.load_panel(judged)
    pd.testing.assert_series_equal(again.reliability.sigma, board.reliability.sigma, check_names=False)
    some = rows.iloc[[3, 12]]
    assert np.allclose(again.score(some), merged[[3, 12]])  # whatever else is scored
    text = (judged.run.model("judges") / "settings.json").read_text()
    assert json.loads(text)["thresholds"] == {"distill": 0.6, "dataset": 0.8} and "NaN" not in text


def test_one_judge_is_a_panel_whose_record_can_be_read(study, tmp_path, rows):
    study = with_judges(study, tmp_path, rows, {"alone": np.linspace(0, 1, 40)})
    board = panel.Panel(study)
    merged = board.fit(board.ask(rows), rows.index)
    assert np.allclose(merged[:40], np.linspace(0, 1, 40)) and "of 1 judges" in board.reliability.note
    board.save({"thresholds": {}})
    assert np.allclose(panel.load_panel(study).score(rows)[:40], np.linspace(0, 1, 40))


def test_another_panel_or_none(judged, rows, tmp_path):
    with pytest.raises(MissingInputError, match="02_critic"):
        panel.load_panel(judged)
    panel.Panel(judged).save({"thresholds": {}})
    other = with_judges(judged, tmp_path, rows, {"new": np.full(40, 0.3)})
    with pytest.raises(DataError, match="expected the judges new, found the record of j0, j1, j2"):
        panel.load_panel(other)


def test_nobody_on_the_panel(study, rows):
    section = Judges(panel=[], aggregate="mean", sample=None, filter="critic")
    study.params = study.params.model_copy(update={"judges": section})
    answers = panel.Panel(study).ask(rows)
    assert answers.empty and panel.spread(answers, rows.index).shape == (41, 0)


def with_rules(study, **rules):
    section = study.params.critic.model_copy(update={f"threshold_{k}": v for k, v in rules.items()})
    study.params = study.params.model_copy(update={"critic": section})
    return study


def test_the_critics_rules_are_read_off_the_panels_scores(judged):
    valid = np.array([True, False, True, True, False])
    scores = np.array([0.9, 0.8, 0.7, np.nan, 0.1])
    study = with_rules(judged, distill=Threshold(recall=1.0), dataset=Threshold(value=0.75))
    assert panel.choose_thresholds(study, valid, scores) == {"distill": 0.7, "dataset": 0.75}
    with pytest.raises(DataError, match="none of the 1 dev contexts"):
        panel.choose_thresholds(study, ~valid[:1], scores[:1])
    section = study.params.judges.model_copy(update={"filter": "critic"})
    study.params = study.params.model_copy(update={"judges": section})
    assert panel.choose_thresholds(study, ~valid, scores) == {}


def test_a_panel_filters_in_the_critics_place(judged, rows, monkeypatch):
    board = panel.Panel(judged)
    board.fit(board.ask(rows), rows.index)
    board.save({"thresholds": {"distill": 0.5, "dataset": 0.8}})
    monkeypatch.setattr(distill, "ShardedNli", lambda study: None)
    critic, _, record = distill.load_filters(judged)
    assert isinstance(critic, panel.Panel)
    candidates = rows.assign(nli_kept=True, candidate=0, source="s", action_id="a")
    flagged = distill.flag_valid(candidates, critic, record["thresholds"]["distill"])
    scored = flagged["critic_score"]
    assert (
        flagged["kept"].sum() == (scored > 0.5).sum() > 5
        and not flagged["kept"][39]
        and not flagged["kept"][40]
    )
    dropped = distill.count_dropped(flagged)
    assert dropped["unparsed"] == dropped["unscored"] == 1
    assert sum(dropped.values()) + flagged["kept"].sum() == len(rows)


def test_a_local_judge_on_the_panel(study, rows):
    board = panel.Panel(study)
    assert [j.model for j in board.settings.panel] == [ModelRef(source="random", name="tiny-llama")]
    scores = board.score(rows)
    assert np.isnan(scores[40]) and ((scores[:40] > 0) & (scores[:40] < 1)).all()


def test_opinions_are_whom_the_parameters_name(judged, rows, monkeypatch):
    monkeypatch.setattr(opinions, "ShardedCritic", lambda study, name: name)
    monkeypatch.setattr(opinions, "load_panel", lambda study: "the judges")
    for name in ("critic", "critic_independent", "judges"):
        judged.run.model(name).mkdir(parents=True, exist_ok=True)
        (judged.run.model(name) / "settings.json").write_text(json.dumps({"thresholds": {"distill": 0.5}}))
    expected = {
        ("critic", "same"): ["critic", "critic_independent"],
        ("critic", "independent"): ["critic_independent", "critic"],
        ("critic", "judges"): ["the judges", "critic_independent"],
        ("judges", "same"): ["the judges", "critic_independent"],
        ("judges", "independent"): ["critic_independent", "the judges"],
    }
    for (filters, evaluates), critics in expected.items():
        section = judged.params.judges.model_copy(update={"filter": filters})
        evaluation = judged.params.evaluation.model_copy(update={"critic": evaluates})
        judged.params = judged.params.model_copy(update={"judges": section, "evaluation": evaluation})
        found = opinions.load_opinions(judged)
        assert [o.critic for o in found.values()] == critics and list(found) == ["auto_", "independent_"]
        assert [o.label.endswith("that filtered") for o in found.values()].count(True) == (
            evaluates != "judges"
        )
    (judged.run.model("critic_independent") / "settings.json").unlink()
    with pytest.raises(MissingInputError, match="02_critic"):
        opinions.load_opinions(judged)  # names it first
    evaluation = judged.params.evaluation.model_copy(update={"critic": "same"})
    judged.params = judged.params.model_copy(update={"evaluation": evaluation})
    assert list(opinions.load_opinions(judged)) == ["auto_"]


def test_a_panel_that_answers_nothing_and_a_panel_that_is_asked_nothing(study, tmp_path, rows):
    study = with_judges(study, tmp_path, rows, {name: np.full(40, np.nan) for name in ("a", "b")})
    board = panel.Panel(study)
    answers = board.ask(rows)
    assert np.isnan(board.fit(answers, rows.index)).all() and "0 of 2 judges" in board.reliability.note
    scores = panel.spread(answers, rows.index)
    standing = dissent.describe_judges(scores, np.full(41, np.nan), board.reliability)
    assert standing["scored"].tolist() == [0, 0] and not standing["far"].any()
    against = evaluation.compare_with_gold(scores, np.arange(41) > 20, 20, 0)
    assert against["unscored"].tolist() == [41, 41] and against["accuracy"].isna().all()
    board.save({"thresholds": {}})
    assert np.isnan(panel.load_panel(study).score(rows)).all()
    assert board.score(rows.iloc[:0]).shape == (0,)
