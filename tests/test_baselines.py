"""Tests of `baselines`."""

import pandas as pd
import pytest
from conftest import make_endpoint
from fault_server import FaultServer
from test_corpora import write

from drot_utils.analysis import baselines
from drot_utils.data.paper import TABLE3
from drot_utils.data.table import check_candidates
from drot_utils.method import student
from drot_utils.study.errors import DataError, ModelError
from drot_utils.study.params import ModelRef, Respondent
from drot_utils.study.paths import ROOT

RICH = Respondent(name="rich", recorded="data/demo/teacher_rich.tsv")


@pytest.fixture
def held_out(actions):
    return actions[actions["split"] == "test"].head(3)


def local(name, source="random"):
    return Respondent(name="zero", model=ModelRef(source=source, name=name))


def test_of_recorded_responses_the_first_choice_counts(study, actions, held_out):
    rows = baselines.write_baseline(study, RICH, actions, held_out, 2)
    check_candidates(rows, "test")
    assert len(rows) == 4 and set(rows["source"]) == {"rich"} and rows["tokens"].isna().all()
    recorded = pd.read_csv(ROOT / "data/demo/teacher_rich.tsv", sep="\t", quoting=3)
    first = recorded[(recorded["action-id"] == rows["action_id"][0]) & (recorded["moral-variance"] == 1)]
    assert rows["context"][0] == first.loc[first["choice"] == 0, "context"].item()


def test_a_prompt_without_a_recorded_response_is_an_error(study, actions, held_out, tmp_path):
    first = held_out["action_id"].iloc[0]
    text = "action-id\tmoral-variance\tchoice\tcontext\trationale\n" + f"{first}\t1\t0\tc\tr\n"
    some = Respondent(name="some", recorded=str(write(tmp_path / "r.tsv", text)))
    with pytest.raises(DataError, match=r"5 of 6 test prompts have no recorded response of the baseline 'some'"):
        baselines.write_baseline(study, some, actions, held_out, 3)


def test_a_local_model_answers_the_teachers_prompt(study, actions, held_out):
    rows = baselines.write_baseline(study, local("tiny-t5"), actions, held_out, 1)
    assert len(rows) == 2 and set(rows["source"]) == {"zero"} and rows["raw"].notna().all()


def test_the_students_base_model_is_not_asked_again(study, actions, held_out, monkeypatch):
    written = student.write_contexts(study, "base", held_out, "test_greedy", 1, "greedy")
    monkeypatch.setattr(student, "open_author", lambda *a: pytest.fail("written again"))
    rows = baselines.write_baseline(study, local("tiny-llama"), actions, held_out, 2)
    assert rows["raw"].tolist() == written["raw"].tolist()[:4] and set(rows["source"]) == {"zero"}


@pytest.mark.parametrize("source", ["folder", "random", "package"])
def test_a_model_that_cannot_be_loaded_is_named(study, actions, held_out, source):
    with pytest.raises(ModelError, match=r"evaluation\.baselines, 'zero'"):
        baselines.write_baseline(study, local("no-such-model", source), actions, held_out, 1)


def test_table3_has_a_row_for_each_and_the_papers_number_where_the_name_is_the_same():
    ours = pd.DataFrame({"model": ["teacher", "distill_final", "GPT-4", "mine"], "auto_vld": [0.1, 0.2, 0.3, 0.4]})
    table = baselines.fill_table3(ours).set_index("baseline")
    assert len(table) == len(TABLE3) + 1 and table.loc["GPT-4", "auto_vld"] == 0.3
    assert table.loc["GPT-4", "paper_auto_vld"] == 0.77 and table.loc["GPT-4", "ours"] == "GPT-4"
    assert table.loc["mine, zero-shot", "auto_vld"] == 0.4 and pd.isna(table.loc["mine, zero-shot", "paper_auto_vld"])
    assert pd.isna(table.loc["Falcon-7B-Instruct", "auto_vld"]) and pd.isna(table.loc["Falcon-7B-Instruct", "ours"])
    assert baselines.fill_table3(ours.iloc[:0]).shape[0] == len(TABLE3)


def test_an_endpoint_answers_the_teachers_prompt(study, actions, held_out, replier):
    replier.reply = lambda body: "at night\nExplanation: people sleep" if "more unethical" in str(body) else "Sorry."
    far = Respondent(name="far", endpoint=make_endpoint(replier.url))
    rows = baselines.write_baseline(study, far, actions, held_out, 2)
    check_candidates(rows, "test")
    assert rows["context"].fillna("").tolist() == ["", "at night"] * 2 and len(replier.bodies) == 4
    assert rows["raw"].tolist()[0] == "Sorry." and rows["tokens"].isna().all()
    assert study.record["usage of far"]["completion_tokens"] is None


def test_of_an_answer_that_was_cut_whole_sentences_are_read_and_all_words_kept(study, actions, held_out):
    text = " at night\nExplanation: People sleep. They als"

    def finish(body, choice):
        return ("length" if "more unethical" in str(body) else "content_filter"), text

    with FaultServer(finish=finish) as server:
        far = Respondent(name="far", endpoint=make_endpoint(server.url))
        rows = baselines.write_baseline(study, far, actions, held_out, 1)
    assert rows["rationale"].fillna("").tolist() == ["", "People sleep"] and rows["raw"].tolist() == [text] * 2
    assert study.record["usage of far"]["unfinished"] == {"content filter": 1, "max_tokens used up": 1}
