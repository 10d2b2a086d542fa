"""Tests of `paper`."""

from drot_utils.data import paper
from drot_utils.study import graph
from drot_utils.study.params import load_params


def test_students_and_table2_name_the_same_models():
    students = graph.list_students(load_params("params/paper.yaml"), ablations=True)
    assert set(paper.TABLE2["model"]) == {"teacher", *students} and len(students) == 10


def test_numbers_copied_from_the_paper():
    table = paper.TABLE2.set_index("model")
    assert table.loc["distill_final", ["paper_auto_vld", "paper_auto_avg", "paper_auto_n_vld"]].tolist() == [
        0.86,
        0.88,
        8.40,
    ]
    assert (
        table["paper_auto_vld"].between(0, 1).all()
        and table["paper_auto_n_unq_vld"].dropna().le(table["paper_auto_n_vld"].dropna()).all()
    )
    assert table.loc["teacher", "paper_human_defease"] == 0.37
    percent = paper.TABLE4
    assert (percent["paper_significant_pct"] + percent["paper_slight_pct"]).round(1).eq(100).all()
