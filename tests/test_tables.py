"""Tests of `tables`."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import NEEDS_TEX, typeset

from drot_utils.data.paper import TABLE4
from drot_utils.report import tables
from drot_utils.study import outputs
from drot_utils.study.errors import DrotError
from drot_utils.study.params import load_params
from drot_utils.study.paths import NOTEBOOKS, ROOT, Run, write_text


def test_three_files_and_an_unknown_value_is_empty():
    frame = pd.DataFrame({"model": ["a_b", "c"], "vld": [0.12345, np.nan], "rows": pd.array([12, None], "Int64")})
    run = Run("smoke")
    shown = tables.save_table(frame, run, "table2", "Table 2: 50% & more.").to_html()
    again = pd.read_csv(run.figures / "table2.csv")
    assert ">0.12<" in shown and "nan" not in shown and "text-align: right" in shown
    assert again["vld"][0] == 0.12345 and again["vld"].isna()[1] and again["rows"][0] == 12
    markdown = (run.figures / "table2.md").read_text()
    assert "| a_b" in markdown and "|  0.12 |" in markdown and "nan" not in markdown and "<NA>" not in markdown
    latex = (run.figures / "table2.tex").read_text()
    assert r"a\_b" in latex and "nan" not in latex.lower().replace("{", "") and r"\label{tab:table2}" in latex


def test_a_run_s_note_ends_every_caption():
    note = load_params("params/quick.yaml").note
    run = Run("quick", note)
    tables.save_table(pd.DataFrame({"vld": [0.5]}), run, "table2", "By 50%.")
    assert (
        (run.figures / "table2.md")
        .read_text()
        .startswith("By 50%. Profile quick: few actions, so all intervals are wide.\n")
    )
    assert r"\caption{By 50\%. Profile quick: few" in (run.figures / "table2.tex").read_text()
    assert load_params("params/demo.yaml").note is None and run == Run("quick")


def test_intervals_fold_into_one_cell():
    frame = pd.DataFrame({"vld": [0.41, np.nan], "vld_low": [0.361, np.nan], "vld_high": [0.46, np.nan]})
    assert tables.shape_table(frame)["Vld"].tolist() == ["0.41 [0.36, 0.46]", ""]


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
    assert texts[0] == ["[a|b] %", "#", "[n]"] and [row[0] for row in texts[3:6]] == NASTY[1:4]


def test_latex_keeps_special_characters_as_text():
    run = Run("smoke")
    tables.save_table(nasty_frame(), run, "nasty", "95% of {country} & a_b\n\n\\end")
    latex = (run.figures / "nasty.tex").read_text()
    assert r"\caption{95\% of \{country\} \& a\_b \textbackslash{}end}" in latex
    assert r"50\% \& more & " in latex and r"x\_y \#1 \$5 \{z\} & " in latex
    assert r"\textasciitilde{} \textasciicircum{} \textbackslash{} \textbackslash{}\textbackslash{}" in latex
    assert latex.count("\\tabularnewline\n") == len(NASTY) + 1 and "\n\n" not in latex
    lines = latex.splitlines()
    assert any(line.startswith("{}[1] first & ") for line in lines) and any(
        line.startswith("{} *star & ") for line in lines
    )


WIDE = {
    "model": ["distill_base-no_critic", "self_distill_2"],
    "note": ["A sentence that is much too long for one line of a table. " * 3, "x" * 70],
}
WIDE |= {
    f"auto_m{k}{end}": [value, np.nan]
    for k in range(4)
    for end, value in (("", -0.41), ("_low", -0.36), ("_high", 10.46))
}
ODD = pd.DataFrame({
    "action": ["שלום 🔥 火", "<b>a | b</b>", "Straße, señor, Łódź, ħ"], "p_value": [0.0004, 1.0, np.nan], "n": [1234567, 1, 2],
})  # fmt: skip


@NEEDS_TEX
def test_every_latex_table_compiles_and_fits_a_text_width(tmp_path):
    run = Run("smoke")
    tables.save_table(nasty_frame(), run, "nasty", "95% of {country}, x_y & ^ ~ # $ \\ |")
    tables.save_table(nasty_frame().iloc[:0], run, "empty", "No rows: 0%.")
    tables.save_table(pd.DataFrame(WIDE), run, "wide", "A wide table.")
    tables.save_table(ODD, run, "odd", "Other scripts: שלום.")
    answered = TABLE4.assign(rows=1000, valid_pct=85.9, language_pct=100.0, significant_pct=79.5, slight_pct=20.5)
    tables.save_table(answered, run, "answered", "Table 4 where people were asked.")
    paths = [*sorted((ROOT / "figures" / "reference").glob("*.tex")), *sorted(run.figures.glob("*.tex"))]
    assert len(paths) > 20
    assert typeset(paths, tmp_path) == []


@NEEDS_TEX
def test_a_table_that_is_too_wide_is_found(tmp_path):
    path = tmp_path / "t.tex"
    path.write_text("\\begin{table}\\begin{tabular}{r}" + "0123456789" * 9 + "\\end{tabular}\\end{table}")
    assert len(typeset([path], tmp_path)) == 1


def test_a_paper_s_shape():
    frame = pd.DataFrame({
        "part": ["dev", "dev", "test"], "model": ["base", "self_distill_1-no_nli", "teacher"], "train_rows": pd.array([None, 1234, 5], "Int64"),
        "auto_n_vld": [4.04, -0.001, np.nan], "auto_n_vld_low": [3, -0.01, 1], "auto_n_vld_high": [10, 0.01, 1],
        "valid_pct": [100.0, 85.9, 1.0], "p_holm": [0.3204, 1, np.nan], "human_vld": np.nan, "moral_variance": [1, -1, 1],
    })  # fmt: skip
    shaped = tables.shape_table(frame)
    assert [head.replace("\u00a0", " ") for head in shaped] == [
        "part", "model", "learnt from", "#Vld of 10", "valid %", "p (Holm)", "direction"
    ]  # fmt: skip
    assert shaped["part"].tolist() == ["dev", "", "test"] and shaped["model"].tolist()[1] == "- No NLI"
    assert shaped.iloc[:, 2].tolist() == ["", "1,234", "5"]
    assert shaped.iloc[:, 3].tolist() == ["4.0 [3.0, 10.0]", "0.0 [0.0, 0.0]", ""]
    assert shaped.iloc[:, 4].tolist() == ["100.0", "85.9", "1.0"] and shaped.iloc[:, 5].tolist() == [
        "0.320",
        "1.000",
        "",
    ]
    assert shaped["direction"].tolist() == ["strengthening", "weakening", "strengthening"]
    assert shaped.attrs["numbers"] == [False, False, True, True, True, True, False]


def test_latex_aligns_numbers_and_says_what_it_cannot_print():
    run = Run("smoke")
    tables.save_table(ODD, run, "odd", "c")
    latex = (run.figures / "odd.tex").read_text()
    assert r"\begin{tabular}{@{}lrr@{}}" in latex and "[U+05E9]" in latex and "[U+1F525]" in latex and "Łódź" in latex
    assert r"\textless{}b\textgreater{}a \textbar{} b" in latex and "1,234,567" in latex and "0.000" in latex
    tables.save_table(pd.DataFrame({"vld": [0.41], "vld_low": [0.36], "vld_high": [0.5]}), run, "small", "c")
    assert r"0.41 {\tiny [.36, .50]}" in (run.figures / "small.tex").read_text()


def test_differences_have_a_row_a_step_and_a_column_a_metric():
    rows = [
        ("base", "distill_base", metric, 0.4, 0.3, 0.5, critic)
        for critic in ("one", "two")
        for metric in ("vld", "avg")
    ]
    found = tables.pivot_differences(
        pd.DataFrame(rows, columns=["earlier", "later", "metric", "difference", "low", "high", "critic"])
    )
    assert found["critic"].tolist() == ["one", "two"] and list(found)[3:] == [
        f"{m}{e}" for m in ("vld", "avg") for e in ("", "_low", "_high")
    ]
    assert tables.shape_table(found).iloc[0, 3] == "0.40 [0.30, 0.50]"


def test_captions_in_notebooks_have_no_number():
    cells = [
        cell for path in NOTEBOOKS.glob("*.ipynb") for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    ]
    sources = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert "save_table" in sources and not re.findall(r"\"(?:Table|Figure) \d+.*", sources)


def test_an_unknown_interval_is_left_out():
    frame = pd.DataFrame({"vld": [0.41], "vld_low": [np.nan], "vld_high": [np.nan]})
    assert tables.shape_table(frame)["Vld"].tolist() == ["0.41"]


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
        "| model                | Vld demo          | Vld nli04         |",
        "|:---------------------|:------------------|:------------------|",
        "| zero-shot base model | 0.50 [0.40, 0.60] | 0.60 [0.50, 0.70] |",
        "| SelfDistill_1        |                   | 0.60 [0.50, 0.70] |",
        "| Distill_final        | 0.50 [0.40, 0.60] | 0.60 [0.50, 0.70] |",
    ]
    with pytest.raises(DrotError, match=r"(?s)no table 2.*choose among: demo, nli04"):
        tables.compare_runs(["demo", "smoke"])


def make_seeds(own, **rises):
    """Write what runs found: by critic and by votes, on `own` contexts or others', `rises` of Vld from one round to the next."""
    for seed, (name, rise) in enumerate(rises.items()):
        run = Run(name)
        ends = {"auto_vld_low": 0.1, "auto_vld_high": 0.9}
        table2 = pd.DataFrame({"model": ["base", "distill_base"], "train_rows": [None, 400 + seed]})
        step = {"earlier": ["base"], "later": ["distill_base"], "voted": [240]}
        vote = {"votes": [rise], "votes_low": [rise - 0.1], "votes_high": [rise + 0.1], "ppi": [0.2]}
        told = {"difference": rise, "low": rise - 0.1, "high": rise + 0.1, "critic": "the critic"}
        found = {
            "table2": table2.assign(auto_vld=[0.3, 0.3 + rise], **ends, independent_vld=0.5),
            "differences": pd.DataFrame({**step, "metric": ["vld"], **told}),
            "vld_by_votes": pd.DataFrame({"set": ["greedy"], "model": ["base"], "voted": [240], "votes_vld": [0.4]}),
            "differences_by_votes": pd.DataFrame(
                {"set": ["greedy"], **step, **vote, "ppi_low": [0.1], "ppi_high": [0.3]}
            ),
        }
        for table, rows in found.items():
            write_text(run.figures / f"{table}.csv", rows.to_csv(index=False))
        outputs.finish(run, "11_human_evaluation", name, {"files": {}, "votes": {"own": name in own}})
        parameters = {"seed": seed, "annotation": {"filled": name}}
        outputs.finish(run, "07_evaluation", name, {"files": {}, "inputs": {"parameters": parameters}})


def test_seeds_are_averaged_and_a_rise_that_one_turns_round_is_named():
    make_seeds({"demo", "seed2"}, demo=0.2, seed1=0.1, seed2=-0.06)
    said = tables.compare_runs(["demo", "seed1", "seed2"], seeds=True).replace("\u00a0", " ")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if "|" in line]
    assert ["seed", "0", "1", "2"] in cells and "Warning" not in said
    assert ["model", "Vld", "runs"] in cells and ["Distill_base", "0.38 [0.00, 0.81] (0.24 to 0.50)", "3"] in cells
    step = ["zero-shot base model", "Distill_base", "0.08 [-0.17, 0.33] (-0.06 to 0.20)"]
    assert ["the critic", *step, "3", "Vld in seed2"] in cells
    # Seed 1 shows what annotators said of another run.
    votes = next(row for row in cells if row[0] == "greedy" and row[-1] == "by votes in seed2")
    assert (
        votes[4:6] == ["0.20 [0.10, 0.30] (0.20 to 0.20)", "2"]
        and "`vld_by_votes` over demo, seed2 (seed1: no votes on its own contexts):" in said
    )
    shutil.rmtree(Run("seed2").root)
    assert "`vld_by_votes`: of 1 run, so no spread (seed1: " in tables.compare_runs(["demo", "seed1"], seeds=True)


def test_an_interval_over_seeds_covers_what_seeds_and_actions_add():
    rng, covered, draws = np.random.default_rng(0), 0, 2000
    for _ in range(draws):
        actions, runs = rng.normal(0, 0.3, 200), []  # the same ones in all runs
        for _ in range(3):
            found = 0.2 + rng.normal(0, 0.03) + actions + rng.normal(0, 0.3, 200)
            width = 1.96 * found.std(ddof=1) / 200**0.5
            runs.append((found.mean(), found.mean() - width, found.mean() + width))
        cell = tables._average(pd.DataFrame(runs), change=True)
        low, high = (float(end) for end in cell[cell.index("[") + 1 : cell.index("]")].split(", "))
        covered += low <= 0.2 <= high
    assert 0.94 < covered / draws < 0.995  # it counts the noise of a run's own texts twice, so a little too wide


def test_what_seeds_lack_and_what_else_differs_is_said():
    make_seeds({"demo", "seed1"}, demo=0.2, seed1=0.1)
    (Run("demo").figures / "vld_by_votes.csv").unlink()
    (Run("seed1").figures / "vld_by_votes.csv").unlink()
    for name, threshold in (("demo", 0.5), ("seed1", 0.4)):
        adapter = {"rank": 8} if name == "demo" else None
        parameters = {"nli": {"threshold": threshold}, "student": {"adapter": adapter}, name: {"read": "by none else"}}
        outputs.finish(Run(name), "03_nli_filter", "x", {"files": {}, "inputs": {"parameters": parameters}})
    said = tables.compare_runs(["demo", "seed1"], seeds=True)
    assert (
        "`vld_by_votes`: of no run, so no spread (demo, seed1: no votes on its own contexts)." in said
        and "turned round |" not in said
    )
    assert (
        "Warning: the spread is not that of seeds alone: nli.threshold, student.adapter.rank, student.adapter differ, too."
        in said
    )
    with pytest.raises(DrotError, match="no table 2"):
        tables.compare_runs(["demo", "seed3"], seeds=True)


def test_a_text_that_looks_like_an_interval_is_escaped():
    run = Run("demo")
    tables.save_table(pd.DataFrame({"context": [r"50%_off\input{x} [a_b, c&d]"]}), run, "t", "c")
    assert r"\input{" not in (tex := (run.figures / "t.tex").read_text()) and "c\\&d" in tex


def test_a_mean_over_seeds_at_an_end_of_the_scale_is_no_surer_than_one_run():
    runs = pd.DataFrame([(1.0, 0.73, 1.0)] * 3, columns=["vld", "vld_low", "vld_high"])
    assert tables._average(runs, change=False) == "1.00 [0.73, 1.00] (1.00 to 1.00)"
    few = pd.DataFrame([(0.3, 0.0, 1.5), (0.1, 0.0, 0.9)], columns=["n_vld", "n_vld_low", "n_vld_high"])
    assert tables._average(few, change=False).startswith("0.20 [0.00, ")


def test_what_is_counted_among_more_or_fewer_than_ten_samples():
    make_seeds({"demo", "seed1"}, demo=0.2, seed1=0.1)
    for name, count in (("demo", 14), ("seed1", 15)):
        path = Run(name).figures / "table2.csv"
        ends = {"auto_n_vld": count, "auto_n_vld_low": count - 1, "auto_n_vld_high": count + 1}
        path.write_text(pd.read_csv(path).assign(**ends).to_csv(index=False))
        parameters = {"evaluation": {"candidates": 20 if name == "demo" else 18}}
        outputs.finish(Run(name), "07_evaluation", name, {"files": {}, "inputs": {"parameters": parameters}})
    said = tables.compare_runs(["demo", "seed1"], seeds=True)
    assert "| #Vld of\u00a020 " in said and "| 14.5 [12.5, 16.5] (14.0 to 15.0) |" in said
    heads = next(line for line in tables.compare_runs(["demo", "seed1"]).splitlines() if line.startswith("| model"))
    assert "| #Vld of\u00a020 demo " in heads and "| #Vld of\u00a018 seed1 " in heads
    paper = pd.DataFrame({"model": ["base"], "human_n_vld": [9.0], "paper_human_n_vld": [5.0]})
    assert [*tables.shape_table(paper, samples=12)][1:] == ["#Vld of\u00a012", "paper: #Vld of\u00a010"]
