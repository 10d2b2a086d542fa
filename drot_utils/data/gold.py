"""The critic's gold: annotators' votes, and the labels that follow from them (appendix B.1)."""

import re

import numpy as np
import pandas as pd

from drot_utils.data.corpora import action_keys, join_action, read_tsv, read_whole, refuse, with_variance
from drot_utils.data.table import check_columns
from drot_utils.study.errors import DataError

#: What a vote on figure 6's first question means for the context; N and O both make it invalid (appendix B.1).
VOTES = {"Y": "as_asked", "N": "neutral", "O": "opposite"}
#: Columns of the single votes as scores: 1 for Y, 0 for N and O; null where there are not three of them.
ANNOTATORS = ["annotator 1", "annotator 2", "annotator 3"]
COLUMNS = [
    "action_id", "action", "moral_variance", "context", "rationale", "recipe", "source", "valid", "shift", "votes", "agreed",
    "split", *ANNOTATORS,
]  # fmt: skip


def read_gold(paths: list[str], actions: pd.DataFrame) -> pd.DataFrame:
    """Read the critic's gold: annotation files with votes, or the published file with ``context-quality``.

    Labels are the majority of the votes, and "neutral" and "opposite" are both invalid (appendix B.1). Three different
    votes have no majority: such a row is invalid, its shift unknown.

    A file's ``split`` is one of actions: a row that brings none takes its action's from another file, or is held out
    where the corpus holds its action out. Rows of the published file keep the split that they were published with, even
    where that puts an action on two sides, so that numbers stay those of its authors.

    Parameters
    ----------
    paths : list of str
        TSVs with ``q1-a1 q1-a2 q1-a3``, with a single ``q1``, or with ``context-quality``.
    actions : DataFrame
        Joined where a file has ``action-id`` but no ``action``. An action that is among them has their id, whatever id a
        file gives it; any other one keeps the file's id, or gets one that begins with g.

    Returns
    -------
    DataFrame
        ``action_id action moral_variance context rationale``, ``source`` (who wrote it) and ``recipe`` (in which run; null
        where a file does not say), ``valid`` (bool), ``shift`` (-1, 0, +1: what the context does to the action, whatever was
        asked; null when unknown), ``votes`` (how many), ``agreed`` (all of at least three votes the same), ``split`` (null
        where nothing says), and `ANNOTATORS` (the votes as scores).

    Raises
    ------
    DataError
        An action that a file with votes calls ``train`` and the corpus holds out, a vote that is not Y, N or O, a
        ``context-quality`` other than 0 and 1, or without a ``split``, a split other than train, dev and test, an action of
        files with votes on two sides of it, a row without an action, or as `read_tsv`.
    """
    gold = pd.concat([_read_gold_file(path, actions).assign(file=path) for path in paths], ignore_index=True)
    key = action_keys(gold["action"])
    known = pd.Series(actions["action_id"].to_numpy(), index=action_keys(actions["action"]))
    own = gold["action_id"].astype("str")
    numbers = "g" + key.groupby(key).ngroup().astype(str).str.zfill(6)
    gold["action_id"] = key.map(known).fillna(own).fillna(own.groupby(key).transform("first")).fillna(numbers)
    given = gold.dropna(subset="split")
    _refuse_two_sides(given)
    sides = given.groupby("action_id")["split"].min()  # of two published ones, the one that is held out
    held_out = actions[actions["split"].isin(["dev", "test"])].set_index("action_id")["split"]
    learnt = given[(given["split"] == "train") & given["action_id"].isin(held_out.index) & ~given["published"]]
    if len(learnt):
        raise DataError(
            f"{learnt['action_id'].nunique()} actions are `train` in the gold and held out in the corpus; the first is "
            f"{learnt['action'].iloc[0]!r} in {learnt['file'].iloc[0]}",
            where="critic.gold", todo="leave these rows out, or give them the corpus's `split`: students are tested on them",
        )  # fmt: skip
    gold["split"] = gold["split"].fillna(gold["action_id"].map(sides)).fillna(gold["action_id"].map(held_out))
    return gold[COLUMNS]


def _refuse_two_sides(given: pd.DataFrame) -> None:
    """Raise a `DataError` for an action of files with votes that is on two sides of the split."""
    by_action = given.groupby("action_id")
    wrong = given[by_action["split"].transform("nunique").gt(1) & ~by_action["published"].transform("all")]
    if len(wrong):
        rows = wrong[wrong["action_id"] == wrong["action_id"].iloc[0]]
        places = ", ".join(
            f"{side} in {file}" for side, file in dict.fromkeys(zip(rows["split"], rows["file"], strict=True))
        )
        raise DataError(
            f"{wrong['action_id'].nunique()} actions are on two sides of the split; the first is "
            f"{rows['action'].iloc[0]!r}: {places}",
            where="critic.gold",
            todo="give all rows of an action the same `split`, so that no critic is measured on what it has learnt",
        )


def read_votes(path: str) -> pd.DataFrame:
    """Read single votes, ``file row source question annotator answer``; none where an annotation has only one.

    A question that was not asked of an annotator (``-``) has no vote.
    """
    frame = read_tsv(path, ["context"])
    columns = [name for name in frame if re.fullmatch(r"q\d_a\d", name)]
    if not columns:
        return pd.DataFrame(columns=["file", "row", "source", "question", "annotator", "answer"])
    frame = frame.assign(file=path, row=range(len(frame)), source=frame.get("source", ""))
    votes = frame.melt(["file", "row", "source"], columns, "name", "answer")
    votes[["question", "annotator"]] = votes["name"].str.split("_", expand=True).to_numpy()
    return votes[votes["answer"] != "-"].drop(columns="name")


def _read_gold_file(path: str, actions: pd.DataFrame) -> pd.DataFrame:
    frame = read_tsv(path, ["moral-variance", "context", "rationale"])
    frame = with_variance(frame, path)
    if "action" not in frame:
        frame = join_action(frame, actions, path)
    elif "action_id" in frame:
        frame["action_id"] = frame["action_id"].mask(frame["action_id"].str.strip() == "")
    refuse(frame, action_keys(frame["action"]) == "", "have no action", path, "action")
    published = "context_quality" in frame
    if published:
        check_columns(frame, ["split"], path)
    if "split" in frame:
        known = frame["split"].isin(["train", "dev", "test", *([] if published else [""])])
        refuse(frame, ~known, "have a split other than train, dev and test", path, "split")
        frame["split"] = frame["split"].replace("", None)
    if published:
        valid = read_whole(frame, "context_quality", path, (0, 1)).astype(bool)
        agreed = frame["split"] != "train"  # the published dev and test splits hold full agreement only
        source = frame.get("source", "gpt-3")
        frame = frame.assign(valid=valid, shift=float("nan"), votes=3, agreed=agreed, source=source)
    else:
        frame = _vote(frame, path)
    return frame.reindex(columns=COLUMNS).assign(published=published)


def _vote(frame: pd.DataFrame, path: str) -> pd.DataFrame:
    columns = [c for c in ("q1", "q1_a1", "q1_a2", "q1_a3") if c in frame]
    if len(columns) not in (1, 3):
        raise DataError("expected the votes in q1, or in q1-a1 q1-a2 q1-a3, or context-quality", where=path)
    votes = frame[columns]
    for column in columns:
        refuse(frame, ~votes[column].isin(list(VOTES)), "have a vote other than Y, N and O", path, column)
    counts = pd.DataFrame({v: votes.eq(v).sum(axis=1) for v in VOTES})
    winner = counts.idxmax(axis=1).where(counts.max(axis=1) * 2 > len(columns))
    asked = frame["moral_variance"].astype(float)
    shift = asked.where(winner == "Y", -asked).where(winner != "N", 0.0).where(winner.notna())
    agreed = counts.max(axis=1).eq(len(columns)) & (len(columns) >= 3)
    if len(columns) == len(ANNOTATORS):
        frame = frame.assign(**dict(zip(ANNOTATORS, votes.eq("Y").astype(float).to_numpy().T, strict=True)))
    return frame.assign(valid=winner.eq("Y"), shift=shift, votes=len(columns), agreed=agreed)


def count_valid(valid: pd.Series, written: pd.Series, least: float = 0.0) -> float:
    """Return how many rows are valid, taking those that nobody judged to be like those that somebody did.

    Parameters
    ----------
    valid : Series of float, shape (rows,)
        1, 0 or between; NaN where nobody judged.
    written : Series of bool, shape (rows,)
        Whether there is a text to judge; where not, the row is not valid.
    least : float
        The share of the written rows that must be judged: where fewer are, or none, the number is NaN.
    """
    if not written.any():
        return 0.0 if len(written) else np.nan
    known = valid[written].dropna()
    if not len(known) or len(known) < least * written.sum():
        return np.nan
    return float(known.sum() * written.sum() / len(known))
