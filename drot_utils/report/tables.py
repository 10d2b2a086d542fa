"""Tables for the paper: one frame, three files (CSV for programs, LaTeX and Markdown for people)."""

import re
import textwrap
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from scipy.stats import norm, t

from drot_utils.data.paper import SAMPLES
from drot_utils.data.table import DIRECTIONS, for_reading
from drot_utils.study import graph
from drot_utils.study.errors import DrotError
from drot_utils.study.outputs import flatten, read_records
from drot_utils.study.paths import Run, write_text

#: What would end a line or is no character to be printed, and what else stands for something in LaTeX and in Markdown.
BREAK = re.compile(r"(?:[^\S ]|[\x00-\x1f\x7f])+")
LATEX = str.maketrans({
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
})  # fmt: skip
#: What pdfLaTeX cannot print without further packages; it is written as a code point.
PRINTED = re.compile(r"[^ -~\xa0-\u017f–—‘’“”…•€]|[ĦħĸĿŀŉŦŧſ]")
#: Cells in words, by column.
SAID = {
    "moral_variance": DIRECTIONS, "far": {True: "far", False: ""},
    "critic": {"critic": "the critic", "critic_independent": "the independent critic"},
}  # fmt: skip
MARKDOWN = str.maketrans({"|": r"\|", "\\": r"\\"})
#: Columns in words; the start of a name says by whom.
BY = {
    "auto_": "",
    "independent_": "independent critic: ",
    "filter_": "who filtered: ",
    "paper_auto_": "paper: ",
    "paper_human_": "paper: ",
    "paper_": "paper: ",
    "human_": "",
}
WORDS = {
    "train_rows": "learnt from", "vld": "Vld", "avg": "Avg", "n_vld": "#Vld of\u00a0{}", "n_unq_vld": "#Unq.Vld of\u00a0{}", "defease": "Defease.",
    "lan": "Lan.", "rationale": "rationale", "f1": "F1", "pr_auc": "PR\u00a0AUC", "roc_auc": "ROC\u00a0AUC", "share_valid": "share valid",
    "majority_accuracy": "majority accuracy", "p_value": "p", "p_holm": "p (Holm)", "moral_variance": "direction", "nli_share": "NLI drops",
    "expected": "by chance", "significant_pct": "signif. %", "language_pct": "lang. %", "earlier": "from", "later": "to", "auc_student": "AUC in a student", "auc_prompt": "AUC in a prompt", "top_tenth": "valid in top tenth",
    "top_fifth": "valid in top fifth", "votes_vld": "by votes", "ppi_vld": "by votes and critic", "votes": "by votes",
    "ppi": "by votes and critic", "mean_words": "words", "full": "all agree", "majority": "majority agrees", "greedy_contexts": "contexts", "critic_avg": "mean score",
}  # fmt: skip
#: Points of a text width of LaTeX's article; between two columns; of a letter in \footnotesize, and in \tiny.
TEXT_WIDTH, GAP, LETTER, TINY = 345, 7, 4.6, 3.0
LONG_WORD = 18  # letters; a longer word may be broken anywhere
INTERVAL = re.compile(r"(\S+) (\[\S+, \S+\])")
#: What `average_runs` takes together, and how the names of its columns begin.
SEEDS = {"table2": "auto_", "differences": "", "vld_by_votes": "", "differences_by_votes": ""}


def save_table(
    frame: pd.DataFrame, run: Run, name: str, caption: str, decimals: int = 2, shown: pd.DataFrame | None = None,
    samples: int = SAMPLES,
) -> Styler:  # fmt: skip
    """Write a table as ``.csv`` (all columns and digits), ``.tex`` and ``.md``, and return it as `show_table` does.

    All but the first are `shape_table` of `shown`, by default of `frame`, with the caption and the run's note. Cells and caption are
    on one line there, and characters that mean something are escaped. LaTeX needs the package booktabs. The table fits the text
    width of an article: long texts are set in several lines, and intervals below their numbers where that is not enough.
    """
    write_text(run.figures / f"{name}.csv", frame.to_csv(index=False))
    caption = BREAK.sub(" ", f"{caption} {run.note or ''}".strip())
    shown = frame if shown is None else shown
    shaped = shape_table(shown, decimals, samples)
    write_text(run.figures / f"{name}.tex", _to_latex(shaped, caption, name))
    sides = ["right" if number else "left" for number in shaped.attrs["numbers"]]
    escaped = shaped.map(_escape, special=MARKDOWN).rename(columns=lambda name: _escape(name, MARKDOWN))
    markdown = escaped.to_markdown(index=False, disable_numparse=True, colalign=sides)
    write_text(run.figures / f"{name}.md", f"{caption}\n\n{markdown}\n")
    return _style(shaped)


def show_table(frame: pd.DataFrame, decimals: int = 2, samples: int = SAMPLES) -> Styler:
    """Return a table as a notebook shows it: `shape_table`, with numbers to the right."""
    return _style(shape_table(frame, decimals, samples))


def _style(shaped: pd.DataFrame) -> Styler:
    numbers = shaped.columns[shaped.attrs["numbers"]]
    heads = {name: [{"selector": "th.col_heading", "props": "text-align: right"}] for name in numbers}
    style = for_reading(shaped).set_properties(numbers, **{"text-align": "right"})
    return style.set_table_styles(heads, overwrite=False)


def shape_table(frame: pd.DataFrame, decimals: int = 2, samples: int = SAMPLES) -> pd.DataFrame:
    """Return a table as a paper has it, as text: columns in words, intervals folded in, unknown values empty.

    Numbers are rounded, with a decimal less in columns that reach 2. A column of which nothing is known is left out, and what
    the first column repeats. Our #Vld is of `samples`. ``attrs["numbers"]`` says which columns are of numbers.
    """
    shown = {}
    for name, values in frame.items():
        ends = [f"{name}_low", f"{name}_high"]
        if str(name).removesuffix("_low").removesuffix("_high") in frame.columns.drop(name) and _is_number(values):
            continue
        if len(frame) and (values.isna() | values.eq("")).all():
            continue
        digits = _choose_decimals(values, decimals) if _is_number(values) else decimals
        if set(ends) <= set(frame):
            shown[name] = [_fold(*row, digits) for row in frame[[name, *ends]].itertuples(index=False)]
        elif _is_number(values):
            shown[name] = [_round(value, digits) for value in values]
        elif name in ("model", "writer", "earlier", "later"):
            shown[name] = values.map(graph.label)
        else:
            said = SAID.get(name, {})
            words = (said.get(value, value) if said else value for value in values.astype(object))
            shown[name] = [_text(value, decimals) for value in words]
    table = pd.DataFrame(shown, dtype=object)
    first, *rest = table.columns if len(table.columns) > 1 else [None]
    if rest and not (_is_number(frame[first]) or _is_number(frame[rest[0]])):
        table[first] = table[first].mask(table[first].eq(table[first].shift()), "")
    table.attrs["numbers"] = [_is_number(frame[name]) for name in table]
    return table.rename(columns=partial(_say, samples=samples))


def _choose_decimals(values: pd.Series, decimals: int) -> int:
    if pd.api.types.is_integer_dtype(values) or (values.abs().max() >= 10 and (values.dropna() % 1 == 0).all()):
        return 0
    return 3 if str(values.name).startswith("p_") else max(decimals - (values.abs().max() >= 2), 1)


def shorten_table2(table2: pd.DataFrame) -> pd.DataFrame:
    """Return what a paper shows of table 2: all metrics by the critic in charge, Vld by the second one, and the paper's numbers."""
    ends = ("", "_low", "_high")
    ours = [f"auto_{metric}{end}" for metric in ("vld", "avg", "n_vld", "n_unq_vld") for end in ends]
    second = [f"{by}_vld{end}" for by in ("independent", "filter") for end in ends]
    columns = ["model", "train_rows", *ours, *second, "paper_auto_vld", "paper_auto_n_unq_vld"]
    return table2[[name for name in columns if name in table2]]


def pivot_differences(differences: pd.DataFrame) -> pd.DataFrame:
    """Return differences (``earlier later metric difference low high critic``) with a row a step and critic, a column a metric."""
    ends = {"difference": "", "low": "_low", "high": "_high"}
    wide = differences.pivot(index=["critic", "earlier", "later"], columns="metric", values=[*ends])
    wide.columns = [f"{metric}{ends[value]}" for value, metric in wide.columns]
    order = differences[["critic", "earlier", "later"]].drop_duplicates()
    names = [f"{metric}{end}" for metric in differences["metric"].unique() for end in ends.values()]
    return order.merge(wide[names].reset_index())


def compare_runs(names: Sequence[str], seeds: bool = False) -> str:
    """Return what differs in the parameters of finished runs, and table 2's automatic metrics side by side, as Markdown.

    Parameters
    ----------
    seeds : bool
        The runs are one study with several seeds: their means instead, and how far the seeds lie apart (see `average_runs`).

    Raises
    ------
    DrotError
        For a run without a table 2.
    """
    told, found = {}, _read_results(names, "table2")
    for name in names:
        if name not in found:
            there = sorted(path.parent.name for path in Run(name).figures.parent.glob("*/table2.csv"))
            there = ", ".join(there) or "none yet"
            raise DrotError("this run has no table 2", where=name, todo=f"finish it, or choose among: {there}")
        records = [record.get("inputs", {}).get("parameters", {}) for record in read_records(Run(name)).values()]
        told[name] = {key: str(value) for each in records for key, value in flatten(each).items()}
    # A run that was stopped before the stages that read a section says nothing of it, and so does not differ.
    sections = {name: {key.partition(".")[0] for key in said} for name, said in told.items()}
    differ = {}
    for key in dict.fromkeys(key for said in told.values() for key in said if not key.startswith("stage.")):
        values = {name: said.get(key) for name, said in told.items() if key.partition(".")[0] in sections[name]}
        if len(set(values.values())) > 1:
            differ[key] = values
    different = pd.DataFrame(differ).T
    more = [key for key in different.index if key != "seed" and not key.startswith("annotation.")]
    warning = [f"Warning: the spread is not that of seeds alone: {', '.join(more)} differ, too."] * bool(seeds and more)
    parts = average_runs(names) if seeds else [_to_markdown(_put_beside(found))]
    return "\n\n".join([_to_markdown(different.reset_index(names="parameter")), *warning, *parts])


def _read_results(names: Sequence[str], table: str) -> dict[str, pd.DataFrame]:
    paths = {name: Run(name).figures / f"{table}.csv" for name in names}
    return {name: pd.read_csv(path) for name, path in paths.items() if path.exists()}


def _put_beside(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the automatic metrics of runs with their intervals: a row a model, the runs' columns of a metric together."""
    models = graph.in_order(set().union(*(rows["model"] for rows in found.values())))
    shaped = {
        name: shape_table(rows.filter(regex="^(model$|auto_)"), samples=_count_samples(name)).set_index("model")
        for name, rows in found.items()
    }
    side = pd.concat(shaped, axis=1).reindex(map(graph.label, models)).fillna("").swaplevel(axis=1)
    side = side[[*dict.fromkeys(column for rows in shaped.values() for column in rows)]]
    side.columns = [" ".join(names) for names in side]
    return side.reset_index(names="model")


def average_runs(names: Sequence[str]) -> list[str]:
    """Return table 2, what votes say, and the differences by both, as means over runs of one study, as Markdown.

    A cell is the mean, its 95% interval (`_average`), and the lowest and the highest run. A difference that has another sign
    in some runs than in the mean, or none, is named with these runs. Tables of votes count where the votes are on a run's own
    contexts: with recorded votes, all runs show what annotators said of one.
    """
    parts = [
        "Means over runs [95% interval] (lowest to highest). If a difference has another sign in some "
        "runs than in the mean, or none, these runs are named beside it, and it does not count as a rise."
    ]
    for table, start in SEEDS.items():
        found = _read_results([name for name in names if _has_own(name, table)], table)
        left_out = [name for name in names if name not in found]
        why = "no votes on its own contexts" if table.endswith("by_votes") else "without it"
        without = f" ({', '.join(left_out)}: {why})" if left_out else ""
        if len(found) < 2:
            parts.append(f"`{table}`: of {len(found) or 'no'} run, so no spread{without}.")
            continue
        if table == "differences":
            found = {name: pivot_differences(rows) for name, rows in found.items()}
        first = next(iter(found.values()))
        keys = [name for name in first if not _is_number(first[name])]
        metrics = [name for name in first if name.startswith(start) and f"{name}_low" in first]
        every = pd.concat({name: rows.set_index(keys) for name, rows in found.items()}, names=["run"])
        by_row, samples = every.groupby(keys, sort=False), max(map(_count_samples, found))
        average = partial(_average, change="later" in keys, samples=samples)
        cells = {name: by_row[[name, f"{name}_low", f"{name}_high"]].apply(average) for name in metrics}
        shown = pd.DataFrame({**cells, "runs": by_row.size()})
        if "later" in keys:
            turned = every[metrics] * by_row[metrics].transform("mean") <= 0
            turned = turned.rename(columns=partial(_say, samples=samples)).rename_axis(columns="metric").stack()
            turned = turned[turned].reset_index().assign(said=lambda rows: rows["metric"] + " in " + rows["run"])
            shown["turned round"] = turned.groupby(keys)["said"].agg(", ".join)
        shaped = shape_table(shown.reset_index(), samples=samples)
        parts.append(f"`{table}` over {', '.join(found)}{without}:\n\n{_to_markdown(shaped)}")
    return parts


def _count_samples(name: str) -> int:
    """Return of how many samples a run's #Vld is."""
    told = read_records(Run(name)).get("07_evaluation", {}).get("inputs", {}).get("parameters", {})
    return flatten(told).get("evaluation.candidates", SAMPLES)


def _has_own(name: str, table: str) -> bool:
    votes = read_records(Run(name)).get("11_human_evaluation", {}).get("votes", {})
    return not table.endswith("by_votes") or votes.get("own", False)


def _average(values: pd.DataFrame, change: bool, samples: int = SAMPLES) -> str:
    """Return one metric of several runs as its mean, the interval of that, and the range (the page ppi in docs/ derives it).

    `values`: a row a run, the metric with the ends of its interval. It stays within its scale: shares within 1, numbers of samples within these.
    """
    means, lows, highs = values.dropna().to_numpy().T
    if (runs := len(means)) < 2:
        return ""
    most = samples if "n_" in str(values.columns[0]) else 1
    least = -most if change else 0
    # An end that the scale has cut off says too little: the other one is as far.
    cut, farther = (lows <= least) | (highs >= most), np.maximum(highs - means, means - lows)
    within = np.mean((np.where(cut, farther, (highs - lows) / 2) / norm.ppf(0.975)) ** 2)
    between = means.var(ddof=1) / runs
    freedom = (runs - 1) * ((within + between) / max(between, 1e-12)) ** 2
    width = t.ppf(0.975, freedom) * np.sqrt(within + between)
    low, high = np.clip([means.mean() - width, means.mean() + width], least, most)
    decimals = 2 if abs(means).max() < 2 else 1
    lowest, highest = (_round(value, decimals) for value in (means.min(), means.max()))
    return f"{_fold(means.mean(), low, high, decimals)} ({lowest} to {highest})"


def _to_markdown(frame: pd.DataFrame) -> str:
    return frame.astype(object).map(_text, decimals=3).to_markdown(index=False, disable_numparse=True)


def _fold(mean: float, low: float, high: float, decimals: int) -> str:
    mean, low, high = (_round(value, decimals) for value in (mean, low, high))
    return f"{mean} [{low}, {high}]" if mean and low and high else mean


def _round(value: float, decimals: int) -> str:
    rounded = "" if pd.isna(value) else f"{value:,.{decimals}f}"
    return rounded.removeprefix("-") if rounded and not float(rounded.replace(",", "")) else rounded  # no -0.00


def _text(value: object, decimals: int) -> str:
    if isinstance(value, list | dict):
        return str(value)
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:.{decimals}f}"
    return str(value)


def _escape(text: str, special: dict[int, str]) -> str:
    return BREAK.sub(" ", text).translate(special)


def _is_number(values: pd.Series) -> bool:
    number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    return number and values.name != "moral_variance"


def _say(column: str, samples: int) -> str:
    start = next((start for start in BY if column.startswith(start)), "")
    rest, of = column.removeprefix(start), SAMPLES if start.startswith("paper") else samples
    return BY.get(start, "") + WORDS.get(rest, rest.replace("_pct", " %").replace("_", " ")).replace("{}", str(of))


def _to_latex(shaped: pd.DataFrame, caption: str, name: str) -> str:
    """Return a floating table that is no wider than `TEXT_WIDTH`: columns of numbers to the right, those of long texts broken."""
    numbers, room = shaped.attrs["numbers"], TEXT_WIDTH - GAP * shaped.shape[1]
    # Where it is too wide: intervals below, and headings of a word a line.
    for stacked, length in ((False, 9), (True, 1)):
        heads = [textwrap.wrap(head, length, break_long_words=False) if number else [head]
                 for head, number in zip(shaped, numbers, strict=True)]  # fmt: skip
        wide = [_measure(shaped.iloc[:, k], head, stacked) for k, head in enumerate(heads)]
        words = [
            LETTER * max([*map(_longest_word, shaped.iloc[:, k]), _letters(head[0])]) for k, head in enumerate(heads)
        ]
        if sum(width if number else word for width, word, number in zip(wide, words, numbers, strict=True)) <= room:
            break
    texts = [k for k, number in enumerate(numbers) if not number]
    narrow = set()
    while texts and sum(wide) > room:
        k = max(texts, key=lambda k: wide[k] - words[k])
        if wide[k] <= words[k]:
            break
        wide[k] = max(wide[k] - LETTER, words[k])
        narrow.add(k)
    gap = 3 if sum(wide) <= room else 2  # the last resort: columns nearer to each other
    sides = "".join(
        f"p{{{wide[k]:.0f}pt}}" if k in narrow else "r" if number else "l" for k, number in enumerate(numbers)
    )
    rows = [[_head(lines, number) for lines, number in zip(heads, numbers, strict=True)]]
    for cells in shaped.itertuples(index=False):
        rows.append([_cell(text, stacked, k in narrow) for k, text in enumerate(cells)])
    top, *body = [f"{_guard(' & '.join(row))} \\tabularnewline" for row in rows]
    return "\n".join([
        r"\begin{table}", rf"\centering\footnotesize\setlength{{\tabcolsep}}{{{gap}pt}}", rf"\caption{{{_print(caption)}}}",
        rf"\label{{tab:{name}}}", rf"\begin{{tabular}}{{@{{}}{sides}@{{}}}}", r"\toprule", top, r"\midrule", *body,
        r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def _measure(cells: pd.Series, head: list[str], stacked: bool) -> float:
    """Return the width of a column in points."""
    widths = [_letters(line) * LETTER for line in head]
    for text in cells:
        value, interval = found.groups() if (found := INTERVAL.fullmatch(text)) else (text, "")
        parts = (LETTER * _letters(value), TINY * len(_short(interval)))
        widths.append(max(parts) if stacked else sum(parts) + 2)
    return max(widths)


def _letters(text: str) -> float:
    return len(text) + 0.4 * len(re.findall(r"[A-Zmw#%&@]", text))


def _longest_word(text: str) -> float:
    return max((_letters(word[:LONG_WORD]) for word in re.split(r"\s|(?<=[-_])", text)), default=0)


def _cell(text: str, stacked: bool, narrow: bool) -> str:
    if found := INTERVAL.fullmatch(text):
        value, interval = _print(found[1]), _print(_short(found[2]))
        below = rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{value}\\[-3pt]{{\tiny {interval}}}\end{{tabular}}"
        return below if stacked else rf"{value} {{\tiny {interval}}}"
    # A long word may be broken; in a narrow column lines are ragged.
    pieces = re.split(rf"([^\s-]{{{LONG_WORD}}}(?=[^\s-]))", text)
    printed = r"\hspace{0pt}".join(_print(piece) for piece in pieces if piece)
    return r"\raggedright " + printed.replace(r"\_", r"\_\hspace{0pt}") if narrow else printed


def _short(interval: str) -> str:
    return re.sub(r"\b0\.", ".", interval)


def _head(lines: list[str], number: bool) -> str:
    printed = r"\\".join(map(_print, lines))
    return rf"\shortstack[r]{{{printed}}}" if number and len(lines) > 1 else printed


def _print(text: str) -> str:
    return PRINTED.sub(lambda found: f"[U+{ord(found[0]):04X}]", _escape(text, LATEX))


def _guard(row: str) -> str:
    # After the end of a row, LaTeX takes a bracket for a length and a star for a variant of the command.
    return f"{{}}{row}" if row.lstrip().startswith(("[", "*")) else row
