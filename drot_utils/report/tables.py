"""Tables for the paper: one frame, three files (CSV for programs, LaTeX and Markdown for people)."""

import re
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from drot_utils.data.table import visible
from drot_utils.study.errors import DrotError
from drot_utils.study.graph import in_order
from drot_utils.study.outputs import flatten, read_records
from drot_utils.study.paths import Run, write_text

#: What would end a line or is no character to be printed, and what else stands for something in LaTeX and in Markdown.
BREAK = re.compile(r"(?:[^\S ]|[\x00-\x1f\x7f])+")
LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
WAYS = {1: "more acceptable", -1: "less acceptable"}
MARKDOWN = {"|": r"\|", "\\": r"\\"}


def save_table(frame: pd.DataFrame, run: Run, name: str, caption: str, decimals: int = 3) -> Path:
    """Write a table as ``.csv`` (all digits; its path is returned), ``.tex`` and ``.md`` (rounded; what is unknown is empty).

    In the latter two, cells and caption are on one line, and characters that mean something there are escaped. pdfLaTeX needs the
    package booktabs; texts in other scripts than the Latin one need XeLaTeX or LuaLaTeX and a font that has them.
    """
    path = write_text(run.figures / f"{name}.csv", frame.to_csv(index=False))
    shown, caption = round_table(frame, decimals), BREAK.sub(" ", caption)
    latex = _escape(shown, LATEX).map(_guard).rename(columns=_guard)
    latex = latex.to_latex(index=False, escape=False, caption=_replace(caption, LATEX), label=f"tab:{name}", na_rep="")
    write_text(run.figures / f"{name}.tex", latex)
    markdown = _escape(shown, MARKDOWN).to_markdown(index=False, disable_numparse=True)
    write_text(run.figures / f"{name}.md", f"{caption}\n\n{markdown}\n")
    return path


def round_table(frame: pd.DataFrame, decimals: int = 3) -> pd.DataFrame:
    """Return `frame` as text: numbers rounded, whole numbers without a point, unknown values empty."""
    return frame.astype(object).map(lambda value: _text(value, decimals))


def with_intervals(frame: pd.DataFrame, metrics: list[str], decimals: int = 2) -> pd.DataFrame:
    """Return `frame` with each metric and its ``_low`` and ``_high`` columns folded into "0.41 [0.36, 0.46]"."""
    out = frame.copy()
    for metric in metrics:
        ends = [f"{metric}_low", f"{metric}_high"]
        out[metric] = [_fold(*values, decimals) for values in frame[[metric, *ends]].itertuples(index=False)]
        out = out.drop(columns=ends)
    return out


def compare_runs(names: Sequence[str]) -> str:
    """Return what differs in the parameters of finished runs, and table 2's automatic metrics side by side, as Markdown.

    Raises
    ------
    DrotError
        For a run without a table 2.
    """
    differ, side = {}, pd.DataFrame({"model": []})
    for name in names:
        run = Run(name)
        path = run.figures / "table2.csv"
        if not path.exists():
            there = ", ".join(sorted(p.parent.name for p in run.figures.parent.glob("*/table2.csv"))) or "none yet"
            raise DrotError("this run has no table 2", where=name, todo=f"finish it, or choose among: {there}")
        table = pd.read_csv(path)
        metrics = [column for column in table if column.startswith("auto_") and f"{column}_low" in table]
        folded = with_intervals(table, metrics)[["model", *metrics]]
        side = side.merge(
            folded.rename(columns={metric: f"{metric} {name}" for metric in metrics}), on="model", how="outer"
        )
        for record in read_records(run).values():
            for key, value in flatten(record.get("inputs", {}).get("parameters", {})).items():
                if not key.startswith("stage."):
                    differ.setdefault(key, {})[name] = str(value)
    different = pd.DataFrame({k: v for k, v in differ.items() if len({v.get(n) for n in names}) > 1}).T
    ordered = side.set_index("model").loc[in_order(side["model"])].reset_index()
    by_metric = sorted(ordered.columns[1:], key=lambda column: metrics.index(column.split()[0]))
    parts = [different.reset_index(names="parameter"), ordered[["model", *by_metric]]]
    return "\n\n".join(round_table(part).to_markdown(index=False, disable_numparse=True) for part in parts)


def _fold(mean: float, low: float, high: float, decimals: int) -> str:
    interval = "" if pd.isna(low) or pd.isna(high) else f" [{low:.{decimals}f}, {high:.{decimals}f}]"
    return "" if pd.isna(mean) else f"{mean:.{decimals}f}{interval}"


def _text(value: object, decimals: int) -> str:
    if isinstance(value, list | dict):
        return str(value)
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:.{decimals}f}"
    return str(value)


def _escape(shown: pd.DataFrame, special: dict[str, str]) -> pd.DataFrame:
    return shown.map(_replace, special=special).rename(columns=lambda name: _replace(str(name), special))


def _replace(text: str, special: dict[str, str]) -> str:
    return BREAK.sub(" ", text).translate(str.maketrans(special))


def _guard(cell: str) -> str:
    # After the end of a row, LaTeX takes a bracket for a length and a star for a variant of the command.
    return f"{{}}{cell}" if cell.lstrip().startswith(("[", "*")) else cell


def say_contexts(every: pd.DataFrame, best: pd.DataFrame | None, width: int | None = None) -> str:
    """Return what a student writes as tables that no text of it can break, one an action and direction.

    Parameters
    ----------
    every : DataFrame
        All candidates, as `distill.ask_student` returns them with `raw`.
    best : DataFrame or None
        Those to show (`distill.choose_best`); by default all, with what the NLI filter says of each.
    width : int, optional
        Columns of the terminal.
    """
    width, parts = width or shutil.get_terminal_size((100, 24)).columns, []
    for (action, way), written in every.groupby(["action", "moral_variance"], sort=False):
        same, odd = written["same_as"].notna().sum(), written["context"].isna().sum()
        counts = f"{len(written)} written, the NLI filter drops {same} as saying the same, {odd} do not parse"
        parts.append(f"{visible(action)}: {WAYS[way]} ({counts})")
        shown = written if best is None else best[best["action"].eq(action) & best["moral_variance"].eq(way)]
        table = {"score": [f"{score:.2f}" if pd.notna(score) else "" for score in shown["critic_score"]]}
        if best is None:
            said = zip(shown["context"].isna(), shown["same_as"].fillna(""), strict=True)
            table["NLI filter"] = ["" if odd else f"drops it: {same}" if same else "keeps it" for odd, same in said]
        table |= {"context": shown["context"].fillna(shown.get("raw", "")), "rationale": shown["rationale"].fillna("")}
        cells = {name: [visible(text) for text in texts] for name, texts in table.items()}
        room = max(12, (width - 8 - 3 * len(table)) // (len(table) - 1))
        parts += [
            tabulate(cells, "keys", "presto", maxcolwidths=[None, *[room] * (len(table) - 1)], disable_numparse=True),
            "",
        ]
    return "\n".join(_keep_order(line) for line in "\n".join(parts).splitlines())


def _keep_order(line: str) -> str:
    # Where letters run from right to left, invisible left-to-right marks hold the columns in their order.
    turns = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in line)
    return "\u200e" + line.replace(" | ", " \u200e|\u200e ") if turns else line
