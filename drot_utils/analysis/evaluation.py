"""The automatic evaluation on held-out actions: validity and diversity, with intervals (section 4, tables 2 and 3)."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from drot_utils.data.gold import count_valid
from drot_utils.data.paper import TABLE2
from drot_utils.data.table import PROMPT, make_table
from drot_utils.method.nli import FindUnique
from drot_utils.study.graph import in_order

METRICS = ["vld", "avg", "n_vld", "n_unq_vld"]
MEASURES = ("accuracy", "f1", "pr_auc", "roc_auc")
#: Of a column's name: the number, and the ends of its 95% interval.
ENDS = ("", "_low", "_high")


def score_models(
    score: Callable[[pd.DataFrame], np.ndarray],
    threshold: float,
    greedy: dict[str, pd.DataFrame],
    samples: dict[str, pd.DataFrame],
    find_unique: FindUnique,
) -> dict[str, pd.DataFrame]:
    """Return each model's `METRICS` by ``action_id``: of its greedy contexts, and of its samples where there are some.

    `score` is a critic's or a panel's; `greedy` and `samples` are what each model wrote; `find_unique` is the NLI filter.
    """
    out = {}
    for name, rows in greedy.items():
        out[name] = score_greedy(rows, score(rows), threshold)
        if (ten := samples.get(name)) is not None:
            out[name] = out[name].join(score_sampled(ten, score(ten), threshold, find_unique))
    return out


def score_greedy(rows: pd.DataFrame, scores: np.ndarray, threshold: float) -> pd.DataFrame:
    """Return Vld and Avg of top-1 contexts, as ``vld`` and ``avg`` by ``action_id`` (section 4.2).

    Parameters
    ----------
    rows : DataFrame
        One row an action and moral variance.
    scores : ndarray of float, shape (rows,)
        A context is valid at or above the threshold. NaN where the text did not parse, which is not valid and has no score
        to average, or where the judges gave none, which is left out.
    """
    frame = pd.DataFrame({"action_id": rows["action_id"], "vld": _valid(rows, scores, threshold), "avg": scores})
    return frame.groupby("action_id").mean()


def score_sampled(rows: pd.DataFrame, scores: np.ndarray, threshold: float, find_unique: FindUnique) -> pd.DataFrame:
    """Return #Vld and #Unq.Vld out of a prompt's candidates, as ``n_vld`` and ``n_unq_vld`` by ``action_id`` (section 4.2).

    A valid context is unique if the paper's filter accepts it among the valid ones of its prompt. A context without a score
    counts as the scored ones of its prompt do; a prompt with fewer than half scored has no #Vld, one with any unscored no
    #Unq.Vld. Both are means over the two moral variances.
    """
    valid = rows.assign(valid=_valid(rows, scores, threshold))
    prompts = [prompt for _, prompt in valid.groupby(PROMPT, sort=False)]
    groups = [p.loc[p["valid"] == 1, "context"].tolist() for p in prompts]
    kept = find_unique(groups).kept
    keys = [p["action_id"].iloc[0] for p in prompts]
    count = [count_valid(p["valid"], p["context"].notna(), least=0.5) for p in prompts]
    unique = [sum(k) if p["valid"].notna().all() else np.nan for k, p in zip(kept, prompts, strict=True)]
    return pd.DataFrame({"action_id": keys, "n_vld": count, "n_unq_vld": unique}).groupby("action_id").mean()


def make_table2(
    per_action: dict[str, dict[str, pd.DataFrame]], train_rows: dict[str, int | None], draws: int, seed: int
) -> pd.DataFrame:
    """Return table 2: the automatic columns with their intervals, in the paper's order, its own beside them.

    `per_action`: prefix of the columns (who scored) to what `score_models` returned. `train_rows`: model to the number of
    rows that it has learnt from, None where it has not.
    """
    models = in_order(train_rows)
    table = pd.DataFrame({"model": models, "train_rows": pd.array([train_rows[name] for name in models], "Int64")})
    for prefix, by_model in per_action.items():
        table = table.merge(summarize(by_model, draws, seed, prefix), on="model")
    theirs = [column for column in TABLE2 if not column.startswith("paper_human")]
    return table.merge(TABLE2[theirs], on="model", how="left")


def summarize(
    per_action: dict[str, pd.DataFrame], draws: int, seed: int, prefix: str = "auto_", metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """Return one row a model (as `score_models` returns them) with its metrics and their intervals; null what it lacks."""
    rows = []
    for model, table in per_action.items():
        found = [bootstrap_mean(table[m].to_numpy() if m in table else np.array([]), draws, seed) for m in metrics]
        rows.append((model, *(number for numbers in found for number in numbers)))
    columns = [f"{prefix}{metric}{end}" for metric in metrics for end in ENDS]
    return pd.DataFrame(rows, columns=["model", *columns])


def paired_differences(
    per_action: dict[str, pd.DataFrame], pairs: list[tuple[str, str]], draws: int, seed: int
) -> pd.DataFrame:
    """Return later minus earlier, action by action, for pairs of models, with 95% intervals."""
    rows = []
    for earlier, later in pairs:
        for metric in METRICS:
            if metric in per_action[earlier] and metric in per_action[later]:
                both = per_action[later][metric] - per_action[earlier][metric]
                rows.append((earlier, later, metric, *bootstrap_mean(both.to_numpy(), draws, seed)))
    numbers = dict.fromkeys(["difference", "low", "high"], "float")
    return make_table(rows, {"earlier": "str", "later": "str", "metric": "str", **numbers})


def compare_with_gold(scores: pd.DataFrame, valid: np.ndarray, draws: int, seed: int) -> pd.DataFrame:
    """Return how far judges, and what is merged from them, agree with the gold.

    Parameters
    ----------
    scores : DataFrame of float, shape (rows, judges)
        Null where a judge gave none; such rows are left out for that judge and counted.

    Returns
    -------
    DataFrame
        ``judge scored unscored``, and ``accuracy`` (at .5) and ``roc_auc`` as `bootstrap_metrics` gives them.
    """
    rows = []
    for judge, given in scores.items():
        seen = given.notna().to_numpy()
        values = given[seen].to_numpy(dtype=float)
        found = bootstrap_metrics(valid[seen], values, 0.5, draws, seed, ("accuracy", "roc_auc"))
        rows.append({"judge": judge, "scored": int(seen.sum()), "unscored": int((~seen).sum()), **found})
    return pd.DataFrame(rows)


def bootstrap_mean(values: np.ndarray, draws: int, seed: int) -> tuple[float, float, float]:
    """Return the mean of what is not NaN, with its 95% percentile interval over resampled actions; NaN of nothing."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if not len(values):
        return (np.nan,) * 3
    index = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    return _with_interval(values.mean(), values[index].mean(axis=1))


def bootstrap_metrics(
    valid: np.ndarray, scores: np.ndarray, threshold: float, draws: int, seed: int, names: Sequence[str] = MEASURES
) -> dict[str, float]:
    """Return some of `MEASURES` with the ends of their 95% intervals over rows, ``_low`` and ``_high`` (table 5).

    A metric that the rows do not define (none, or one class only) is NaN. All resamples are measured at once, some
    hundred times as fast as by sklearn's functions in a loop (the tests compare the two).
    """
    rows, columns = len(valid), [f"{name}{end}" for name in names for end in ENDS]
    if not rows:
        return dict.fromkeys(columns, np.nan)
    rng = np.random.default_rng(seed)
    together = max(1, 1_000_000 // rows)  # resamples, so that memory stays within bounds
    points = _measure(valid, scores, threshold, np.ones((1, rows), dtype=int))
    sizes = [min(together, draws - start) for start in range(0, draws, together)]
    parts = [_measure(valid, scores, threshold, _draw(rng, size, rows)) for size in sizes]
    found = [_with_interval(points[name][0], np.concatenate([part[name] for part in parts])) for name in names]
    return dict(zip(columns, np.ravel(found).tolist(), strict=True))


def _with_interval(point: float, drawn: np.ndarray) -> tuple[float, float, float]:
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return float(point), float(low), float(high)


def _valid(rows: pd.DataFrame, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return 1 for valid, 0 for not valid or not parsed, NaN for a context without a score."""
    unscored = np.isnan(scores) & rows["context"].notna().to_numpy()
    return np.where(unscored, np.nan, scores >= threshold)


def _draw(rng: np.random.Generator, draws: int, rows: int) -> np.ndarray:
    """Return how often each row is in each bootstrap resample, shape (draws, rows)."""
    drawn = rng.integers(0, rows, (draws, rows)) + rows * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * rows).reshape(draws, rows)


def _measure(valid: np.ndarray, scores: np.ndarray, threshold: float, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the metrics of many resamples at once, each of shape (draws,), from how often each row is in them."""
    order = np.argsort(-scores, kind="stable")
    valid, scores, counts = valid[order].astype(bool), scores[order], counts[:, order]
    last = np.append(scores[1:] != scores[:-1], True)  # of rows with the same score
    yes, seen = np.cumsum(counts * valid, axis=1)[:, last], np.cumsum(counts, axis=1)[:, last]
    here = np.diff(yes, axis=1, prepend=0)
    no = seen - yes
    no_here = np.diff(no, axis=1, prepend=0)
    all_yes, all_no, called = yes[:, -1], no[:, -1], scores >= threshold
    with np.errstate(invalid="ignore"):  # 0 / 0 where a resample has one class only
        # Precision at each score times the recall won there; pairs of a valid and an invalid row in order, ties half.
        precision = np.where(seen > 0, yes / seen, 0)
        pr_auc = (here * precision).sum(axis=1) / all_yes
        roc_auc = (here * (all_no[:, None] - no + no_here / 2)).sum(axis=1) / (all_yes * all_no)
        f1 = 2 * (counts @ (valid & called)) / (all_yes + counts @ called)  # without a valid row there is no recall
    return {
        "accuracy": counts @ (valid == called) / counts.sum(axis=1),
        "f1": np.where(all_yes > 0, f1, np.nan),
        "pr_auc": np.where(all_no > 0, pr_auc, np.nan),
        "roc_auc": roc_auc,
    }


def measure_critic(parts: dict[str, pd.DataFrame], threshold: float, draws: int, seed: int) -> pd.DataFrame:
    """Measure a critic on parts of the gold (``source valid score``), over all rows and by source (table 5).

    Sources of a part with valid rows only are one, ``valid only``, and so are those with none, ``invalid only``.

    Returns
    -------
    DataFrame
        ``part source rows share_valid majority_accuracy`` and what `bootstrap_metrics` gives.
    """
    records = []
    for name, rows in parts.items():
        shares = rows.groupby("source")["valid"].transform("mean")
        sources = rows["source"].mask(shares.eq(1), "valid only").mask(shares.eq(0), "invalid only")
        for source, group in [("all", rows), *rows.groupby(sources)]:
            truth = group["valid"].to_numpy()
            share = {"share_valid": truth.mean(), "majority_accuracy": max(truth.mean(), 1 - truth.mean())}
            found = bootstrap_metrics(truth, group["score"].to_numpy(), threshold, draws, seed)
            records.append({"part": name, "source": source, "rows": len(group), **share, **found})
    return pd.DataFrame(records)


def measure_ranking(rows: pd.DataFrame, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """Measure how critics rank what students wrote (the rest of table 5): over all rows, by student, and by recipe.

    A filter chooses among the candidates of one student, mostly among those of one prompt, and keeps the upper part. So the
    AUC is taken within each student (a source of a recipe) and within each prompt, of which one with valid rows only, or none,
    has no AUC, and then averaged, each counting the same.

    Parameters
    ----------
    rows : DataFrame
        ``recipe source action_id moral_variance valid``.
    scores : dict of ndarray of float, each of shape (rows,)
        By critic.

    Returns
    -------
    DataFrame
        ``critic by rows share_valid``; ``auc_student`` and ``auc_prompt``, each before how many are in the mean, ``students`` and
        ``prompts``; ``top_tenth`` and ``top_fifth``, the shares that are valid of the tenth and the fifth with the highest scores.
    """
    records = []
    for critic, given in scores.items():
        scored = rows.assign(score=given)
        students = sorted(
            scored.groupby("source"), key=lambda part: ("final" in part[0], part[0])
        )  # the rounds in order
        recipes = scored.groupby("recipe", sort=False) if scored["recipe"].any() else []
        for name, group in [("all", scored), *students, *recipes]:
            best = group.sort_values("score", ascending=False, kind="stable")["valid"]
            student, prompt = _auc_within(group, ["recipe", "source"]), _auc_within(group, PROMPT)
            records.append({
                "critic": critic, "by": name, "rows": len(group), "share_valid": best.mean(),
                "auc_student": student.mean(), "students": len(student),
                "auc_prompt": prompt.mean(), "prompts": len(prompt),
                "top_tenth": best.head(max(1, len(best) // 10)).mean(), "top_fifth": best.head(max(1, len(best) // 5)).mean(),
            })  # fmt: skip
    return pd.DataFrame(records)


def _auc_within(rows: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Return the ROC AUC of each group that has valid and invalid rows: of their pairs, the share in order (ties half)."""
    ranked = rows.assign(rank=rows.groupby(keys)["score"].rank() * rows["valid"]).groupby(keys)
    valid, size = ranked["valid"].sum(), ranked.size()
    above = ranked["rank"].sum() - valid * (valid + 1) / 2
    return (above / (valid * (size - valid)))[(valid > 0) & (valid < size)]
