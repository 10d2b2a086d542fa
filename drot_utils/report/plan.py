"""What a run will take before it starts: candidates, tokens, pairs, GPU hours, requests and their cost."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from drot_utils.data.corpora import read_actions, sample_actions
from drot_utils.data.gold import read_gold
from drot_utils.llm.cache import Cache, cache_file
from drot_utils.llm.costs import forecast, read_prices
from drot_utils.method.critic import split_gold
from drot_utils.method.judges import judge_prompt, judge_request
from drot_utils.method.teacher import baseline_request, choose_requests, list_requests, make_request
from drot_utils.study.errors import DrotError
from drot_utils.study.params import Endpoint, ModelRef, Params
from drot_utils.study.paths import Run, resolve

#: Parameters of the models that profiles name (from their model cards); embeddings are not counted for encoders.
SIZES = {
    "google/flan-t5-xl": 2.85e9,
    "smollm2-135m-instruct": 1.35e8,
    "models/deberta-v3-large": 3.04e8,
    "models/roberta-large-wanli": 3.03e8,
    "all-minilm-l6-v2": 1.06e7,
    "unitary/toxic-bert": 8.6e7,
}
#: What the paper reports, and what it leaves to be assumed.
KEPT = {"seed": 85 / 240, "round_1": 434 / 800, "round_2": 466 / 800, "dataset": 578 / 2865}
TOKENS = {"prompt": 20, "target": 40, "pair": 60}
TRAIN_HOURS, TRAIN_GPUS, TRAIN_ROWS, TRAIN_EPOCHS = 28.0, 8, 434_000, 3


@dataclass(frozen=True)
class Row:
    """One stage's work: what is counted, how much of it, tokens through the model, and operations."""

    stage: str
    unit: str
    count: float
    tokens: float
    operations: float


def plan_run(params: Params, train_actions: int = 234_000) -> list[Row]:
    """Return the work of each stage.

    Parameters
    ----------
    params : Params
    train_actions : int
        Actions of the corpus's training split, where ``final_actions`` is null.

    Raises
    ------
    DrotError
        For a model whose size is not known.
    """
    corpus, n = params.corpus, params.generation.candidates
    student, critic, nli = _size(params.student.base), _size(params.critic.base), _size(params.nli.base)
    rounds = corpus.round_actions
    rest = corpus.final_actions or max(0, train_actions - corpus.seed_actions - sum(rounds))
    test = corpus.test_actions or TEST_ACTIONS
    seeds = corpus.seed_actions * 2 * params.teacher.contexts_per_variance
    written = {"round 1": rounds[0] * 2 * n, "round 2": rounds[1] * 2 * n, "data set": rest * 2 * n}
    kept = {"Distill_base": seeds * KEPT["seed"]}
    kept["SelfDistill_1"] = written["round 1"] * KEPT["round_1"]
    kept["SelfDistill_2"] = written["round 2"] * KEPT["round_2"]
    scored = seeds + sum(written.values())
    kept["Distill_final"] = (sum(kept.values()) + written["data set"]) * KEPT["dataset"]
    read, write, pair = TOKENS["prompt"], TOKENS["target"], TOKENS["pair"]
    rows = [Row("teacher", "requests", corpus.seed_actions * 2, seeds * (read + write), 0)]
    trained = params.student
    epochs = (trained.epochs, trained.round_epochs, trained.round_epochs, trained.final_epochs)
    for (name, count), times in zip(kept.items(), epochs, strict=True):
        tokens = count * times * (read + write)
        rows.append(Row(f"train {name}", "rows", count, tokens, 6 * student * tokens))
    for name, count in written.items():
        tokens = count * (write + read / n)  # a prompt is read once for its candidates
        rows.append(Row(f"write: {name}", "candidates", count, tokens, 2 * student * tokens))
    tokens = test * 2 * (1 + params.evaluation.candidates) * 5 * write
    rows.append(Row("write: evaluation, 5 models", "candidates", tokens / write, tokens, 2 * student * tokens))
    pairs = sum(written.values()) * (n - 1) / 2
    rows.append(Row("NLI filter", "pairs (at most)", pairs, pairs * pair, 2 * nli * pairs * pair))
    rows.append(Row("critic", "contexts", scored, scored * pair, 2 * critic * scored * pair))
    return rows


def paper_rate() -> float:
    """Return operations a second and GPU that the paper's fine-tuning implies: 28 hours on 8 A6000 for SelfDistill_1."""
    tokens = TRAIN_ROWS * TRAIN_EPOCHS * (TOKENS["prompt"] + TOKENS["target"])
    return 6 * SIZES["google/flan-t5-xl"] * tokens / (TRAIN_HOURS * 3600 * TRAIN_GPUS)


def to_table(rows: list[Row], rate: float) -> pd.DataFrame:
    """Return the plan as a table with GPU hours at `rate` operations a second, and their sum."""
    table = pd.DataFrame([vars(row) for row in rows])
    table["gpu_hours"] = table.pop("operations") / rate / 3600
    sums = table[["tokens", "gpu_hours"]].sum()
    return pd.concat([table, pd.DataFrame([{"stage": "all", "unit": "", **sums}])], ignore_index=True)


def _size(ref: ModelRef) -> float:
    if ref.source == "random":
        return 1e5
    if ref.name not in SIZES:
        where, todo = "drot_utils/report/plan.py", "add it to SIZES there"
        raise DrotError(f"the size of {ref.name} is not known", where=where, todo=todo)
    return SIZES[ref.name]


def say_plan(params: Params, tflops: float | None = None) -> str:
    """Return the plan of a run as text: a table, what it assumes, and the requests to endpoints.

    Parameters
    ----------
    tflops : float, optional
        Effective TFLOP/s of one device; by default what the paper's hours imply.
    """
    rate = tflops * 1e12 if tflops else paper_rate()
    table = to_table(plan_run(params), rate)
    for column, form in (("count", "{:,.0f}"), ("tokens", "{:,.0f}"), ("gpu_hours", "{:,.1f}")):
        table[column] = ["" if pd.isna(value) else form.format(value) for value in table[column]]
    sides = ["left", "left", "right", "right", "right"]
    source = "as given" if tflops else "as the paper's 28 hours on 8 A6000 for 434K rows and 3 epochs imply"
    kept = {name: round(share, 2) for name, share in KEPT.items()}
    return "\n".join([
        table.to_markdown(index=False, disable_numparse=True, colalign=sides),
        f"\nAssumed: {TOKENS} tokens; shares kept as in the paper ({kept});",
        f"2 operations a parameter and token forward, 6 in training; {rate / 1e12:.2f} TFLOP/s a GPU, {source}.",
        "Writing one token at a time reaches that rate only in large batches, and ablations are not counted.\n",
        say_requests(params),
    ])  # fmt: skip


TEST_ACTIONS = 6_000  # section 4.1
STAND_IN, STAND_IN_CONTEXT = "Setting a fire", "at a campsite"  # the paper's first example


def plan_requests(params: Params) -> pd.DataFrame:
    """Return what the requests to endpoints will take; nothing is asked.

    Where the corpus or the gold is not there yet, one action and context stand for all.

    Returns
    -------
    DataFrame
        A row a notebook and model: ``notebook model`` and the columns of `forecast.Forecast`.
    """
    actions, note = _list_actions(params)
    file = cache_file(Run(params.profile))
    cache = Cache(file) if file.exists() else None
    rows = []
    for notebook, some in actions.items():
        bodies, requests = list_requests(params, some), choose_requests(params)
        found = forecast(bodies, params.teacher.endpoint, requests, cache)
        rows.append({"notebook": notebook, "model": params.teacher.endpoint.model, **vars(found)})
    for notebook, endpoint, bodies in _list_others(params, actions["07 evaluation"]):
        found = forecast(bodies, endpoint, params.requests, cache)
        rows.append({"notebook": notebook, "model": endpoint.model, **vars(found)})
    return pd.DataFrame(rows).assign(how=lambda table: table["how"] + note)


def say_requests(params: Params) -> str:
    """Return the requests to endpoints as text: a table, what it rests on, and what recorded responses change."""
    table = plan_requests(params)
    how = "\n".join(table.pop("how").unique())
    for column in table.columns[2:]:
        form = "{:,.2f}" if column in ("cost_usd", "minutes") else "{:,.0f}"
        table[column] = ["unknown" if pd.isna(value) else form.format(value) for value in table[column]]
    sides = ["left", "left"] + ["right"] * (len(table.columns) - 2)
    table = table.to_markdown(index=False, disable_numparse=True, colalign=sides)
    lines = ["Requests to endpoints:", "", table, "", f"{how}."]
    if params.teacher.recorded:
        lines.append(f"Nobody is asked for what {params.teacher.recorded} has: its responses fill the cache.")
    if any(judge.endpoint for judge in params.judges.panel) and "judges" in (
        params.judges.filter,
        params.evaluation.critic,
    ):
        lines.append(
            "Not in the table: what judges are asked instead of the critic, a request for each context and judge."
        )
    lines += warn_refused(params)
    budget = params.requests.budget_usd
    lines.append(
        "No budget is set."
        if budget is None
        else f"The run begins nothing that is forecast to cost more than ${budget:,.2f} in all, and stops when that is spent."
    )
    return "\n".join(lines)


def warn_refused(params: Params) -> list[str]:
    """Return a sentence for each model of an endpoint that is known to refuse settings that it would be sent."""
    prices, asked = read_prices(params.requests.prices), {}
    if not params.teacher.recorded:
        request = make_request(params, STAND_IN, 1)
        asked["teacher"] = (params.teacher.endpoint, request)
    for baseline in params.evaluation.baselines:
        if baseline.endpoint:
            asked[baseline.name] = (baseline.endpoint, baseline_request(params, baseline.endpoint, STAND_IN, 1))
    for judge in params.judges.panel:
        if judge.endpoint:
            asked[judge.name] = (judge.endpoint, judge_request(judge.endpoint, STAND_IN, params.seed))
    refused = {name: (endpoint, prices.list_refused(body, endpoint.names)) for name, (endpoint, body) in asked.items()}
    return [
        f"Warning: {endpoint.model} ({name}) is known to refuse {', '.join(settings)}: set them to null in `teacher`, or in `names` of "
        "the endpoint. It thinks before it answers, which takes tokens of `max_tokens`, too."
        for name, (endpoint, settings) in refused.items()
        if settings
    ]


def _list_actions(params: Params) -> tuple[dict[str, list[str]], str]:
    corpus = params.corpus
    if resolve(corpus.actions).exists():
        parts = sample_actions(read_actions(corpus.actions), corpus, params.seed)
        names = {"01 seed generation": "seed", "07 evaluation": "test"}
        return {notebook: list(parts[part]["action"]) for notebook, part in names.items()}, ""
    counts = {"01 seed generation": corpus.seed_actions, "07 evaluation": corpus.test_actions or TEST_ACTIONS}
    actions = {name: [f"{STAND_IN} {number}" for number in range(count)] for name, count in counts.items()}
    return actions, f"; {corpus.actions} is not there yet: {STAND_IN!r} stands for its actions"


def _list_others(params: Params, test: list[str]) -> Iterator[tuple[str, Endpoint, list[dict[str, Any]]]]:
    chosen = test[: params.evaluation.baseline_actions or len(test)]
    for baseline in params.evaluation.baselines:
        if baseline.endpoint:
            bodies = [baseline_request(params, baseline.endpoint, a, v) for a in chosen for v in (1, -1)]
            yield "07 evaluation", baseline.endpoint, bodies
    items = _list_judged(params) if any(judge.endpoint for judge in params.judges.panel) else []
    for judge in params.judges.panel:
        if judge.endpoint:
            bodies = [judge_request(judge.endpoint, judge_prompt(*item), params.seed) for item in items]
            yield "12 judges", judge.endpoint, bodies


def _list_judged(params: Params) -> list[tuple[str, int, str]]:
    """Return items as many and as long as those that notebook 12 shows to the judges."""
    sample = params.judges.sample
    if not all(resolve(path).exists() for path in (params.corpus.actions, *params.critic.gold)):
        return [(STAND_IN, 1, f"{STAND_IN_CONTEXT} {number}") for number in range(sample or 0)]
    gold = split_gold(read_gold(params.critic.gold, read_actions(params.corpus.actions)), params.critic, params.seed)
    held_out = gold[gold["part"].isin(["dev", "test"])]
    return list(held_out[["action", "moral_variance", "context"]].head(sample).itertuples(index=False, name=None))
