"""The figures of the paper and of the notebooks: one function a figure, in the notebooks' order."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve

from drot_utils.data.paper import SAMPLES
from drot_utils.study import graph
from drot_utils.study.paths import Run, atomic, resolve

plt.style.use(resolve("figures/drot.mplstyle"))

#: The metrics of table 2, as the figure of the rounds calls them.
METRICS = {"vld": "Vld (top 1)", "avg": "Avg score (top 1)", "n_vld": "#Vld of {}", "n_unq_vld": "#Unq.Vld of {}"}
#: Who judges, by the start of table 2's columns: colour and mark, the same in all figures.
MARKS = {"human_": ("C0", "o"), "auto_": ("C1", "^"), "independent_": ("C2", "D"), "filter_": ("C2", "D")}
OUTLINE = {"histtype": "step", "linewidth": 1.6}


def save_figure(figure: Figure, run: Run, name: str) -> Path:
    """Write ``<name>.pdf`` and ``<name>.png``, without dates in them, and return the PNG's path.

    Who cannot see the figure reads the figure's label, which each function here sets: it is the PNG's ``Description`` and the
    PDF's ``Subject``.
    """
    words = figure.get_label()
    kinds = {".pdf": {"CreationDate": None, "Subject": words}, ".png": {"Software": None, "Description": words}}
    for suffix, metadata in kinds.items():
        with atomic(run.figures / f"{name}{suffix}") as temporary:
            figure.savefig(temporary, format=suffix[1:], metadata=metadata)
    return run.figures / f"{name}.png"


def draw_lengths(texts: dict[str, pd.Series], title: str) -> Figure:
    """Draw how many words the texts of several sets have."""
    figure, axes = _make_axes(xlabel="words", ylabel="texts", title=title)
    words = {name: column.dropna().str.split().str.len() for name, column in texts.items()}
    longest = max((int(counts.max()) for counts in words.values() if len(counts)), default=1)
    for name, counts in words.items():
        label = f"{name} (mean {counts.mean():.1f})" if len(counts) else f"{name} (none)"
        axes.hist(counts, np.arange(0.5, longest + 1), **OUTLINE, label=label)
    axes.set_xlim(0, longest + 1)
    _say_if_empty(axes, sum(map(len, words.values())))
    axes.legend()
    return _describe(figure, f"{title}: histogram of their lengths in words")


def draw_precision_recall(curves: dict[str, tuple[np.ndarray, np.ndarray]], threshold: float, marked: str) -> Figure:
    """Draw precision-recall curves (figure 8): name to (valid, scores), the threshold marked on one of them."""
    figure, axes = _make_axes((4.6, 3.6), xlabel="recall", ylabel="precision", title="Critic: precision and recall")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.05))
    for name, (valid, scores) in curves.items():
        # Without a valid row there is no recall.
        recall, precision = precision_recall_curve(valid, scores)[1::-1] if valid.any() else ([], [])
        (line,) = axes.plot(recall, precision, label=f"{name} ({int(valid.sum())} of {len(valid)} valid)")
        axes.axhline(valid.mean() if len(valid) else np.nan, color=line.get_color(), linewidth=0.8, linestyle=":")
    _say_if_empty(axes, sum(valid.any() for valid, _ in curves.values()))
    valid, scores = curves[marked]
    called = scores >= threshold
    if called.any() and valid.any():
        point = (float(valid[called].sum() / valid.sum()), float(valid[called].mean()))
        axes.plot(*point, "o", color="black", zorder=5)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}  # it may lie on a curve
        axes.annotate(f"threshold {threshold:.2f}", point, textcoords="offset points", xytext=(7, 7), bbox=box)
    axes.legend(loc="lower left")
    return _describe(
        figure, f"Precision over recall of the critic: {', '.join(curves)}; the threshold {threshold:.2f} is marked"
    )


def draw_calibration(valid: np.ndarray, scores: np.ndarray) -> Figure:
    """Draw how often contexts with a score are valid, in eight bins of equal size, with 95% Wilson intervals."""
    from statsmodels.stats.proportion import proportion_confint

    parts = np.array_split(np.argsort(scores), min(8, len(scores))) if len(scores) else []
    x, hits, sizes = np.array([(scores[p].mean(), valid[p].sum(), len(p)) for p in parts]).reshape(-1, 3).T
    low, high = proportion_confint(hits, sizes, method="wilson")
    rate = hits / sizes
    figure, axes = _make_axes((3.8, 3.6), xlabel="critic score", ylabel="share valid", title="Calibration")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="perfect")
    axes.errorbar(x, rate, [rate - low, high - rate], fmt="o-", capsize=2, label="critic")
    _say_if_empty(axes, len(scores))
    axes.legend(loc="upper left")
    bins = ", ".join(f"{share:.2f} at {score:.2f}" for score, share in zip(x, rate, strict=True))
    return _describe(figure, f"Calibration of the critic, share of valid contexts at a mean score: {bins}")


def draw_fit(curve: pd.DataFrame, best_step: int, title: str) -> Figure:
    """Draw train and dev loss of an encoder, the kept step marked."""
    figure, axes = _make_axes(xlabel="step", ylabel="cross-entropy (nats)", title=title)
    for part in ("train", "dev"):
        axes.plot(curve["step"], curve[f"{part}_loss"], "o-", label=part)
    axes.axvline(best_step, color="black", linewidth=1, linestyle=":", label=f"kept: step {best_step}")
    axes.legend()
    return _describe(figure, f"{title}: loss on train and dev rows by step; step {best_step} is kept")


def draw_confusion(table: pd.DataFrame, title: str) -> Figure:
    """Draw a confusion matrix of counts: rows the labels, columns the predictions."""
    labels = {"xlabel": "predicted", "ylabel": "label", "title": title}
    figure, axes = _draw_cells(table, (3.8, 3.3), "Blues", {"rotation": 20}, **labels)
    for (row, column), count in np.ndenumerate(table.to_numpy()):
        light = count > 0.6 * table.to_numpy().max()
        axes.text(column, row, count, ha="center", va="center", color="white" if light else "black")
    cells = (f"{row} called {column} {count}" for row, counts in table.iterrows() for column, count in counts.items())
    return _describe(figure, f"{title}, label and prediction: {', '.join(cells)}")


def draw_losses(losses: dict[str, list[float]]) -> Figure:
    """Draw students' training loss, smoothed by a running mean: a panel a student, all with the same y axis."""
    figure, grid = plt.subplots(
        1, len(losses), figsize=(2 + 2.2 * len(losses), 2.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (name, values) in zip(grid[0], losses.items(), strict=True):
        smooth = pd.Series(values).rolling(10, min_periods=1).mean()
        axes.plot(np.arange(1, len(values) + 1), smooth)
        axes.set(title=graph.label(name), xlabel="optimizer step (mean of 10)", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        _say_if_empty(axes, len(values))
    grid[0][0].set_ylabel("nats a token")
    ends = (f"{graph.label(name)} {values[0]:.2f} to {values[-1]:.2f}" for name, values in losses.items() if values)
    return _describe(figure, f"Training loss in nats a token, first and last step: {', '.join(ends)}")


#: What the reasons of `distill.count_dropped` are called.
REASONS = {
    "kept": "kept", "unparsed": "does not parse", "nli": "NLI: says the same", "critic": "critic: below the threshold",
    "per_prompt": "beyond the best of its prompt", "repeats": "the same for other prompts", "unscored": "no score",
}  # fmt: skip


def draw_flow(stages: dict[str, dict[str, int]], title: str) -> Figure:
    """Draw which share of the candidates each filter kept and dropped: stage to {kept, unparsed, nli, critic ...}, a bar a stage."""
    table = pd.DataFrame(stages, index=None if stages else ["kept"]).T.fillna(0)
    table = table[sorted(table.columns, key=lambda name: [*REASONS, name].index(name))]
    table = table.loc[:, (table.sum() > 0) | (table.columns == "kept")]
    total = table.sum(axis=1)
    shares = 100 * table.div(total.where(total > 0), axis=0).fillna(0)
    shares.index = [f"{name} ({count:,.0f})" for name, count in total.items()]
    figure = draw_stacked(shares.rename(columns=REASONS), "% of the candidates (their number in brackets)", title)
    for k, (_, row) in enumerate(shares.iterrows()):
        for share, left in zip(row, row.cumsum() - row, strict=True):
            if share >= 4:
                figure.axes[0].text(left + share / 2, k, f"{share:.0f}", ha="center", va="center", color="white")
    said = (f"{name}: {', '.join(f'{share:.0f}% {REASONS.get(why, why)}' for why, share in row.items() if share)}"
            for name, row in shares.iterrows())  # fmt: skip
    return _describe(figure, f"{title}. {'; '.join(said)}")


def draw_scores(
    scores: dict[str, np.ndarray], threshold: float | None, title: str, xlabel: str = "critic score"
) -> Figure:
    """Draw the distribution of scores from 0 to 1 of several sets, the threshold marked if there is one."""
    figure, axes = _make_axes(layout="constrained", xlabel=xlabel, ylabel="density", xlim=(0, 1), title=title)
    for name, values in scores.items():
        values = values[~np.isnan(values)]
        label = f"{name} ({len(values)})"
        axes.hist(values, np.linspace(0, 1, 26), density=len(values) > 0, **OUTLINE, label=label)
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle=":", linewidth=1, label=f"threshold {threshold:.2f}")
    _say_if_empty(axes, sum(np.isfinite(values).sum() for values in scores.values()))
    figure.legend(ncols=3, loc="outside lower center")  # inside, it would lie on the threshold or the curves
    means = (f"{name} mean {np.nanmean(v):.2f}" for name, v in scores.items() if np.isfinite(v).any())
    return _describe(figure, f"{title}: histograms of {xlabel}, {', '.join(means)}")


def draw_rounds(table: pd.DataFrame, models: list[str], prefixes: dict[str, str], samples: int = SAMPLES) -> Figure:
    """Draw how students change from round to round: four metrics of table 2 with 95% intervals, ours and the paper's.

    The x axis is in the order of `models`; `prefixes` maps those of columns, such as ``auto_``, to their names in the legend. A
    metric that has no such column is not drawn. Our #Vld is of `samples`. Of the first prefix the teacher's Vld is a line, where it has one.
    """
    rows = table.set_index("model")
    first, judge = next(iter(prefixes.items()))
    teacher = rows.get(f"{first}vld", pd.Series()).get("teacher", np.nan)
    rows = rows.loc[models]
    names = [_shorten(model) for model in models]
    figure, grid = plt.subplots(1, len(METRICS), figsize=(10, 2.9), layout="constrained")
    x = np.arange(len(models))
    grey = {"color": "grey", "linewidth": 1, "markersize": 4}
    for axes, (metric, title) in zip(grid, METRICS.items(), strict=True):
        for k, (prefix, label) in enumerate(prefixes.items()):
            mean, low, high = (
                rows.get(f"{prefix}{metric}{end}", pd.Series(np.nan, models)) for end in ("", "_low", "_high")
            )
            error = [mean - low.fillna(mean), high.fillna(mean) - mean]
            colour, mark = MARKS[prefix]
            axes.errorbar(x + 0.08 * k, mean, error, fmt=f"{mark}-", color=colour, capsize=2, markersize=5, label=label)
        if metric == "vld" and not np.isnan(teacher):
            axes.axhline(teacher, color="black", linewidth=1, linestyle=":", label=f"the teacher, by {judge}")
        label = f"the paper, by its critic{'' if samples == SAMPLES else f' (of {SAMPLES})'}"
        axes.plot(x, rows[f"paper_auto_{metric}"], "s--", label=label, **grey)
        most = 1 if metric in ("vld", "avg") else max(samples, SAMPLES)
        axes.set(title=title.format(samples), ylim=_leave_room(most))
        axes.set_xticks(x, names, rotation=35, ha="right")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(prefixes) + 2)
    said = [f"{prefixes[prefix]} {', '.join(f'{value:.2f}' for value in rows[f'{prefix}vld'])}"
            for prefix in prefixes if f"{prefix}vld" in rows]  # fmt: skip
    return _describe(
        figure, f"Four metrics by student, ours and the paper's. Vld of {', '.join(names)}: {'; '.join(said)}"
    )


def draw_differences(differences: pd.DataFrame, samples: int = SAMPLES) -> Figure:
    """Draw paired differences between students (``earlier later metric difference low high critic``) with their intervals.

    A panel a metric (#Vld: of `samples`), a line a step, a mark a critic; an interval that crosses the line at 0 is no difference.
    """
    metrics, critics = differences["metric"].unique(), differences["critic"].unique()
    steps = (differences["earlier"].map(_shorten) + " to " + differences["later"].map(_shorten)).rename("step")
    order = list(dict.fromkeys(steps))
    figure, grid = plt.subplots(
        1, max(len(metrics), 1), figsize=(10, 1.4 + 0.35 * len(order)), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, metric in zip(grid[0], metrics, strict=False):
        for k, critic in enumerate(critics):
            rows = differences.assign(step=steps)[differences["critic"].eq(critic) & differences["metric"].eq(metric)]
            ends = (rows["difference"] - rows["low"], rows["high"] - rows["difference"])
            error = [end.clip(lower=0) for end in ends]
            y = np.array([order.index(step) for step in rows["step"]]) + 0.22 * (k - (len(critics) - 1) / 2)
            colour, mark = [*MARKS.values()][k + 1]
            axes.errorbar(
                rows["difference"], y, xerr=error, fmt=mark, color=colour, capsize=2, markersize=4, label=critic
            )
        axes.axvline(0, color="black", linewidth=1, linestyle=":")
        axes.set(title=METRICS[metric].format(samples), xlabel="later minus earlier")
        axes.set_yticks(range(len(order)), order)
    _turn_to_rows(grid[0][0], len(order))
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=max(len(critics), 1))
    first = differences[differences["metric"].eq(metrics[0])] if len(metrics) else differences
    said = (
        f"{step} {row.difference:.2f} [{row.low:.2f}, {row.high:.2f}] by {row.critic}"
        for step, row in zip(steps[first.index], first.itertuples(), strict=True)
    )
    return _describe(figure, f"Paired differences with 95% intervals, metric by metric. The first: {'; '.join(said)}")


def _shorten(student: str) -> str:
    return graph.label(student).split(" (")[0].replace("SelfDistill", "Self").replace("zero-shot base model", "base")


#: The columns of the table of collapse that are drawn, and what they are called.
COLLAPSE = {
    "nli_share": "dropped by the NLI filter", "different_per_100": "different of 100", "top_ten_share": "share of the ten commonest",
    "prompts_covered": "prompts covered", "mean_score": "mean score, share valid",
}  # fmt: skip
ENOUGH = 20  # a share of fewer votes is in the table, but is no point in the figure


def draw_collapse(table: pd.DataFrame) -> Figure:
    """Draw how far the writers of the rounds repeat themselves (`statistics.measure_collapse`), a panel a number."""
    figure, grid = plt.subplots(1, len(COLLAPSE), figsize=(12, 2.7), layout="constrained")
    names = [_shorten(writer) for writer in table["writer"]]
    critic, people = (dict(zip(("color", "marker"), MARKS[by], strict=True)) for by in ("auto_", "human_"))
    x, shown = np.arange(len(table)), table.assign(prompts_covered=table["prompts_covered"] / table["prompts"])
    for axes, (column, title) in zip(grid, COLLAPSE.items(), strict=True):
        axes.plot(x, shown[column], label="all that it wrote, by the critic", **critic)
        axes.set(title=title, ylim=_leave_room(100 if column == "different_per_100" else 1))
        axes.set_xticks(x, names, rotation=35, ha="right")
    if (enough := shown["voted"] >= ENOUGH).any():
        few = shown[["voted_score", "voted_valid"]].where(enough, axis=0)
        grid[-1].plot(x, few["voted_score"], "--", label="what has votes, by the critic", markersize=4, **critic)
        grid[-1].plot(x, few["voted_valid"], "--", label="the same, by annotators", markersize=4, **people)
    figure.legend(*grid[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    said = (f"{title}: {', '.join(f'{v:.2f}' for v in shown[column])}" for column, title in COLLAPSE.items())
    return _describe(figure, f"How far writers repeat themselves ({', '.join(names)}). {'; '.join(said)}")


def draw_topics(topics: dict[str, pd.DataFrame], top: int) -> Figure:
    """Draw the most frequent topics (figure 3): name to a table with ``topic`` and ``count``."""
    figure, grid = plt.subplots(1, len(topics), figsize=(9, 3.6), layout="constrained", squeeze=False)
    for axes, (name, table) in zip(grid[0], topics.items(), strict=True):
        rows = table.nlargest(top, "count", keep="first")
        axes.barh(rows["topic"], rows["count"])
        axes.set(title=name, xlabel="texts")
        _turn_to_rows(axes, len(rows))
    said = (f"{name}: {', '.join(t['topic'].head(top))}" for name, t in topics.items())
    return _describe(figure, f"The most frequent topics. {'; '.join(said)}")


def draw_stacked(table: pd.DataFrame, xlabel: str, title: str) -> Figure:
    """Draw one stacked bar a row of a table of counts, one part a column."""
    figure, axes = _make_axes((6.2, 1.1 + 0.32 * len(table)), "constrained", xlabel=xlabel, title=title)
    left = np.zeros(len(table))
    for name in table.columns:
        axes.barh(table.index.astype(str), table[name], left=left, label=str(name))
        left += table[name].to_numpy(dtype=float)
    _turn_to_rows(axes, len(table))
    figure.legend(ncols=min(3, table.shape[1]), loc="outside lower center")
    return _describe(figure, f"{title}: {_say_rows(table)}")


def draw_grouped(table: pd.DataFrame, xlabel: str, title: str) -> Figure:
    """Draw a group of horizontal bars a row of a table, one bar a column (figure 4)."""
    figure, axes = _make_axes((6.2, 1.1 + 0.4 * len(table)), "constrained", xlabel=xlabel, title=title)
    table.rename_axis(columns=None).plot.barh(ax=axes, width=0.8, xlabel=xlabel, ylabel="")
    _turn_to_rows(axes, int(table.notna().any(axis=None)))
    return _describe(figure, f"{title}: {_say_rows(table)}")


def draw_against(table: pd.DataFrame, label: str, title: str) -> Figure:
    """Draw the distances that `bias.compare_groups` found as marks, on the intervals that chance gives, with p-values.

    `label` is the column of the groups' names.
    """
    figure, axes = _make_axes((6.2, 1.3 + 0.3 * len(table)), "constrained", xlabel="energy distance", title=title)
    y = np.arange(len(table))
    wide = {"color": "lightgrey", "height": 0.55}
    axes.barh(
        y, table["expected_high"] - table["expected_low"], left=table["expected_low"], label="95% of shuffles", **wide
    )
    axes.plot(table["distance"], y, "o", label="found")
    axes.set_yticks(y, table[label])
    axes.set_xlim(0, None)
    for k, p in zip(y, table["p_holm"], strict=True):
        if np.isnan(p):
            continue
        axes.annotate(
            f"p = {p:.2f}" if p >= 0.01 else "p < .01", (1.02, k), xycoords=("axes fraction", "data"), va="center"
        )
    _turn_to_rows(axes, table["distance"].count())
    figure.legend(ncols=2, loc="outside lower center")
    numbers = table[[label, "distance", "p_holm"]].itertuples(index=False)
    said = (f"{name} {distance:.3f} (p {p:.2f})" for name, distance, p in numbers)
    return _describe(figure, f"{title}, with p-values after Holm: {', '.join(said)}")


def draw_matrix(table: pd.DataFrame, title: str) -> Figure:
    """Draw a square table of distances as a heat map."""
    figure, axes = _draw_cells(table, (4.8, 4.2), "viridis", {"rotation": 40, "ha": "right"}, title=title)
    if axes.images:
        figure.colorbar(axes.images[0], shrink=0.8)
    return _describe(figure, f"{title}: heat map; {_say_rows(table)}")


def _describe(figure: Figure, words: str) -> Figure:
    figure.set_label(f"{words}.")
    return figure


def _say_rows(table: pd.DataFrame) -> str:
    rows = (
        f"{row} {', '.join(f'{name} {value:g}' for name, value in values.round(2).items())}"
        for row, values in table.iterrows()
    )
    return "; ".join(rows)


def _make_axes(size: tuple | None = None, layout: str | None = None, **settings: object) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes, and what `Axes.set` takes set: title, labels, limits."""
    figure, axes = plt.subplots(figsize=size, layout=layout)
    axes.set(**settings)
    return figure, axes


def _leave_room(most: float) -> tuple[float, float]:
    """Return the limits of an axis from 0 to `most` on which marks at its ends are whole."""
    return -0.04 * most, 1.04 * most


def _say_if_empty(axes: Axes, rows: int) -> None:
    """Write into axes that there is nothing to draw, where there are no rows."""
    if not rows:
        axes.text(0.5, 0.5, "There is nothing to draw.", transform=axes.transAxes, ha="center", va="center")


def _turn_to_rows(axes: Axes, rows: int) -> None:
    """Let horizontal bars be read from the top, as the rows of a table are."""
    _say_if_empty(axes, rows)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def _draw_cells(table: pd.DataFrame, size: tuple, colours: str, ticks: dict, **settings: object) -> tuple[Figure, Axes]:
    """Draw a table as coloured cells with its names beside them; `ticks` is how the columns' are written."""
    figure, axes = _make_axes(size)
    _say_if_empty(axes, table.size)
    if table.size:
        axes.imshow(table, cmap=colours)
        axes.set_xticks(range(table.shape[1]), table.columns, **ticks)
        axes.set_yticks(range(table.shape[0]), table.index)
        axes.grid(False)
        axes.set(**settings)
    return figure, axes
