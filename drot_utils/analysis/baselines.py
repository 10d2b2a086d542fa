"""Zero-shot baselines for table 3: anybody who answers the teacher's prompt, without having learnt it (section 5.1)."""

import pandas as pd

from drot_utils.data.corpora import read_recorded
from drot_utils.data.paper import TABLE3
from drot_utils.data.parsing import parse_teacher
from drot_utils.data.table import PROMPT, empty_columns
from drot_utils.engine.writer import Written
from drot_utils.llm.cache import Cache
from drot_utils.llm.client import ask_all
from drot_utils.llm.replies import read_whole
from drot_utils.method.prompts import teacher_response
from drot_utils.method.student import list_prompts, to_rows, write_contexts
from drot_utils.method.teacher import baseline_request
from drot_utils.study.errors import DataError, ModelError
from drot_utils.study.params import Respondent
from drot_utils.study.record import Study


def write_baseline(
    study: Study, baseline: Respondent, actions: pd.DataFrame, test: pd.DataFrame, count: int
) -> pd.DataFrame:
    """Let a baseline write its best context for the first `count` test actions, in both directions.

    A local model writes greedily, an endpoint at temperature 0; of recorded responses the first choice counts. What the
    student's base model has written for all test actions is not written again.

    Returns
    -------
    DataFrame
        Columns of `table.CANDIDATES`, two rows an action, ``source`` the baseline's name; flags and scores null.

    Raises
    ------
    DataError
        Recorded responses that lack one of the prompts, or as `corpora.read_recorded`.
    ModelError
        A model that cannot be loaded.
    """
    chosen = test.head(count)
    if baseline.recorded:
        return _look_up(baseline, actions, chosen)
    if baseline.endpoint:
        return _ask_endpoint(study, baseline, chosen)
    try:
        if baseline.model == study.params.student.base:
            rows = write_contexts(study, "base", test, "test_greedy", 1, "greedy")
            rows = rows[rows["action_id"].isin(chosen["action_id"])].reset_index(drop=True)
            return rows.assign(source=baseline.name)
        return write_contexts(study, baseline.name, chosen, "test_greedy", 1, "greedy", baseline.model)
    except ModelError as error:
        where = f"evaluation.baselines, {baseline.name!r}: {error.where}"
        raise ModelError(error.found, where=where, todo=error.todo) from error


def fill_table3(ours: pd.DataFrame) -> pd.DataFrame:
    """Put our rows (``model`` and our columns) beside the paper's table 3; null where one side has no number.

    A model that has the name of the paper's (``falcon-7b-instruct``, ``gpt-3.5``, ``gpt-4``, any case) takes its place in the
    table, as ``teacher`` and ``distill_final`` do; any other one is a row of its own.
    """
    keyed = ours.assign(place=ours["model"].str.lower()).rename(columns={"model": "ours"})
    paper = TABLE3.rename(columns={"ours": "place"})
    both = paper.merge(keyed, on="place", how="left")
    others = keyed[~keyed["place"].isin(paper["place"])]
    others = others.assign(baseline=others["ours"] + ", zero-shot")
    table = pd.concat([both, others], ignore_index=True).drop(columns="place")
    table.insert(1, "ours", table.pop("ours"))
    return table


def _look_up(baseline: Respondent, actions: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    recorded = read_recorded(baseline.recorded, actions).sort_values("choice", kind="stable")
    first = recorded.drop_duplicates(PROMPT)[[*PROMPT, "context", "rationale"]]
    rows = list_prompts(chosen).merge(first, on=PROMPT, how="left", validate="one_to_one")
    missing = rows["context"].isna()
    if missing.any():
        found = f"{int(missing.sum())} of {len(rows)} test prompts have no recorded response of the baseline"
        first = dict(rows.loc[missing, ["action", "moral_variance"]].iloc[0])
        todo = "record them, ask for fewer (`evaluation.baseline_actions`), or take the baseline out"
        raise DataError(f"{found} {baseline.name!r}; the first is {first}", where=baseline.recorded, todo=todo)
    raw = [teacher_response(c, r) for c, r in zip(rows["context"], rows["rationale"], strict=True)]
    return empty_columns(rows.assign(candidate=0, source=baseline.name, raw=raw))


def _ask_endpoint(study: Study, baseline: Respondent, chosen: pd.DataFrame) -> pd.DataFrame:
    prompts = list_prompts(chosen)
    pairs = zip(prompts["action"], prompts["moral_variance"], strict=True)
    bodies = [baseline_request(study.params, baseline.endpoint, *pair) for pair in pairs]
    cache = Cache(study.run.answers)
    answers, usage = ask_all(bodies, baseline.endpoint, study.params.requests, cache, f"{baseline.name} writes")
    usage.add_to(study.record, f"usage of {baseline.name}")
    written = [[Written(read_whole(answer), answer.completion_tokens) for answer in group] for group in answers]
    rows = to_rows(prompts, written, baseline.name, lambda text: parse_teacher(text.text))
    return empty_columns(rows.assign(raw=[answer.text for group in answers for answer in group]))
