"""Charts of tables that more than one notebook draws; `figures` has the paper's own and writes them all."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drot_utils.paths import STYLE

plt.style.use(STYLE)


def say_if_empty(axes: Axes, rows: int) -> bool:
    """Write into axes that there is nothing to draw, where there are no rows; return whether that is so."""
    if not rows:
        axes.text(0.5, 0.5, "There is nothing to draw.", transform=axes.transAxes, ha="center", va="center")
    return not rows


def draw_confusion(table: pd.DataFrame, title: str) -> Figure:
    """Draw a confusion matrix of counts: rows the labels, columns the predictions."""
    figure, axes = plt.subplots(figsize=(3.8, 3.3))
    if say_if_empty(axes, table.size):
        return figure
    axes.imshow(table, cmap="Blues")
    limit = table.to_numpy().max() / 2
    for (row, column), count in np.ndenumerate(table.to_numpy()):
        axes.text(column, row, count, ha="center", va="center", color="white" if count > limit else "black")
    axes.set_xticks(range(table.shape[1]), table.columns, rotation=20)
    axes.set_yticks(range(table.shape[0]), table.index)
    axes.set(xlabel="predicted", ylabel="label", title=title)
    axes.grid(False)
    return figure


def draw_stacked(table: pd.DataFrame, xlabel: str, title: str) -> Figure:
    """Draw one stacked bar a row of a table of counts, one part a column."""
    figure, axes = plt.subplots(figsize=(6.2, 1.1 + 0.32 * len(table)), layout="constrained")
    left = np.zeros(len(table))
    for name in table.columns:
        axes.barh(table.index.astype(str), table[name], left=left, label=str(name))
        left += table[name].to_numpy(dtype=float)
    say_if_empty(axes, len(table))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=xlabel, title=title)
    figure.legend(ncols=min(4, table.shape[1]), loc="outside lower center")
    return figure


def draw_bars(
    table: pd.DataFrame, x: str, y: str, title: str, low: str | None = None, high: str | None = None
) -> Figure:
    """Draw one horizontal bar a row, with an interval where `low` and `high` name its ends."""
    figure, axes = plt.subplots(figsize=(5.5, 0.8 + 0.3 * len(table)))
    error = None
    if low and high:  # an end that rounding puts on the wrong side of its value is the value
        error = [(table[y] - table[low]).clip(lower=0), (table[high] - table[y]).clip(lower=0)]
    axes.barh(table[x], table[y], xerr=error, capsize=2)
    say_if_empty(axes, len(table))
    axes.invert_yaxis()
    axes.set(xlabel=y.replace("_", " "), title=title)
    axes.grid(axis="y", visible=False)
    return figure


def draw_against(table: pd.DataFrame, label: str, found: str, expected: str, title: str) -> Figure:
    """Draw what was found in each row as a bar, and what chance would give as a mark on it."""
    figure, axes = plt.subplots(figsize=(5.5, 0.9 + 0.3 * len(table)))
    axes.barh(table[label], table[found], label=found)
    say_if_empty(axes, table[found].count())
    axes.plot(
        table[expected],
        table[label],
        "|",
        color="black",
        markersize=12,
        markeredgewidth=2,
        label=f"{expected} by chance",
    )
    axes.invert_yaxis()
    axes.set(xlabel=found, title=title)
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right")
    return figure


def draw_matrix(table: pd.DataFrame, title: str) -> Figure:
    """Draw a square table of distances as a heat map."""
    figure, axes = plt.subplots(figsize=(4.8, 4.2))
    if say_if_empty(axes, table.size):
        return figure
    image = axes.imshow(table, cmap="viridis")
    axes.set_xticks(range(len(table)), table.columns, rotation=40, ha="right")
    axes.set_yticks(range(len(table)), table.index)
    axes.set_title(title)
    axes.grid(False)
    figure.colorbar(image, shrink=0.8)
    return figure
