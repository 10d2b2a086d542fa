import numpy as np
import pandas as pd

from drot_utils import tables
from drot_utils.paths import Run


def test_three_files_and_an_unknown_value_is_empty():
    frame = pd.DataFrame(
        {"model": ["a_b", "c"], "vld": [0.12345, np.nan], "rows": pd.array([12, None], "Int64")}
    )
    run = Run("smoke")
    path = tables.save_table(frame, run, "table2", "Table 2: 50% & more.")
    again = pd.read_csv(path)
    assert again["vld"][0] == 0.12345 and again["vld"].isna()[1] and again["rows"][0] == 12
    markdown = (run.figures / "table2.md").read_text()
    assert "| a_b" in markdown and "0.123" in markdown and "nan" not in markdown and "<NA>" not in markdown
    latex = (run.figures / "table2.tex").read_text()
    assert r"a\_b" in latex and "nan" not in latex.lower().replace("{", "") and r"\label{tab:table2}" in latex


def test_intervals_fold_into_one_cell():
    frame = pd.DataFrame({"vld": [0.41, np.nan], "vld_low": [0.361, np.nan], "vld_high": [0.46, np.nan]})
    assert tables.with_intervals(frame, ["vld"])["vld"].tolist() == ["0.41 [0.36, 0.46]", ""]
