import pytest

from drot_utils import plan
from drot_utils.errors import DrotError
from drot_utils.profiles import load_params
from drot_utils.settings import ModelRef


def test_the_papers_own_numbers_come_back():
    rows = {row.stage: row for row in plan.plan_run(load_params("params/paper.yaml"))}
    assert rows["train Distill_base"].count == pytest.approx(85_000)
    assert rows["train SelfDistill_1"].count == pytest.approx(434_000) and rows[
        "train SelfDistill_2"
    ].count == pytest.approx(466_000)
    assert rows["train Distill_final"].count == pytest.approx(578_000, rel=0.2)
    assert rows["write: data set"].count == 94_000 * 20
    table = plan.to_table(list(rows.values()), plan.paper_rate()).set_index("stage")
    assert table.loc["train SelfDistill_1", "gpu_hours"] == pytest.approx(28 * 8)
    assert table.loc["all", "gpu_hours"] == pytest.approx(table["gpu_hours"].iloc[:-1].sum())


def test_every_committed_profile_can_be_planned(capsys, monkeypatch):
    for profile in ("smoke", "demo", "paper"):
        monkeypatch.setattr("sys.argv", ["plan", f"params/{profile}.yaml"])
        assert plan.main() == 0
    out = capsys.readouterr().out
    assert "Assumed" in out and "28 hours on 8 A6000" in out


def test_unknown_size_says_where_to_add_it():
    params = load_params("params/demo.yaml")
    base = ModelRef(source="hub", name="someone/else", revision="a" * 40)
    params = params.model_copy(update={"student": params.student.model_copy(update={"base": base})})
    with pytest.raises(DrotError, match="add it to SIZES"):
        plan.plan_run(params)
