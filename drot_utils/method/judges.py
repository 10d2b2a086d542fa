"""LLM judges of figure 6's question: asked, read, merged, and put in the critic's place where the parameters say so."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from drot_utils.data.corpora import action_keys, join_action, read_actions, read_tsv, refuse, with_variance
from drot_utils.data.gold import ANNOTATORS
from drot_utils.data.parsing import parse_score
from drot_utils.data.table import WAYS, write_frame
from drot_utils.engine import load
from drot_utils.engine.shards import Work, map_rows
from drot_utils.llm.cache import Cache
from drot_utils.llm.client import ask_all
from drot_utils.llm.replies import USED_UP, Answer, explain_finish, phrase_request
from drot_utils.method.consensus import Reliability, fit_reliability, merge, merge_all
from drot_utils.method.critic import choose_thresholds, list_rules, score_contexts
from drot_utils.study.errors import DataError, ModelError
from drot_utils.study.params import Endpoint, Params, Respondent
from drot_utils.study.paths import require, to_json, write_text
from drot_utils.study.record import Study

#: What a judge is asked about, and what identifies its answer.
ITEM = ["action", "moral_variance", "context"]
QUESTION = """\
An everyday action, and a situation in which somebody does it.

Action: {action}
Situation: {context}

Question: Does this situation make the action {direction} in the eyes of most people than it is by itself?
"""
ANSWER = """\
Answer with a JSON object with one key, "score": the probability, from 0 to 1, that most people would say yes."""
_SCHEMA = {
    "type": "object", "properties": {"score": {"type": "number"}}, "required": ["score"], "additionalProperties": False,
}  # fmt: skip
FORMAT = {"type": "json_schema", "json_schema": {"name": "judgment", "strict": True, "schema": _SCHEMA}}
LONGEST = 64  # tokens of a judge's answer
BATCH = 32  # prompts a local model reads at once


@dataclass
class Panel:
    """The judges of the parameters, who `score` as a `critic.Critic` does: the probability that a context is valid.

    Their reliabilities are found once (notebook 12), so that a score does not depend on what else is scored.
    """

    study: Study
    reliability: Reliability | None = None

    def ask(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Ask every judge about every context of `rows`, which has the columns `ITEM`.

        Returns
        -------
        DataFrame
            A row a judge and row: ``row`` (its index in `rows`), ``judge``, `ITEM`, ``score`` (null where the judge
            gave none that can be read) and ``raw``.
        """
        parts = [rows[ITEM].iloc[:0].assign(row=rows.index[:0], judge="", score=0.0, raw="")]
        for judge in self.study.params.judges.panel:
            parts.append(rows[ITEM].assign(row=rows.index, judge=judge.name, **ask_judge(self.study, judge, rows)))
        return pd.concat(parts, ignore_index=True)[["row", "judge", *ITEM, "score", "raw"]]

    def score(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the judges' merged scores of rows with `ITEM`, shape (rows,); NaN without a context or a score."""
        rows = rows.reset_index(drop=True)
        if rows.empty:
            return np.zeros(0)
        return merge(spread(self.ask(rows), rows.index), self.study.params.judges.aggregate, self.reliability)

    def merge_all(self, answers: pd.DataFrame, rows: pd.Index) -> pd.DataFrame:
        """Find the reliabilities on what was answered (`ask`) and merge it in all three ways, a column each, if any."""
        if not self.study.params.judges.panel:
            return pd.DataFrame(index=rows)
        scores = spread(answers, rows)
        self.reliability = fit_reliability(scores)
        return merge_all(scores, self.reliability)

    def save(self, answers: pd.DataFrame, thresholds: dict[str, float]) -> None:
        """Keep the answers with the judges' own words (``data/judgments.parquet``), and who judges and how reliably."""
        values = {
            "panel": [_describe(judge) for judge in self.study.params.judges.panel],
            "reliability": {**vars(self.reliability), "sigma": self.reliability.sigma.to_dict()},
            "thresholds": thresholds,
            "rules": list_rules(self.study.params.critic),
        }
        write_text(self.study.run.model("judges") / "settings.json", to_json(values, indent=2, sort_keys=True))
        write_frame(answers, self.study.run.data("judgments"))


def spread(answers: pd.DataFrame, rows: pd.Index) -> pd.DataFrame:
    """Return the scores of `Panel.ask` as a column a judge, in the order of `rows`."""
    wide = answers.pivot(index="row", columns="judge", values="score")
    return wide.reindex(index=rows, columns=answers["judge"].unique())


def load_panel(study: Study) -> Panel:
    """Open the panel of the parameters with the reliabilities that notebook 12 found, which must have run with it."""
    path = require(study.run.model("judges") / "settings.json", "12_judges")
    record = json.loads(path.read_text(encoding="utf-8"))
    expected = [_describe(judge) for judge in study.params.judges.panel]
    if record["panel"] != expected:
        names = [", ".join(judge["name"] for judge in panel) or "nobody" for panel in (expected, record["panel"])]
        found, todo = f"the record of {names[1]}", "run notebooks/12_judges.ipynb with these parameters"
        raise DataError(f"expected the judges {names[0]}, found {found}", where=str(path), todo=todo)
    sigma = pd.Series(record["reliability"].pop("sigma"), dtype=float, name="sigma")
    return Panel(study, Reliability(sigma, **record["reliability"]))


def _describe(judge: Respondent) -> dict:
    # What makes a judge another one; not how fast it is asked.
    model = judge.endpoint.model if judge.endpoint else judge.model and judge.model.model_dump()
    return {"name": judge.name, "model": model, "recorded": judge.recorded}


def choose_shown(gold: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Return what the judges are shown: `judges.sample` contexts of dev and test actions that have three votes.

    Those on which annotators do not all agree are among them, unlike in the parts of the gold (`critic.read_parts`).
    """
    held_out = gold.loc[gold["part"].isin(["dev", "test"]), "action_id"]
    shown = gold[gold["action_id"].isin(held_out) & gold["votes"].ge(3)]
    count = min(params.judges.sample or len(shown), len(shown))
    return shown.sample(count, random_state=params.seed).reset_index(drop=True)


def gather_scores(study: Study, shown: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Return everybody's scores of the contexts shown, a column each: the annotators, the judges, the run's critics."""
    scores = shown[ANNOTATORS].join(spread(answers, shown.index))
    for name, label in (("critic", "the critic"), ("critic_independent", "the independent critic")):
        if name == "critic" or study.params.critic.independent_share:
            scores[label] = score_contexts(study, name, shown)
    return scores.dropna(axis=1, how="all")


def panel_thresholds(study: Study, shown: pd.DataFrame, scores: np.ndarray) -> dict[str, float]:
    """Apply the critic's rules to the panel's scores of dev contexts; nothing if it neither filters nor evaluates."""
    if "judges" not in (study.params.judges.filter, study.params.evaluation.critic):
        return {}
    seen = shown["part"].eq("dev").to_numpy() & ~np.isnan(scores)
    return choose_thresholds(study.params.critic, shown["valid"].to_numpy()[seen], scores[seen])


def ask_judge(study: Study, judge: Respondent, rows: pd.DataFrame) -> pd.DataFrame:
    """Ask one judge about rows with `ITEM`; one without a context is not asked about, a repeated one once.

    Returns
    -------
    DataFrame
        Indexed as `rows`: ``score`` (null where the judge gave none that can be read) and ``raw``, its own words.
    """
    items = rows.loc[rows["context"].notna(), ITEM].drop_duplicates().reset_index(drop=True)
    if items.empty:
        return pd.DataFrame({"score": np.nan, "raw": None}, index=rows.index).astype({"raw": "object"})
    ask = _look_up if judge.recorded else _ask_local if judge.model else _ask_endpoint
    given = ask(study, judge, items)[["score", "raw"]].astype({"score": "float64", "raw": "object"})
    place = pd.MultiIndex.from_frame(items).get_indexer(pd.MultiIndex.from_frame(rows[ITEM]))
    return given.reindex(place).set_axis(rows.index)  # of a place that there is not, -1, null


def judge_prompt(action: str, moral_variance: int, context: str) -> str:
    """Write figure 6's first question about one context."""
    return QUESTION.format(action=action, context=context, direction=WAYS[moral_variance])


def read_judgments(path: str, actions: pd.DataFrame) -> pd.DataFrame:
    """Read recorded scores: a TSV with ``action`` or ``action-id``, ``moral-variance``, ``context`` and ``score``.

    Returns
    -------
    DataFrame
        ``score`` (an empty one is null) and ``raw`` by `ITEM`, whose action is its `action_key`.

    Raises
    ------
    DataError
        An unknown action, a moral variance other than 1 and -1, an empty context, a score that is not a number from 0
        to 1, or a second score of the same context.
    """
    frame = with_variance(read_tsv(path, ["moral-variance", "context", "score"]), path)
    if "action" not in frame:
        frame = join_action(frame, actions, path)
    raw = frame["score"].str.strip()
    score = pd.to_numeric(raw, errors="coerce").astype(float)
    refuse(frame, raw.ne("") & ~score.between(0, 1), "have a score that is not a number from 0 to 1", path, "score")
    frame = frame.assign(score=score, raw=raw.where(raw != ""), action=action_keys(frame["action"]))
    refuse(frame, frame.duplicated(ITEM), "score the context of an earlier line again", path)
    return frame[[*ITEM, "score", "raw"]]


def _look_up(study: Study, judge: Respondent, items: pd.DataFrame) -> pd.DataFrame:
    recorded = read_judgments(judge.recorded, read_actions(study.params.corpus.actions))
    asked = items.assign(action=action_keys(items["action"]))
    found = asked.merge(recorded, on=ITEM, how="left", validate="many_to_one", indicator=True)
    if (found["_merge"] == "left_only").all():
        first = f"the {len(items)} contexts asked about; the first is {dict(items.iloc[0])}"
        todo = "record its scores of these contexts, or take the judge out of the parameters"
        raise DataError(f"the judge {judge.name!r} scored none of {first}", where=judge.recorded, todo=todo)
    return found


def _ask_endpoint(study: Study, judge: Respondent, items: pd.DataFrame) -> pd.DataFrame:
    prompts = [judge_prompt(*item) for item in items.itertuples(index=False)]
    bodies = [judge_request(judge.endpoint, prompt, study.params.seed) for prompt in prompts]
    cache = Cache(study.run.answers)
    answers, usage = ask_all(bodies, judge.endpoint, study.params.requests, cache, f"{judge.name} judges")
    usage.add_to(study.record, f"usage of {judge.name}")
    return pd.DataFrame([{"score": _read_score(answer), "raw": answer.text or None} for (answer,) in answers])


def judge_request(endpoint: Endpoint, prompt: str, seed: int) -> dict[str, Any]:
    """Return the request for one judgment: on a chat endpoint as structured output, a score from 0 to 1."""
    text = f"{prompt}\n{ANSWER}"
    settings = {"n": 1, "temperature": 0.0, "max_tokens": LONGEST, "seed": seed}
    if endpoint.kind == "completions":
        return phrase_request(endpoint, f"{text}\nScore:", **settings)
    return phrase_request(endpoint, text, response_format=FORMAT, **settings)


def _read_score(answer: Answer) -> float | None:
    # Of an answer that was cut off within a number, the number is not known.
    why = explain_finish(answer.finish)
    whole = why == USED_UP and answer.text.rstrip()[-1:] not in "0123456789."
    return parse_score(answer.text) if whole or not why else None


def _ask_local(study: Study, judge: Respondent, items: pd.DataFrame) -> pd.DataFrame:
    origin = load.describe_model(judge.model)
    return map_rows(study, items, partial(_open_local, study, judge), f"{judge.name} judges", "contexts", origin)


def _open_local(study: Study, judge: Respondent) -> Work:
    model, tokenizer = load.load_model(judge.model, "student", study.run)
    model = load.round_weights(model.to(study.device), study.scoring_dtype)

    def work(part: pd.DataFrame, seed: int) -> pd.DataFrame:
        yes, no = yes_and_no(model, tokenizer, [judge_prompt(*item) for item in part.itertuples(index=False)]).T
        raw = [f"P(yes) {a:.3g}, P(no) {b:.3g}" for a, b in zip(yes, no, strict=True)]
        return pd.DataFrame({"score": yes / (yes + no), "raw": raw})

    return work


@torch.inference_mode()
def yes_and_no(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> np.ndarray:
    """Return a local model's probabilities that its answer begins with yes, and with no: float64, shape (prompts, 2).

    Nothing is drawn: the probabilities of the first tokens of "yes" and "no", with and without capitals and a blank, are
    read off after the prompt. A tokenizer that begins both answers with the same tokens is a `ModelError`.
    """
    chat = bool(tokenizer.chat_template)
    texts = [f"{prompt}\nAnswer yes or no." if chat else f"{prompt}\nAnswer (yes or no):" for prompt in prompts]
    encoded = [load.encode_question(tokenizer, text) for text in texts]
    yes, no = (_first_tokens(tokenizer, word) for word in ("yes", "no"))
    words = sorted(yes - no), sorted(no - yes)
    if not all(words):
        raise ModelError("its tokenizer begins yes and no alike", where=model.name_or_path, todo="take another judge")
    out = np.zeros((len(prompts), 2))
    order = np.argsort([len(ids) for ids in encoded], kind="stable")
    for index in np.split(order, range(BATCH, len(order), BATCH)):
        logits = _next_logits(model, tokenizer, [encoded[i] for i in index])
        shares = [(logits[:, tokens].logsumexp(-1) - logits.logsumexp(-1)).exp() for tokens in words]
        out[index] = torch.stack(shares, dim=1).cpu().numpy()
    return out


def _first_tokens(tokenizer: PreTrainedTokenizerBase, word: str) -> set[int]:
    spellings = [blank + form for blank in ("", " ") for form in (word, word.capitalize(), word.upper())]
    return {tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in spellings}


def _next_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]) -> torch.Tensor:
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    if model.config.is_encoder_decoder:
        start = torch.full((len(prompts), 1), model.config.decoder_start_token_id, device=model.device)
        return model(**batch, decoder_input_ids=start).logits[:, -1].double()
    position = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return model(**batch, position_ids=position, logits_to_keep=1).logits[:, -1].double()
