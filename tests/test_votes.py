"""Tests of `votes`."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ALL_YES, FORM, all_new, fill, write_params

from drot_utils.analysis.evaluation import ENDS, METRICS
from drot_utils.analysis.inference import estimate_valid
from drot_utils.data.gold import read_gold, read_votes
from drot_utils.data.table import write_candidates
from drot_utils.method import distill, nli
from drot_utils.people import exchange, votes
from drot_utils.people.forms import CONTENT_FORM, CRITIC_FORM, count_samples, make_key
from drot_utils.people.spreadsheet import read_csv
from drot_utils.people.votes import (
    AGREEMENT,
    HUMAN_COLUMNS,
    agree_on_gold,
    human_table2,
    judge_rows,
    majority,
    make_table4,
    measure_agreement,
)
from drot_utils.report import figures
from drot_utils.study import outputs
from drot_utils.study.errors import DataError
from drot_utils.study.params import load_params
from drot_utils.study.paths import NOTEBOOKS, ROOT, Run


def test_majority_and_ties():
    votes = pd.DataFrame([["Y", "Y", "N"], ["Y", "S", "N"], ["N", None, "N"], [None, None, None]], columns=list("abc"))
    assert majority(votes, ["Y", "S", "N"]).fillna("null").tolist() == ["Y", "S", "N", "null"]


def test_agreement_is_fleiss_kappa():
    # Fleiss (1971) for three raters, by hand: P = (1 + 1/3 + 1) / 3, P_e = (5/9)^2 + (4/9)^2.
    votes = pd.DataFrame([["Y", "Y", "Y"], ["Y", "Y", "N"], ["N", "N", "N"]])
    found = measure_agreement(votes)
    expected = (7 / 9 - 41 / 81) / (1 - 41 / 81)
    assert (
        found["kappa"] == pytest.approx(expected) and found["full"] == pytest.approx(2 / 3) and found["majority"] == 1
    )
    assert measure_agreement(votes.replace({"N": None}))["rows"] == 1
    assert np.isnan(measure_agreement(pd.DataFrame([["Y", "Y"]]))["kappa"])
    assert np.isnan(measure_agreement(pd.DataFrame([[None, "Y"]]))["full"])


def test_agreement_on_the_gold_is_over_all_and_by_source():
    gold = pd.DataFrame(
        [("f", row, source, "q1", name, answer) for row, (source, answers) in enumerate([("t", "YYN"), ("s", "NNN")]) for name, answer in zip("abc", answers, strict=True)],
        columns=["file", "row", "source", "question", "annotator", "answer"],
    )  # fmt: skip
    table = agree_on_gold(gold)
    assert table["source"].tolist() == ["all", "s", "t"] and table["full"].tolist() == [0.5, 1, 0]
    assert list(agree_on_gold(gold.head(0))) == ["question", "source", *AGREEMENT]


def test_agreement_of_a_crowd_asks_not_whose_votes_they_are():
    by_three = pd.DataFrame([["Y", "Y", "Y"], ["Y", "Y", "N"], ["N", "N", "N"]])
    crowd = pd.DataFrame(np.full((5, 9), None, dtype=object))
    for i, row in enumerate(by_three.to_numpy()):
        crowd.iloc[i, [i, i + 2, i + 5]] = row
    crowd.iloc[3, 0] = crowd.iloc[4, 1] = "Y"  # one vote only
    assert measure_agreement(crowd) == measure_agreement(by_three)
    assert measure_agreement(crowd)["annotators"] == 3 and measure_agreement(crowd)["rows"] == 3


def test_table4_and_table2_from_filled_forms(key, tmp_path):
    weak = key.loc[key["moral_variance"] == -1, "row_id"].tolist()
    q2 = {r: ("N" if r == weak[0] else "S" if r in weak else "Y") for r in key["row_id"]}
    for name in ("ann", "bob", "cyd"):
        fill(tmp_path, name, {**ALL_YES, "q2": q2})
    judged = judge_rows(exchange.read_filled(FORM, tmp_path / "filled", key)[0], key)
    table = make_table4(judged.assign(set="dataset")).set_index(["type", "polarity"])
    assert table.loc[("Context", "strengthening"), ["valid_pct", "significant_pct"]].tolist() == [100, 100]
    assert table.loc[("Context", "weakening"), ["valid_pct", "significant_pct", "slight_pct"]].tolist() == [50, 0, 100]
    assert table.loc[("Context", "all"), "rows"] == 5 and table.loc[("Rationale", "all"), "language_pct"] == 100
    both = pd.concat([judged, judged.assign(set="sampled")])
    row = human_table2(both, all_new).iloc[0]
    assert row["human_vld"] == pytest.approx(4 / 5) and row["human_defease"] == pytest.approx((3 + 0.5) / 5)
    assert row["human_n_vld"] == 2 and list(row.index) == ["model", *HUMAN_COLUMNS]


def as_invalid(rows):
    """Rows that nobody was asked about, as there is no context to show."""
    return rows.assign(q1=None, q2="N", q3=None, q4=None)


def test_unparsed_rows_count_as_not_valid(candidates):
    rows = as_invalid(candidates[candidates["context"].isna()].assign(set="greedy"))
    row = human_table2(rows, all_new).iloc[0]
    assert row["human_vld"] == 0 and row["human_defease"] == 0 and np.isnan(row["human_lan"])


def ten(valid, **changes):
    """A prompt's ten samples with people's answer to q2."""
    rows = {"action_id": "a", "moral_variance": 1, "candidate": range(10), "context": list("abcdefghij")}
    return pd.DataFrame(
        {**rows, "source": "m", "set": "sampled", "q1": "Y", "q2": valid, "q3": "Y", "q4": "Y", **changes}
    )


@pytest.mark.parametrize(
    ("valid", "n_vld", "n_unq_vld"),
    [
        (["Y"] * 5 + [None] * 5, 10, np.nan),  # five answered of ten, all valid
        (["S"] * 3 + ["N"] * 3 + [None] * 4, 5, np.nan),
        (["Y", "Y", "N", "N"] + [None] * 6, 5, np.nan),
        ([None] * 10, np.nan, np.nan),
        (["N"] * 9 + ["Y"], 1, 1),
        (["N"] * 10, 0, 0),
    ],
)  # fmt: skip
def test_what_nobody_answered_is_not_invalid(valid, n_vld, n_unq_vld):
    found = human_table2(ten(valid), all_new).iloc[0]
    assert found[["human_n_vld", "human_n_unq_vld"]].tolist() == pytest.approx([n_vld, n_unq_vld], nan_ok=True)
    both = human_table2(pd.concat([ten(valid), ten(["Y"] * 10, action_id="b")]), all_new)
    assert both.loc[0, "human_n_unq_vld"] == pytest.approx(10 if np.isnan(n_unq_vld) else (n_unq_vld + 10) / 2)


def test_what_was_not_parsed_is_invalid_and_what_was_skipped_is_not():
    valid = ten(["Y", "S", "N", "Y", None, None, None, None, "-", "-"])[:8]
    unparsed = as_invalid(ten(None, context=None)[8:])
    found = human_table2(pd.concat([valid, unparsed]), all_new).iloc[0]
    assert found["human_n_vld"] == pytest.approx(6) and np.isnan(found["human_n_unq_vld"])
    found = human_table2(pd.concat([valid, unparsed]).assign(set="greedy"), all_new).iloc[0]
    assert found["human_vld"] == pytest.approx(0.6) and found["human_defease"] == pytest.approx(0.5)
    assert found["human_rows"] == 4
    nobody = pd.concat([valid.assign(q2=None), unparsed]).assign(set="greedy")
    assert np.isnan(human_table2(nobody, all_new).loc[0, "human_vld"])


def test_the_rounds_and_table2_say_the_same():
    """Of three prompts two were drawn, and answered in part; two texts of a drawn one, and one of the other, did not parse."""
    answers = [["Y"] * 3 + ["N"] * 2 + [None] * 5, ["N", "S"] + [None] * 8, [None] * 10]
    parts = [ten(valid, action_id=name, moral_variance=1) for name, valid in zip("abc", answers, strict=True)]
    rows = pd.concat([part.assign(set=of) for of in ("greedy", "sampled") for part in parts], ignore_index=True)
    rows["source"] = "teacher"
    rows.loc[rows["action_id"].isin(["b", "c"]) & (rows["candidate"] == 9), "context"] = None
    rows.loc[(rows["action_id"] == "b") & (rows["candidate"] == 9), "q2"] = "N"
    rows["valid"] = rows["q2"].map({"Y": 1.0, "S": 1.0, "N": 0.0}).astype(float)
    human = human_table2(rows, all_new)
    levels = estimate_valid(rows.assign(critic_score=np.nan))
    known = votes.join_levels(pd.DataFrame({"model": ["teacher"]}), human, levels, count_samples(rows)).iloc[0]
    assert known["human_vld"] == pytest.approx(human["human_vld"].iloc[0]) == pytest.approx(4 / 7 * 28 / 30)
    assert known["human_n_vld"] == pytest.approx(human["human_n_vld"].iloc[0]) == pytest.approx(40 / 7 * 28 / 30)


def test_rows_that_everybody_skipped_stay_in_what_is_judged(key, tmp_path):
    fill(tmp_path, "ann", {**ALL_YES, "q2": {r: "" if r == key["row_id"][0] else "Y" for r in key["row_id"]}})
    filled = tmp_path / "filled" / f"{FORM.name}-ann.csv"
    read_csv(filled).iloc[:4].to_csv(filled, index=False)  # and one row was cut off
    judged = judge_rows(exchange.read_filled(FORM, tmp_path / "filled", key)[0], key)
    assert judged["q2"].fillna("").tolist() == ["", "Y", "Y", "Y", ""] and judged["q1"].notna().sum() == 4


@pytest.mark.parametrize(
    "votes",
    [pd.DataFrame(), pd.DataFrame({"a": [], "b": []}), pd.DataFrame({"a": [None, None]}), pd.DataFrame({"a": ["Y", None], "b": [None, "Y"]})],
)  # fmt: skip
def test_agreement_of_nobody(votes):
    found = measure_agreement(votes)
    assert list(found) == AGREEMENT and found["rows"] == 0 and np.isnan(found["kappa"])


def run_notebook(tmp_path, monkeypatch, rows, filled, recorded=None, *, nobody=False):
    """Run notebook 11's code on some rows: as far as it exports the form, and again with what `filled` makes of it.

    At last with the file of recorded votes that the function `recorded` returns, given the run's own. With `nobody` the first run
    goes to its end, where nobody was asked.
    """
    run = Run("smoke")
    for name, part in (
        ("candidates_test_greedy", rows),
        ("candidates_test_samples", rows),
        ("drot", rows[rows["context"].notna()]),
    ):
        write_candidates(part, run.data(name))
    scored = rows.assign(critic_score=[0.1, 0.5, 0.9, 0.4, None, 0.6])
    for number in (1, 2):
        kept = (scored["critic_score"] > 0.4) & scored["context"].notna()
        write_candidates(scored.assign(kept=kept.astype("boolean")), run.data(f"candidates_d{number}"))
    numbers = {f"auto_{metric}{end}": 0.5 for metric in METRICS for end in ENDS} | {
        f"paper_auto_{m}": 0.5 for m in METRICS
    }
    run.figures.mkdir(parents=True)
    pd.DataFrame({"model": ["teacher"], **numbers}).to_csv(run.figures / "table2.csv", index=False)
    monkeypatch.setattr(nli, "filter_groups", lambda study, groups: all_new(groups))
    opinion = distill.Scorer("the critic that filtered", None, {})
    monkeypatch.setattr(distill, "load_scorers", lambda study: {"auto_": opinion})
    monkeypatch.setattr(figures, "save_figure", lambda *_: None)  # writing them takes longer than all the rest
    monkeypatch.setenv(outputs.BATCH, "11_human_evaluation")
    cells = json.loads((NOTEBOOKS / "11_human_evaluation.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    for folder in (None, tmp_path / "filled", *[recorded] * (recorded is not None)):
        changes = {"annotation__filled": folder and str(folder)}
        if folder is recorded is not None:
            changes = {"annotation__reference_votes": str(recorded(run.root / "data/forms/recorded_votes.tsv"))}
        params = write_params(tmp_path / "p.yaml", "smoke", **changes)
        names = {}
        for cell in code:
            exec(cell.replace("params/demo.yaml", str(params)), names)
            if folder is None and not nobody and "key" in names:
                break
        if folder is None:
            form = read_csv(run.root / "data/forms/evaluation_form.csv")
            (tmp_path / "filled").mkdir()
            for annotator, answered in filled(form):
                answered.to_csv(tmp_path / "filled" / f"evaluation_form-{annotator}.csv", index=False)
    plt.close("all")
    return run


YES = dict.fromkeys(FORM.questions, "Y")


@pytest.mark.parametrize(
    "filled",
    [
        lambda form: [("ann", form.assign(**YES))],
        lambda form: [("ann", form)],
        lambda form: [("ann", form.iloc[:1].assign(**YES))],
        lambda form: [("ann", form.iloc[::2].assign(**YES)), ("bob", form.iloc[1::2].assign(**YES))],
        lambda form: [(name, form.assign(**YES)) for name in ("ann", "bob")],
    ],
    ids=["one yes-man", "nobody answered", "one row", "no overlap", "all the same"],
)
def test_notebook_11_with_hardly_anything(candidates, tmp_path, monkeypatch, capsys, filled, request):
    rows = candidates.assign(source="teacher", candidate=[0, 1, 2] * 2)
    run = run_notebook(tmp_path, monkeypatch, rows, filled)
    printed = capsys.readouterr().out
    nobody = "Nobody has answered in this run.\nno votes: evaluation_form: annotation.filled" in printed
    assert nobody == ("nobody answered" in request.node.name)
    table = pd.read_csv(run.figures / "agreement_human.csv")
    assert list(table) == ["question", *AGREEMENT] and table["kappa"].isna().all()
    assert pd.read_csv(run.figures / "figure4.csv")["weakening"].isna().all()  # nobody filled the content form
    assert len(table4 := pd.read_csv(run.figures / "table4.csv")) == 6 and nobody == table4["valid_pct"].isna().all()
    human = pd.read_csv(run.figures / "table2_human.csv")
    assert list(human)[:8] == ["model", *HUMAN_COLUMNS] and human["model"].tolist() == ["teacher"]
    json.loads(
        outputs.closing_path(run, "11_human_evaluation").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )


def test_notebook_11_asks_about_what_the_rounds_kept(candidates, tmp_path, monkeypatch):
    rows = candidates.assign(source="distill_base", candidate=[0, 1, 2] * 2, critic_score=0.5)
    run = run_notebook(tmp_path, monkeypatch, rows, lambda form: [("ann", form.assign(**YES))])
    levels = pd.read_csv(run.figures / "vld_by_votes.csv").set_index(["set", "model"])
    assert levels.loc[("kept_1", "distill_base"), ["rows", "voted", "votes_vld"]].tolist() == [3, 3, 1]
    assert levels.loc[("kept_2", "distill_base"), "voted"] == 3 and ("sampled", "distill_base") in levels.index
    human = pd.read_csv(run.figures / "table2_human.csv").set_index("model")
    assert human.loc["distill_base", ["human_rows", "human_vld"]].tolist() == [
        5,
        pytest.approx(5 / 6),
    ]  # greedy ones only
    recorded = pd.read_csv(run.root / "data/forms/recorded_votes.tsv", sep="\t")
    assert recorded["set"].value_counts().to_dict() == {
        "greedy": 6,
        "sampled": 3,
        "dataset": 5,
        "kept_1": 3,
        "kept_2": 3,
    }


def test_notebook_11_where_nothing_parses(candidates, tmp_path, monkeypatch):
    rows = candidates.assign(source="teacher", context=None, rationale=None)
    with pytest.raises(DataError, match="no filled form"):
        run_notebook(tmp_path, monkeypatch, rows, lambda form: [], nobody=True)
    table = pd.read_csv(Run("smoke").figures / "table2_human.csv")
    assert list(table)[:8] == ["model", *HUMAN_COLUMNS]


def filled_by(key, **answers):
    """Votes of annotators on all rows of a key: question to annotator to the answers."""
    parts = [
        key[["row_id"]].assign(annotator=who, **{question: given[who] for question, given in answers.items()})
        for who in next(iter(answers.values()))
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def recorded(candidates, key, tmp_path):
    """Recorded votes of two annotators on five contexts, and a row that does not parse."""
    candidates, key = candidates.assign(source="teacher"), key.assign(source="teacher")
    filled = filled_by(key, q1={"a": "Y", "b": "S"}, q2={"a": list("YSNYN"), "b": list("YYNNN")}).assign(q3="Y", q4="Y")
    unparsed = candidates[candidates["context"].isna()].assign(set="greedy")
    rows = pd.concat([key, unparsed], ignore_index=True)[key.columns]
    path = tmp_path / "recorded.tsv"
    votes.record_votes(FORM, filled, rows).to_csv(path, sep="\t", index=False)
    return path, filled, rows


def test_recorded_votes_come_back(recorded):
    path, filled, rows = recorded
    found, read = votes.read_recorded(str(path), FORM)
    judged, expected = (
        judge_rows(*of).sort_values(["action_id", "candidate"]).drop(columns="row_id").reset_index(drop=True)
        for of in ((found, read), (filled, rows))
    )
    assert judged.fillna("").to_dict("records") == expected.fillna("").to_dict("records")
    assert judged["valid"].tolist()[-2:] == [0, judged["valid"].iloc[-1]] and judged["context"].isna().sum() == 1
    assert votes.read_recorded(str(path), CONTENT_FORM)[0].empty
    assert votes.is_written(read, rows).all()
    other = rows.assign(context=rows["context"].replace("to a judge", "to a friend"))
    assert (~votes.is_written(read, other)).sum() == 1
    elsewhere = votes.count_covered(read, other.assign(action_id="x", source="y"))  # texts count, not who wrote them
    assert elsewhere.to_dict("records") == [{"set": "greedy", "contexts": 5, "covered": 4}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows.assign(q2="maybe"),
            r"recorded.tsv, line 2, q2: expected one of Y, S, N or nothing, found 'maybe'",
        ),
        (
            lambda rows: rows.assign(form="evaluation"),
            "have a form other than critic_form, evaluation_form, content_form",
        ),
        (
            lambda rows: rows.assign(source="gpt"),
            "have a source other than teacher, base, .* self_distill_1 ... and drot",
        ),
        (lambda rows: rows.assign(annotator="a"), "a second answer to the same row_id by a"),
        (lambda rows: rows.head(0), "recorded.tsv: holds no votes"),
        (lambda rows: rows.assign(annotator=""), "holds no votes"),
        (lambda rows: rows.drop(columns="annotator"), "missing column annotator"),
        (lambda rows: rows.assign(**{"moral-variance": 2}), "moral-variance other than 1 and -1"),
        (
            lambda rows: pd.concat([rows, rows.assign(context="by a judge")]),  # of another seed
            r"line \d+: 6 second texts under the set and key of another text; the first is .*by a judge.*\n.*a file of their own",
        ),
    ],
)
def test_recorded_votes_that_are_refused(recorded, change, message):
    path = recorded[0]
    change(pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)).to_csv(path, sep="\t", index=False)
    with pytest.raises(DataError, match=message):
        votes.read_recorded(str(path), FORM)


@pytest.mark.parametrize(
    ("names", "voters"),
    [
        ("ann bob", "annotators"),
        ("machine-1 machine-2", "a language model"),
        ("ann machine-1", "annotators and a language model"),
    ],
)
def test_captions_say_whose_votes_they_are(names, voters):
    filled = pd.DataFrame({"row_id": "r", "annotator": names.split()})
    given = exchange.Votes(filled, filled, own=False, counts={})
    assert given.voters == voters and given.whose == f"On the reference run's contexts, by votes of {voters}."


def test_built_in_votes_are_called_a_language_models():
    for path in (ROOT / "data/demo").glob("*_votes.tsv"):
        annotators = set(pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False).get("annotator", [])) - {""}
        assert all(name.startswith(exchange.MACHINE) for name in annotators), path


def test_who_has_no_votes_is_said(recorded, tmp_path):
    settings = load_params("params/smoke.yaml").annotation
    both = "content_form: annotation.filled is null and annotation.reference_votes"
    for place, said in ((None, "is null"), (str(recorded[0]), f"({recorded[0]}) holds none")):
        named = settings.model_copy(update={"reference_votes": place})
        none = exchange.find_votes(CONTENT_FORM, named, recorded[2], recorded[2])
        assert str(none) == f"Nobody has answered in this run.\nno votes: {both} {said}" and none.voters == "nobody"
        assert (
            none.filled.empty and list(none.filled) == ["row_id", "annotator", *CONTENT_FORM.questions] and not none.own
        )


def test_an_annotator_who_says_the_same_of_all_is_named(asked):
    key = make_key(FORM, pd.concat([asked] * 3, ignore_index=True), 1)
    filled = filled_by(key, q2={"ann": "Y", "bob": list("YYYYYYYYYYYYYYN")})
    assert votes.find_monotone(filled, "q2") == ["ann answered Y to q2 on all of 15 rows"]
    assert votes.find_monotone(filled.assign(q2=None), "q2") == votes.find_monotone(filled.head(9), "q2") == []


@pytest.mark.parametrize("annotators", ["abc", "ab", "a"])
def test_filled_critic_forms_become_gold(asked, actions, tmp_path, annotators):
    key = make_key(CRITIC_FORM, asked.assign(action_id="a0001"), 1)
    q1 = {"a": list("YYNOY"), "b": list("YNNON"), "c": list("NYNON")}
    filled = filled_by(key, q1={who: q1[who] for who in annotators}).assign(q2=None)
    votes.make_gold(filled, key).to_csv(tmp_path / "gold.tsv", sep="\t", index=False)
    gold = read_gold([str(tmp_path / "gold.tsv")], actions)
    agreed = key if len(annotators) != 2 else key.drop(index=[1, 4])  # about which two are divided
    assert gold["context"].tolist() == agreed["context"].tolist() and set(gold["votes"]) == {
        3 if len(annotators) == 3 else 1
    }
    expected = {
        "abc": [True, True, False, False, False],
        "ab": [True, False, False],
        "a": [True, True, False, False, True],
    }
    assert gold["valid"].tolist() == expected[annotators]
    assert len(read_votes(str(tmp_path / "gold.tsv"))) == (15 if len(annotators) == 3 else 0)


def test_what_contexts_are_made_of(asked):
    rows = asked.assign(
        set=["dataset"] * 3 + ["invalid", "greedy"], source=["drot"] * 3 + ["distill_base", "distill_final"]
    )
    key = make_key(CONTENT_FORM, rows, 1).sort_values(["set", "candidate"], ignore_index=True)
    assert key["set"].tolist() == ["dataset"] * 3 + ["greedy", "invalid"]
    q1 = {"a": ["own", "own+time", "-", "-", "-"], "b": ["own+time", "own", "object", "-", "-"]}
    q2 = {"a": ["-", "-", "trivial", "unclear", "opposite"], "b": ["-", "-", "-", "unclear", "trivial"]}
    filled = filled_by(key, q1=q1, q2=q2)
    shares = votes.share_content(filled, key)
    assert shares.loc["the role of the one who acts", "strengthening"] == pytest.approx(2 / 3)
    assert shares.loc["the setting: the time", "strengthening"] == pytest.approx(1 / 3)
    assert (
        shares.loc["the setting: an object", "strengthening"] == pytest.approx(1 / 6)
        and shares["weakening"].isna().all()
    )
    examples = votes.show_content(filled, key, seed=0)
    assert examples["category"].tolist() == ["the role of the one who acts"] * 2  # not the object, which one of two saw
    errors = votes.count_errors(filled, key).set_index("model")
    assert errors.loc["distill_base", ["contexts", "trivial", "opposite", "valid"]].tolist() == [1, 0.5, 0.5, 0]
    assert errors.loc["distill_final", "unclear"] == 1 and list(errors.index) == ["distill_base", "distill_final"]
    assert votes.count_errors(filled, key[key["set"] == "dataset"]).empty
    agreement = votes.agree_on_form(filled, CONTENT_FORM).set_index("question")
    assert agreement.loc["q1: the role of the one who acts", "full"] == 1
    assert agreement.loc["q1: the setting: the time", "full"] == pytest.approx(3 / 5)
    assert agreement.loc["q2", "full"] == pytest.approx(3 / 5) and len(agreement) == 10


def test_what_is_drawn_for_the_content_form(asked):
    drot = pd.concat([asked.assign(source="drot", candidate=n) for n in range(10)], ignore_index=True)
    greedy = pd.concat(
        [asked.assign(source=s) for s in ("distill_base", "self_distill_1", "distill_final")], ignore_index=True
    )
    rows = votes.draw_content(drot, greedy, greedy.assign(valid=np.nan, **YES).head(0), 9, 0)
    assert rows.groupby(["set", "moral_variance"]).size().to_dict() == {("dataset", -1): 4, ("dataset", 1): 4, ("greedy", -1): 4, ("greedy", 1): 6}  # fmt: skip
    again = votes.draw_content(drot, greedy, greedy.assign(valid=[0.0, 1, 1, 1, np.nan] * 3, **YES), 9, 0)
    assert again["set"].value_counts().to_dict() == {"dataset": 8, "greedy": 8, "invalid": 2}
    first, second = (make_key(CONTENT_FORM, of, 1) for of in (rows, again))
    assert first["row_id"].tolist() == second["row_id"].tolist()


def test_notebook_11_with_recorded_votes(candidates, tmp_path, monkeypatch, capsys):
    rows = candidates.assign(source="teacher", candidate=[0, 1, 2] * 2, critic_score=[0.9, 0.8, 0.3, 0.2, None, 0.7])

    def answer(form):
        return [
            ("ann", form.assign(**YES)),
            ("bob", form.assign(**{**YES, "q2": ["YNS"[n % 3] for n in range(len(form))]})),
        ]

    def elsewhere(path):
        frame = pd.read_csv(path, sep="\t", keep_default_na=False)
        frame["context"] = frame["context"].replace("to keep warm", "to keep cold")
        frame["annotator"] = frame["annotator"].replace("bob", "machine-1")
        frame.to_csv(tmp_path / "other.tsv", sep="\t", index=False)
        return tmp_path / "other.tsv"

    legends = []
    monkeypatch.setattr(figures, "draw_rounds", lambda *drawn: legends.append(drawn[2]))
    run = run_notebook(tmp_path, monkeypatch, rows, answer, recorded=elsewhere)
    assert [legend["human_"] for legend in legends] == [
        "votes of annotators", "votes of annotators and a language model (the reference run, of 3)"
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "On this run's contexts, by votes of annotators." in printed
    whose = "On the reference run's contexts, by votes of annotators and a language model."
    assert whose in printed
    for name in ("agreement_human", "table4", "table2_human", "vld_by_votes", "critic_bias", "differences_by_votes"):
        assert whose in (run.figures / f"{name}.md").read_text().split("\n")[0]
    assert "Warning: ann answered Y to q2 on all of" in printed and "bob answered" not in printed
    levels = pd.read_csv(run.figures / "vld_by_votes.csv")
    assert levels["ppi_vld"].tolist() == levels["votes_vld"].tolist() and (levels["voted"] <= levels["rows"]).all()
    assert pd.read_csv(run.figures / "critic_bias.csv")["bias"].isna().all()  # no scores of another run's contexts


def test_as_many_noes_as_not_are_no_majority():
    votes = pd.DataFrame([["Y", "N"], ["N", "S"], ["Y", "S"], ["N", "N"], ["Y", None]], columns=list("ab"))
    assert majority(votes, ["Y", "S", "N"]).fillna("null").tolist() == ["null", "null", "S", "N", "Y"]
