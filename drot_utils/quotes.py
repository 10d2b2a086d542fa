"""What a study's requests to endpoints will take before the first is sent: the teacher's, the baselines', the judges'."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from drot_utils.baselines import baseline_request
from drot_utils.cache import Cache, cache_file
from drot_utils.corpora import read_actions
from drot_utils.critic import split_gold
from drot_utils.distill import sample_actions
from drot_utils.forecast import forecast
from drot_utils.gold import read_gold
from drot_utils.judges import judge_prompt, judge_request
from drot_utils.params import Params
from drot_utils.paths import Run, resolve
from drot_utils.prices import read_prices
from drot_utils.settings import Endpoint
from drot_utils.teacher import make_request, plan_teacher

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
        found = plan_teacher(some, params.teacher, params.requests, cache, params.seed)
        rows.append({"notebook": notebook, "model": params.teacher.endpoint.model, **vars(found)})
    prices, refresh = read_prices(params.requests.prices), params.requests.cache == "refresh"
    for notebook, endpoint, bodies in _list_others(params, actions["07 evaluation"]):
        found = forecast(bodies, endpoint, prices, cache, refresh=refresh)
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
    lines = [
        "Requests to endpoints:",
        "",
        table.to_markdown(index=False, disable_numparse=True, colalign=sides),
        "",
        f"{how}.",
    ]
    if params.teacher.recorded:
        lines.append(f"Nobody is asked for what {params.teacher.recorded} has: its responses fill the cache.")
    if any(judge.endpoint for judge in params.judges.panel) and "judges" in (
        params.judges.filter,
        params.evaluation.critic,
    ):
        lines.append(
            "What the judges are asked in the critic's place, a request a context and judge, is not in the table."
        )
    lines += warn_refused(params)
    budget = params.requests.budget_usd
    lines.append(
        "No budget is set."
        if budget is None
        else f"The run stops before it would cost more than ${budget:,.2f}."
    )
    return "\n".join(lines)


def warn_refused(params: Params) -> list[str]:
    """Return a sentence for each model of an endpoint that is known to refuse settings that it would be sent."""
    prices, asked = read_prices(params.requests.prices), {}
    if not params.teacher.recorded:
        request = make_request(STAND_IN, 1, params.teacher, params.seed)
        asked["teacher"] = (params.teacher.endpoint, request)
    for baseline in params.evaluation.baselines:
        if baseline.endpoint:
            asked[baseline.name] = (
                baseline.endpoint,
                baseline_request(params, baseline.endpoint, STAND_IN, 1),
            )
    for judge in params.judges.panel:
        if judge.endpoint:
            asked[judge.name] = (judge.endpoint, judge_request(judge.endpoint, STAND_IN, params.seed))
    refused = {
        name: (endpoint, prices.list_refused(body, endpoint.names))
        for name, (endpoint, body) in asked.items()
    }
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
        return {
            "01 seed generation": list(parts["seed"]["action"]),
            "07 evaluation": list(parts["test"]["action"]),
        }, ""
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
            prompts = [judge_prompt(*item) for item in items]
            yield (
                "02 critic",
                judge.endpoint,
                [judge_request(judge.endpoint, p, params.seed) for p in prompts],
            )


def _list_judged(params: Params) -> list[tuple[str, int, str]]:
    """Return items as many and as long as those that notebook 2 shows to the judges."""
    sample = params.judges.sample
    if not all(resolve(path).exists() for path in (params.corpus.actions, *params.critic.gold)):
        return [(STAND_IN, 1, f"{STAND_IN_CONTEXT} {number}") for number in range(sample or 0)]
    gold = split_gold(
        read_gold(params.critic.gold, read_actions(params.corpus.actions)), params.critic, params.seed
    )
    held_out = gold[gold["part"].isin(["dev", "test"])]
    return list(
        held_out[["action", "moral_variance", "context"]].head(sample).itertuples(index=False, name=None)
    )
