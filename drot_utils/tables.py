"""Tables for the paper: one frame, three files (CSV for programs, LaTeX and Markdown for people)."""

from pathlib import Path

import pandas as pd

from drot_utils.paths import Run, write_text


def save_table(frame: pd.DataFrame, run: Run, name: str, caption: str, decimals: int = 3) -> Path:
    """Write a table as ``.csv`` (all digits), ``.tex`` and ``.md`` (rounded; an empty cell is an unknown value).

    Parameters
    ----------
    frame : DataFrame
    name : str
        Such as ``table2``.
    caption : str
        Goes into the LaTeX and Markdown files.

    Returns
    -------
    Path
        The CSV.
    """
    path = write_text(run.figures / f"{name}.csv", frame.to_csv(index=False))
    shown = round_table(frame, decimals)
    latex = shown.to_latex(index=False, escape=True, caption=caption, label=f"tab:{name}", na_rep="")
    write_text(run.figures / f"{name}.tex", latex)
    write_text(
        run.figures / f"{name}.md", f"{caption}\n\n{shown.to_markdown(index=False, disable_numparse=True)}\n"
    )
    return path


def round_table(frame: pd.DataFrame, decimals: int = 3) -> pd.DataFrame:
    """Return `frame` as text: numbers rounded, whole numbers without a point, unknown values empty."""
    return frame.astype(object).map(lambda value: _text(value, decimals))


def with_intervals(frame: pd.DataFrame, metrics: list[str], decimals: int = 2) -> pd.DataFrame:
    """Return `frame` with each metric and its ``_low`` and ``_high`` columns folded into "0.41 [0.36, 0.46]"."""
    out = frame.copy()
    for metric in metrics:
        low, high = f"{metric}_low", f"{metric}_high"
        columns = zip(frame[metric], frame[low], frame[high], strict=True)
        out[metric] = [
            "" if pd.isna(mean) else f"{mean:.{decimals}f} [{a:.{decimals}f}, {b:.{decimals}f}]"
            for mean, a, b in columns
        ]
        out = out.drop(columns=[low, high])
    return out


def _text(value: object, decimals: int) -> str:
    if isinstance(value, list | dict):
        return str(value)
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:.{decimals}f}"
    return str(value)
