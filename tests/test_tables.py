"""Tests of `tables`."""

import re
import subprocess
from shutil import which

import numpy as np
import pandas as pd
import pytest

from drot_utils.report import tables
from drot_utils.study import outputs
from drot_utils.study.errors import DrotError
from drot_utils.study.paths import ROOT, Run, write_text


def test_three_files_and_an_unknown_value_is_empty():
    frame = pd.DataFrame({"model": ["a_b", "c"], "vld": [0.12345, np.nan], "rows": pd.array([12, None], "Int64")})
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


NASTY = [
    "50% & more",
    "a|b",
    "a\\|b",
    "x_y #1 $5 {z}",
    "~ ^ \\ \\\\",
    "two\n\nlines\r\n",
    "[1] first",
    " *star",
    "\x1b\x0b\u2028",
    "naïve – “é”",
]


def nasty_frame():
    return pd.DataFrame({"[a|b] %_\n": NASTY, "#": NASTY[::-1], "[n]": [0.5, np.nan] * 5})


def test_every_markdown_row_has_the_columns_of_its_header():
    run = Run("smoke")
    tables.save_table(nasty_frame(), run, "nasty", "Caption | with\na second line")
    caption, blank, *rows = (run.figures / "nasty.md").read_text().splitlines()
    assert caption == "Caption | with a second line" and blank == "" and len(rows) == len(NASTY) + 2
    cells = [re.findall(r"\|((?:\\.|[^|\\])*)(?=\|)", row) for row in rows]
    assert {len(row) for row in cells} == {3}
    texts = [[re.sub(r"\\([\\|])", r"\1", cell).strip() for cell in row] for row in cells]
    assert texts[0] == ["[a|b] %_", "#", "[n]"] and [row[0] for row in texts[3:6]] == NASTY[1:4]


def test_latex_keeps_special_characters_as_text():
    run = Run("smoke")
    tables.save_table(nasty_frame(), run, "nasty", "95% of {country} & a_b\n\n\\end")
    latex = (run.figures / "nasty.tex").read_text()
    assert r"\caption{95\% of \{country\} \& a\_b \textbackslash{}end}" in latex
    assert r"50\% \& more & " in latex and r"x\_y \#1 \$5 \{z\} & " in latex
    assert r"\textasciitilde{} \textasciicircum{} \textbackslash{} \textbackslash{}\textbackslash{}" in latex
    assert latex.count(r" \\" + "\n") == len(NASTY) + 1 and "\n\n" not in latex
    lines = latex.splitlines()
    assert any(line.startswith("{}[1] first & ") for line in lines) and any(
        line.startswith("{} *star & ") for line in lines
    )


@pytest.mark.skipif(not (which("pdflatex") or which("tectonic")), reason="no TeX engine is installed")
def test_every_latex_table_compiles(tmp_path):
    run = Run("smoke")
    tables.save_table(nasty_frame(), run, "nasty", "95% of {country}, x_y & ^ ~ # $ \\ |")
    tables.save_table(nasty_frame().iloc[:0], run, "empty", "No rows: 0%.")
    paths = [*sorted((ROOT / "figures" / "reference").glob("*.tex")), *sorted(run.figures.glob("*.tex"))]
    assert len(paths) > 20
    inputs = "\n\\clearpage\n".join(path.read_text(encoding="utf-8") for path in paths)
    document = tmp_path / "all.tex"
    document.write_text(
        "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n",
        encoding="utf-8",
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error"] if which("pdflatex") else ["tectonic"]
    done = subprocess.run(
        [*command, document.name], cwd=tmp_path, capture_output=True, text=True, check=False, errors="replace"
    )
    assert done.returncode == 0 and document.with_suffix(".pdf").exists(), done.stdout[-2000:] + done.stderr


def test_an_unknown_interval_is_left_out():
    frame = pd.DataFrame({"vld": [0.41], "vld_low": [np.nan], "vld_high": [np.nan]})
    assert tables.with_intervals(frame, ["vld"])["vld"].tolist() == ["0.41"]


def test_runs_side_by_side(monkeypatch):
    for name, vld, threshold in (("demo", 0.5, 0.5), ("nli04", 0.6, 0.4)):
        run = Run(name)
        models = ["distill_final", "base"] if name == "demo" else ["base", "self_distill_1", "distill_final"]
        table = pd.DataFrame({"model": models, "auto_vld": vld, "auto_vld_low": vld - 0.1, "auto_vld_high": vld + 0.1})
        write_text(run.figures / "table2.csv", table.assign(paper_auto_vld=0.8).to_csv(index=False))
        parameters = {"nli": {"threshold": threshold, "epochs": 3}, "stage": {"round": 1}}
        outputs.finish(run, "07_evaluation", name, {"files": {}, "inputs": {"parameters": parameters}})
    assert tables.compare_runs(["demo", "nli04"]).splitlines() == [
        "| parameter     | demo   | nli04   |",
        "|:--------------|:-------|:--------|",
        "| nli.threshold | 0.5    | 0.4     |",
        "",
        "| model          | auto_vld demo     | auto_vld nli04    |",
        "|:---------------|:------------------|:------------------|",
        "| base           | 0.50 [0.40, 0.60] | 0.60 [0.50, 0.70] |",
        "| self_distill_1 |                   | 0.60 [0.50, 0.70] |",
        "| distill_final  | 0.50 [0.40, 0.60] | 0.60 [0.50, 0.70] |",
    ]
    with pytest.raises(DrotError, match=r"(?s)no table 2.*choose among: demo, nli04"):
        tables.compare_runs(["demo", "smoke"])
