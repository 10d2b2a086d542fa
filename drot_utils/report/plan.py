"""What a run will take before it starts: candidates, tokens, pairs, GPU hours, memory, requests and their cost."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from drot_utils.data.corpora import read_actions, read_recorded, sample_actions
from drot_utils.data.gold import read_gold
from drot_utils.engine.batches import RESERVE, Memory, count_memory
from drot_utils.llm.accounts import forecast, read_prices
from drot_utils.llm.cache import Cache, request_key
from drot_utils.method.critic import split_gold
from drot_utils.method.judges import ITEM, choose_shown, judge_prompt, judge_request
from drot_utils.method.teacher import baseline_request, choose_requests, list_requests, make_request
from drot_utils.study.errors import DataError
from drot_utils.study.forecast import DEMO, PAPER, SIZES, TEST_ACTIONS, list_work
from drot_utils.study.graph import Stage, list_stages
from drot_utils.study.params import Adapter, Endpoint, Params, Student
from drot_utils.study.paths import Run, resolve

#: What is planned for where the profile has no adapter.
ADAPTER = Adapter(kind="lora", rank=32, alpha=64.0, dropout=0.0, target="all-linear")
LOW_RANK = 8  # tried where the other settings do not fit
#: Operations a second and GPU that the paper's fine-tuning of SelfDistill_1 implies: 434K rows, 3 epochs, 28 hours, 8 GPUs.
PAPER_RATE = 6 * SIZES["google/flan-t5-xl"] * 434_000 * 3 * (PAPER.prompt + PAPER.target) / (28 * 3600 * 8)
STAND_IN, STAND_IN_CONTEXT = "Setting a fire", "at a campsite"  # the paper's first example
MEMORY = dict.fromkeys(("weights", "gradients", "moments", "activations", "in all"), 1)
DECIMALS = {"gpu_hours": 1, "cost_usd": 2, "minutes": 1, **MEMORY}  # as shown; none in other columns


def plan_stages(params: Params, stages: list[Stage]) -> pd.DataFrame:
    """Return the minutes of each stage, from its seconds (see `foresee`), and a row for each work of it; and their sum."""
    works, rows = list_work(params, stages), []
    for stage in stages:
        own = [(f"{w.what}, {w.unit}", w.count, w.tokens) for w in works if w.stage == stage.name] or [("", None, None)]
        rows += [(stage.name, *own[0], stage.seconds / 60), *(("", *work, None) for work in own[1:])]
    table = pd.DataFrame(rows, columns=["stage", "work", "count", "tokens", "minutes"])
    table.loc[len(table)] = {"stage": "all", "work": "", **table[["tokens", "minutes"]].sum()}
    return table


def plan_run(params: Params, rate: float = PAPER_RATE) -> pd.DataFrame:
    """Return the work of each stage: what is counted, how much of it, tokens through the model, GPU hours; and their sum.

    `rate` is in operations a second of one device. A model whose size is not known is a `DrotError`.
    """
    seeds, assumed = params.corpus.seed_actions * 2, DEMO if params.teacher.recorded else PAPER
    tokens = seeds * params.teacher.contexts_per_variance * (assumed.prompt + assumed.target)
    rows = [("teacher", "requests", seeds, tokens, 0.0)]
    works = list_work(params, list_stages(params, ablations=False), assumed)
    rows += [(work.what, work.unit, work.count, work.tokens, work.operations) for work in works]
    table = pd.DataFrame(rows, columns=["stage", "unit", "count", "tokens", "operations"])
    table = table.groupby(["stage", "unit"], sort=False, as_index=False).sum()
    table["gpu_hours"] = table.pop("operations") / rate / 3600
    table.loc[len(table)] = {"stage": "all", "unit": "", **table[["tokens", "gpu_hours"]].sum()}
    return table


def say_plan(
    params: Params, tflops: float | None = None, gpu_gib: float | None = None, stages: list[Stage] | None = None
) -> str:
    """Return the plan of a run as text.

    Minutes of `stages` on this machine, where their seconds are known and the teacher's answers are recorded; else GPU hours, at
    `tflops` of one device, or at what the paper's hours imply. With `gpu_gib`, the size of a GPU's memory, it says whether the
    students' training fits.
    """
    here = stages and params.teacher.recorded and not tflops
    table = plan_stages(params, stages) if here else plan_run(params, tflops * 1e12 if tflops else PAPER_RATE)
    return "\n".join([
        _to_markdown(table), "", _say_assumed(params, tflops, here), "",
        *([say_memory(params, gpu_gib), ""] if gpu_gib else []),
        say_requests(params),
    ])  # fmt: skip


def _say_assumed(params: Params, tflops: float | None, here: bool) -> str:
    whose, of = ("demo", DEMO) if params.teacher.recorded else ("paper (the minutes above: as in the demo)", PAPER)
    first, second = of.rounds
    text = (
        f"Assumed: {of.prompt} tokens a prompt, {of.target} a candidate, {of.pair} a pair; kept as in the {whose}, {of.seed:.2f} of the "
        f"seeds, {first:.2f} and {second:.2f} of the rounds, {of.dataset:.2f} of all for the data set."
    )
    if here:
        return text
    source = "as given" if tflops else "as the paper's 28 hours on 8 A6000 for 434K rows and 3 epochs imply"
    return (
        f"{text}\n2 operations a parameter and token forward, 6 in training (4 where an adapter is trained); "
        f"{tflops or PAPER_RATE / 1e12:.2f} TFLOP/s a GPU, {source}.\n"
        "Writing one token at a time reaches that rate only in large batches, and ablations are not counted."
    )


def _to_markdown(table: pd.DataFrame, unknown: str = "") -> str:
    """Return a table with two columns of names and then numbers, of which those not known are written as `unknown`."""
    for column in table.columns[2:]:
        form = f"{{:,.{DECIMALS.get(column, 0)}f}}"
        table[column] = [unknown if pd.isna(value) else form.format(value) for value in table[column]]
    sides = ["left", "left"] + ["right"] * (len(table.columns) - 2)
    return table.to_markdown(index=False, disable_numparse=True, colalign=sides)


def plan_memory(params: Params, gpu_gib: float) -> tuple[pd.DataFrame, Student | None]:
    """Return what a student's training takes of one GPU, with and without adapter, and settings that fit it.

    The settings are the profile's where those fit, else the first that do: with gradient checkpointing, with smaller batches
    (accumulated to the same steps; their activations are taken to be so much smaller), with an adapter instead of all
    weights, with a lower rank of that. None: none of them fits. A model whose configuration is not at hand, or that cannot
    take the adapter, is a `ModelError`.
    """
    own, compute = params.student, params.compute
    dtype = torch.float32 if compute.dtype == "float32" else torch.bfloat16
    rows, found = [], []

    def count(adapter: Adapter | None, search: bool = True) -> None:
        parallel = compute.parallel.model_copy(update={"fsdp": compute.parallel.fsdp and not adapter})
        changed = own.model_copy(update={"adapter": adapter})
        for again, memory in zip((False, True), count_memory(changed, parallel, dtype), strict=True):
            settings = changed.model_copy(update={"gradient_checkpointing": again})
            what = f"adapter of rank {adapter.rank}" if adapter else "all weights"
            what += f", shared by {parallel.processes} GPUs" * parallel.fsdp + ", gradient checkpointing" * again
            what += " (this profile)" * (settings == own)
            rows.append((what, "yes" if memory.total <= gpu_gib else "no", *vars(memory).values(), memory.total))
            if not search or (own.gradient_checkpointing and not again):
                continue
            for parts in range(1, own.batch_size + 1 if again else 2):
                less = memory.activations * (1 - 1 / parts)
                if own.batch_size % parts == 0 and memory.total - less <= gpu_gib:
                    steps = {"batch_size": own.batch_size // parts, "accumulate": own.accumulate * parts}
                    found.append(settings.model_copy(update=steps))
                    break

    adapter = own.adapter or ADAPTER
    count(None, search=not own.adapter)
    count(adapter)
    if not found and adapter.rank > LOW_RANK:
        count(adapter.model_copy(update={"rank": LOW_RANK, "alpha": adapter.alpha * LOW_RANK / adapter.rank}))
    columns = ["trained", f"fits {gpu_gib:g} GiB", *Memory.__dataclass_fields__, "in all"]
    return pd.DataFrame(rows, columns=columns), found[0] if found else None


def say_memory(params: Params, gpu_gib: float) -> str:
    """Return as text what a student's training takes of one GPU, whether it fits, and what would make it fit."""
    own, base = params.student, params.student.base.name
    table, found = plan_memory(params, gpu_gib)
    weights, smallest = table["weights"].min(), table["in all"].min()
    if found == own:
        verdict = f"The training of {base} by this profile fits on {gpu_gib:g} GiB."
    elif found is None:
        verdict = (
            f"The training of {base} does not fit on {gpu_gib:g} GiB, nor do other settings make it fit: the least in the table "
            f"takes {smallest:.1f} GiB, {weights:.1f} of them for weights. Take a smaller base or shorter targets "
            "(`student.max_target_length`), or share all weights among several GPUs (`compute.parallel`, with `fsdp: true`)."
        )
    else:
        changes = {key: value for key, value in found.model_dump().items() if value != own.model_dump()[key]}
        shared = " and `compute.parallel.fsdp: false`" if found.adapter and params.compute.parallel.fsdp else ""
        names = ", ".join(
            f"`student.{key}: {json.dumps(value).replace(chr(34), '')}`" for key, value in changes.items()
        )
        verdict = f"The training of {base} does not fit on {gpu_gib:g} GiB. It does with {names}{shared}."
    return "\n".join([
        f"Memory of a GPU while {base} is trained, in GiB:", "", _to_markdown(table), "", verdict,
        f"Counted, not measured, for the longest batch that may come ({own.batch_size} targets of {own.max_target_length} tokens "
        f"behind prompts of {own.max_prompt_length}), with {RESERVE:g} GiB for CUDA, which is assumed. A base is loaded in float32 "
        "into main memory first.",
    ])  # fmt: skip


def plan_requests(params: Params) -> pd.DataFrame:
    """Return what the requests to endpoints will take: ``notebook model`` and the columns of `accounts.Forecast`.

    Nothing is asked. Where the corpus or the gold is not there yet, one action and context stand for all.
    """
    seed, test, note = _list_actions(params)
    items = _list_judged(params) if any(judge.endpoint for judge in params.judges.panel) else []
    file = Run(params.profile).answers
    cache = Cache(file) if file.exists() else None
    rows, known = [], _list_recorded(params)
    for notebook, _, endpoint, bodies in _list_asked(params, seed, test, items):
        settings = choose_requests(params) if endpoint is params.teacher.endpoint else params.requests
        unknown = [body for body in bodies if not known or known.get(request_key(body), 0) < body.get("n", 1)]
        found = replace(forecast(unknown, endpoint, settings, cache), requests=len(bodies))
        rows.append({"notebook": notebook, "model": endpoint.model, **vars(found), "how": found.how + note})
    return pd.DataFrame(rows)


def _list_recorded(params: Params) -> dict[str, int]:
    """Return how many choices are recorded, by the key of the teacher's request."""
    if not params.teacher.recorded:
        return {}
    recorded = read_recorded(params.teacher.recorded, read_actions(params.corpus.actions))
    choices = recorded.groupby(["action", "moral_variance"]).size()
    return {request_key(make_request(params, action, int(way))): int(n) for (action, way), n in choices.items()}


def require_builtin(params: Params) -> None:
    """Raise a `DataError` where a file that the parameters name in ``data/``, which comes with the study, is not there."""
    named = re.findall(r'"(data/(?!external/)[^"]+)"', params.model_dump_json())
    missing = sorted({path for path in named if not resolve(path).exists()})
    if missing:
        todo = "check the names in the parameter file, or get the file back from the repository"
        raise DataError("built-in data that is not there", where=", ".join(missing), todo=todo)


def say_requests(params: Params) -> str:
    """Return the requests to endpoints as text: a table, what it rests on, and what recorded responses change."""
    table = plan_requests(params)
    how, judges = table.pop("how")[table["to_ask"] > 0].unique(), params.judges
    lines = ["Requests to endpoints:", "", _to_markdown(table, unknown="unknown"), "", *(f"{words}." for words in how)]
    if params.teacher.recorded:
        lines.append(f"Nobody is asked for what {params.teacher.recorded} has: its responses fill the cache.")
    if any(judge.endpoint for judge in judges.panel) and "judges" in (judges.filter, params.evaluation.critic):
        lines.append("Not in the table: requests to judges in place of the critic, one for each context and judge.")
    limit, budget = "No budget is set.", params.requests.budget_usd
    if budget is not None:
        limit = f"The run begins nothing that is forecast to cost more than ${budget:,.2f} in all, and stops when that is spent."
    return "\n".join([*lines, *warn_refused(params), limit])


def warn_refused(params: Params) -> list[str]:
    """Return a sentence for each model of an endpoint that is known to refuse settings that it would be sent."""
    prices, warnings = read_prices(params.requests.prices), {}
    for _, name, endpoint, bodies in _list_asked(params, [STAND_IN], [STAND_IN], [(STAND_IN, 1, STAND_IN_CONTEXT)]):
        refused = prices.list_refused(bodies[0], endpoint.names)
        if refused and not (endpoint is params.teacher.endpoint and params.teacher.recorded):
            warnings[name] = (
                f"Warning: {endpoint.model} ({name}) is known to refuse {', '.join(refused)}: set them to null in `teacher`, "
                "or in `names` of the endpoint. It thinks before it answers, which takes tokens of `max_tokens`, too."
            )
    return list(warnings.values())


def _list_asked(
    params: Params, seed: list[str], test: list[str], items: list[tuple[str, int, str]]
) -> Iterator[tuple[str, str, Endpoint, list[dict[str, Any]]]]:
    """Yield who is asked what: the notebook, the name, the endpoint, and the requests."""
    for notebook, actions, n in (("01 seed generation", seed, None), ("07 evaluation", test, 1)):
        yield notebook, "teacher", params.teacher.endpoint, list_requests(params, actions, n)
    prompts = [(a, v) for a in test[: params.evaluation.baseline_actions or len(test)] for v in (1, -1)]
    for baseline in params.evaluation.baselines:
        if end := baseline.endpoint:
            yield "07 evaluation", baseline.name, end, [baseline_request(params, end, a, v) for a, v in prompts]
    for judge in params.judges.panel:
        if end := judge.endpoint:
            bodies = [judge_request(end, judge_prompt(*item), params.seed) for item in items]
            yield "12 judges", judge.name, end, bodies


def _list_actions(params: Params) -> tuple[list[str], list[str], str]:
    """Return the actions for seeds and for the test, and a note where they are made up."""
    corpus = params.corpus
    if resolve(corpus.actions).exists():
        parts = sample_actions(read_actions(corpus.actions), corpus, params.seed)
        return list(parts["seed"]["action"]), list(parts["test"]["action"]), ""
    counts = (corpus.seed_actions, corpus.test_actions or TEST_ACTIONS)
    made_up = ([f"{STAND_IN} {number}" for number in range(count)] for count in counts)
    return *made_up, f"; {corpus.actions} is not there yet: {STAND_IN!r} stands for its actions"


def _list_judged(params: Params) -> list[tuple[str, int, str]]:
    """Return the items that notebook 12 shows to the judges, or as many where the gold is not there yet."""
    if not all(resolve(path).exists() for path in (params.corpus.actions, *params.critic.gold)):
        return [(STAND_IN, 1, f"{STAND_IN_CONTEXT} {number}") for number in range(params.judges.sample or 0)]
    gold = split_gold(read_gold(params.critic.gold, read_actions(params.corpus.actions)), params.critic, params.seed)
    return list(choose_shown(gold, params)[ITEM].itertuples(index=False, name=None))
