"""LLM judges of figure 6's question: does the context make the action more, or less, acceptable, as asked?

A judge is a respondent of the parameters: an endpoint, a local model, or a file of recorded scores. Whoever it is, its score
is its probability of "yes", from 0 to 1, null where there is none.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from drot_utils import models
from drot_utils.answers import USED_UP, Answer, explain_finish, phrase_request
from drot_utils.cache import open_cache
from drot_utils.corpora import action_keys, join_action, read_actions, read_tsv, refuse, with_variance
from drot_utils.endpoint import ask_all
from drot_utils.errors import DataError, ModelError
from drot_utils.executors import Work
from drot_utils.precision import round_weights
from drot_utils.prompts import encode_question
from drot_utils.scores import parse_score
from drot_utils.scoring import map_rows
from drot_utils.settings import Endpoint, Respondent
from drot_utils.shards import source_hash
from drot_utils.study import Study

#: What a judge is asked about, and what identifies its answer.
ITEM = ["action", "moral_variance", "context"]
DIRECTIONS = {1: "more acceptable", -1: "less acceptable"}
QUESTION = """\
An everyday action, and a situation in which somebody does it.

Action: {action}
Situation: {context}

Question: Does this situation make the action {direction} in the eyes of most people than it is by itself?
"""
ANSWER = """\
Answer with a JSON object with one key, "score": the probability, from 0 to 1, that most people would say yes."""
FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "judgment",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"score": {"type": "number"}},
            "required": ["score"],
            "additionalProperties": False,
        },
    },
}
LONGEST = 64  # tokens of a judge's answer
BATCH = 32  # prompts a local model reads at once


def judge_prompt(action: str, moral_variance: int, context: str) -> str:
    """Write figure 6's first question about one context."""
    return QUESTION.format(action=action, context=context, direction=DIRECTIONS[moral_variance])


def ask_judge(study: Study, judge: Respondent, rows: pd.DataFrame) -> pd.DataFrame:
    """Ask one judge about contexts.

    Parameters
    ----------
    rows : DataFrame
        With `ITEM`; a row without a context is not asked about, a repeated one once.

    Returns
    -------
    DataFrame
        Indexed as `rows`: ``score`` (float64, null where the judge gave none that can be read) and ``raw`` (its own words;
        null where it said nothing).

    Raises
    ------
    DrotError
        As the kind of judge has it: `read_judgments`, `models.load`, `endpoint.ask_all`.
    """
    answers = pd.DataFrame({"score": np.nan, "raw": None}, index=rows.index).astype({"raw": "object"})
    items = rows.loc[rows["context"].notna(), ITEM].drop_duplicates().reset_index(drop=True)
    if items.empty:
        return answers
    if judge.recorded:
        given = _look_up(study, judge, items)
    elif judge.model:
        given = _ask_local(study, judge, items)
    else:
        given = _ask_endpoint(study, judge, items)
    key = pd.MultiIndex.from_frame(rows[ITEM])
    place = pd.MultiIndex.from_frame(items).get_indexer(key)
    asked = place >= 0
    answers.loc[asked, "score"] = given["score"].to_numpy(dtype=float, na_value=np.nan)[place[asked]]
    answers.loc[asked, "raw"] = given["raw"].to_numpy(dtype=object)[place[asked]]
    return answers


def read_judgments(path: str, actions: pd.DataFrame) -> pd.DataFrame:
    """Read recorded scores: a TSV with ``action`` or ``action-id``, ``moral-variance``, ``context`` and ``score``.

    Parameters
    ----------
    actions : DataFrame
        As `corpora.read_actions` returns it; joined where a file has ``action-id`` but no ``action``.

    Returns
    -------
    DataFrame
        `ITEM`, ``score`` (an empty one is null) and ``raw``.

    Raises
    ------
    DataError
        An unknown action, a moral variance other than 1 and -1, an empty context, a score that is no number from 0 to 1, or
        a second score of the same context; the rows are counted and the first is named.
    """
    frame = with_variance(read_tsv(path, ["moral-variance", "context", "score"]), path)
    if "action" not in frame:
        frame = join_action(frame, actions, path)
    raw = frame["score"].str.strip()
    score = pd.to_numeric(raw, errors="coerce").astype(float)
    bad = (raw != "") & ~score.between(0, 1)
    refuse(frame, bad, "have a score that is no number from 0 to 1", path, "score")
    frame = frame.assign(score=score, raw=raw.where(raw != ""))
    repeated = frame.assign(action=action_keys(frame["action"])).duplicated(ITEM)
    refuse(frame, repeated, "score the context of an earlier line again", path)
    return frame[[*ITEM, "score", "raw"]]


def _look_up(study: Study, judge: Respondent, items: pd.DataFrame) -> pd.DataFrame:
    recorded = read_judgments(judge.recorded, read_actions(study.params.corpus.actions))
    # However the action is typed there, it is the same.
    asked, recorded = (rows.assign(action=action_keys(rows["action"])) for rows in (items, recorded))
    found = asked.merge(recorded, on=ITEM, how="left", validate="many_to_one", indicator=True)
    if (found["_merge"] == "left_only").all():
        raise DataError(
            f"the judge {judge.name!r} scored none of the {len(items)} contexts asked about; the first is "
            f"{dict(items.iloc[0])}",
            where=judge.recorded,
            todo="record its scores of these contexts, or take the judge out of the parameters",
        )
    return found


def judge_request(endpoint: Endpoint, prompt: str, seed: int) -> dict[str, Any]:
    """Return the request for one judgment: on a chat endpoint as structured output, a score from 0 to 1."""
    text = f"{prompt}\n{ANSWER}"
    settings = {"n": 1, "temperature": 0.0, "max_tokens": LONGEST, "seed": seed}
    if endpoint.kind == "completions":
        return phrase_request(endpoint, f"{text}\nScore:", **settings)
    return phrase_request(endpoint, text, response_format=FORMAT, **settings)


def _ask_endpoint(study: Study, judge: Respondent, items: pd.DataFrame) -> pd.DataFrame:
    prompts = [judge_prompt(*item) for item in items[ITEM].itertuples(index=False)]
    bodies = [judge_request(judge.endpoint, prompt, study.params.seed) for prompt in prompts]
    cache = open_cache(study.run)
    answers, usage = ask_all(bodies, judge.endpoint, study.params.requests, cache, f"{judge.name} judges")
    usage.add_to(study.record, f"usage of {judge.name}")
    scores = [_read_score(answer) for (answer,) in answers]
    return pd.DataFrame({"score": scores, "raw": [answer.text or None for (answer,) in answers]})


def _read_score(answer: Answer) -> float | None:
    # Of an answer that was cut off within a number, the number is not known.
    why = explain_finish(answer.finish)
    if why == USED_UP and answer.text.rstrip()[-1:] not in "0123456789.":
        why = None
    return None if why else parse_score(answer.text)


def _ask_local(study: Study, judge: Respondent, items: pd.DataFrame) -> pd.DataFrame:
    work = partial(_open_local, study, judge)
    key = (models.describe(judge.model), source_hash("judges", "prompts"))
    return map_rows(study, items, work, f"{judge.name} judges", "contexts", *key)


def _open_local(study: Study, judge: Respondent) -> Work:
    model, tokenizer = models.load(judge.model, "student", study.run)
    return partial(_score_shard, round_weights(model.to(study.device), study.dtype), tokenizer)


def _score_shard(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: pd.DataFrame, seed: int
) -> pd.DataFrame:
    prompts = [judge_prompt(*item) for item in part[ITEM].itertuples(index=False)]
    yes, no = yes_and_no(model, tokenizer, prompts).T
    raw = [f"P(yes) {a:.3g}, P(no) {b:.3g}" for a, b in zip(yes, no, strict=True)]
    return pd.DataFrame({"score": yes / (yes + no), "raw": raw})


@torch.inference_mode()
def yes_and_no(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> np.ndarray:
    """Return a local model's probabilities that its answer begins with yes, and with no.

    Nothing is drawn: the probabilities of the first tokens of "yes" and "no", in their spellings with and without capitals and
    a blank, are read off after the prompt. What they lack to 1 is the model's inclination to say something else.

    Returns
    -------
    ndarray of float64, shape (prompts, 2)

    Raises
    ------
    ModelError
        When the tokenizer begins both answers with the same tokens.
    """
    chat = bool(tokenizer.chat_template)
    texts = [
        f"{prompt}\nAnswer yes or no." if chat else f"{prompt}\nAnswer (yes or no):" for prompt in prompts
    ]
    encoded = [encode_question(tokenizer, text) for text in texts]
    yes, no = (_first_tokens(tokenizer, word) for word in ("yes", "no"))
    yes, no = sorted(yes - no), sorted(no - yes)
    if not yes or not no:
        raise ModelError(
            "its tokenizer begins yes and no alike", where=model.name_or_path, todo="take another judge"
        )
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    out = np.zeros((len(prompts), 2))
    for start in range(0, len(order), BATCH):
        index = order[start : start + BATCH]
        logits = _next_logits(model, tokenizer, [encoded[i] for i in index])
        log_all = logits.logsumexp(-1)
        for column, tokens in enumerate((yes, no)):
            out[index, column] = (logits[:, tokens].logsumexp(-1) - log_all).exp().cpu().numpy()
    return out


def _first_tokens(tokenizer: PreTrainedTokenizerBase, word: str) -> set[int]:
    spellings = [blank + form for blank in ("", " ") for form in (word, word.capitalize(), word.upper())]
    return {tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in spellings}


def _next_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> torch.Tensor:
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    if model.config.is_encoder_decoder:
        start = torch.full((len(prompts), 1), model.config.decoder_start_token_id, device=model.device)
        return model(**batch, decoder_input_ids=start).logits[:, -1].double()
    position = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return model(**batch, position_ids=position, logits_to_keep=1).logits[:, -1].double()
