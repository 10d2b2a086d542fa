"""A panel of judges that stands where the critic stands: one score for a context, merged from several judges' scores."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from drot_utils.consensus import Reliability, fit_reliability, merge
from drot_utils.critic import choose_threshold
from drot_utils.errors import DataError
from drot_utils.judges import ITEM, ask_judge
from drot_utils.params import Judges as Settings
from drot_utils.paths import require, to_json, write_text
from drot_utils.schema import make_table, write_table
from drot_utils.settings import Respondent
from drot_utils.study import Study

#: Columns of `Panel.ask`.
ANSWERS = {
    "row": "int64",
    "judge": "str",
    "action": "str",
    "moral_variance": "int8",
    "context": "str",
    "score": "float64",
    "raw": "str",
}


@dataclass
class Panel:
    """The judges of the parameters. `score` is that of a `critic.Critic`: the probability that a context is valid.

    Attributes
    ----------
    study : Study
    reliability : Reliability or None
        Of the judges, as found on a sample once: so a context's score does not hang on what else is scored. None: it is found
        on whatever is scored.
    """

    study: Study
    reliability: Reliability | None = None

    @property
    def settings(self) -> Settings:
        """The section of the parameters."""
        return self.study.params.judges

    def ask(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Ask every judge about every context.

        Parameters
        ----------
        rows : DataFrame
            ``action moral_variance context``; a row without a context is not asked about.

        Returns
        -------
        DataFrame
            A row a judge and row: ``row`` (its index in `rows`), ``judge``, `judges.ITEM`, ``score`` (null where the
            judge gave none that can be read) and ``raw``.
        """
        parts = [] if self.settings.panel else [make_table([], ANSWERS)]
        for judge in self.settings.panel:
            part = rows[ITEM].join(ask_judge(self.study, judge, rows)).rename_axis("row").reset_index()
            parts.append(part.assign(judge=judge.name))
        return pd.concat(parts, ignore_index=True)[list(ANSWERS)]

    def score(self, rows: pd.DataFrame, what: str = "judges") -> np.ndarray:
        """Score rows with ``action``, ``moral_variance`` and ``context``.

        Returns
        -------
        ndarray of float64, shape (rows,)
            The judges' scores merged by `settings.aggregate`; NaN (null) where there is no context, or no judge gave a score.
        """
        rows = rows.reset_index(drop=True)
        if rows.empty:
            return np.zeros(0)
        return merge(spread(self.ask(rows), rows.index), self.settings.aggregate, self.reliability)

    def fit(self, answers: pd.DataFrame, rows: pd.Index) -> np.ndarray:
        """Find the judges' reliabilities on what they answered (`ask`), and return the merged scores of `rows`."""
        scores = spread(answers, rows)
        self.reliability = fit_reliability(scores)
        return merge(scores, self.settings.aggregate, self.reliability)

    def save(self, record: dict) -> None:
        """Keep who judges and how reliable they are, with `record` (thresholds), as ``models/judges/settings.json``."""
        found = self.reliability
        kept = None if found is None else {**vars(found), "sigma": found.sigma.to_dict()}
        values = {"panel": _describe(self.settings.panel), "reliability": kept, **record}
        folder = self.study.run.model("judges")
        write_text(folder / "settings.json", to_json(values, indent=2, sort_keys=True))


def spread(answers: pd.DataFrame, rows: pd.Index) -> pd.DataFrame:
    """Return the scores of `Panel.ask` as a column a judge, in the order of `rows`."""
    return answers.pivot(index="row", columns="judge", values="score").reindex(
        index=rows, columns=answers["judge"].unique()
    )


def write_answers(answers: pd.DataFrame, path: Path) -> Path:
    """Keep the answers of `Panel.ask`, with the judges' own words, as parquet."""
    table = pa.Table.from_pandas(answers, preserve_index=False)
    return write_table(table.replace_schema_metadata(None), path)


def load_panel(study: Study) -> Panel:
    """Open the panel of the parameters with the reliabilities that notebook 2 found.

    Raises
    ------
    MissingInputError
        When notebook 2 has not run.
    DataError
        When it ran with another panel.
    """
    path = require(study.run.model("judges") / "settings.json", "02_critic")
    record = json.loads(path.read_text(encoding="utf-8"))
    expected = _describe(study.params.judges.panel)
    if record["panel"] != expected:
        raise DataError(
            f"expected the judges {_names(expected)}, found the record of {_names(record['panel'])}",
            where=str(path),
            todo="run notebooks/02_critic.ipynb with these parameters",
        )
    kept = record["reliability"]
    if kept is None:
        return Panel(study)
    sigma = pd.Series(kept["sigma"], dtype=float, name="sigma")
    return Panel(study, Reliability(**{**kept, "sigma": sigma}))


def choose_thresholds(study: Study, valid: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Apply the critic's threshold rules to the panel's scores of dev rows.

    Parameters
    ----------
    valid : ndarray of bool, shape (rows,)
    scores : ndarray of float, shape (rows,)
        NaN where the panel has no score; such rows are left out.

    Returns
    -------
    dict
        ``distill`` and ``dataset``; empty when the panel stands nowhere in the critic's place.

    Raises
    ------
    DataError
        See `critic.choose_threshold`.
    """
    params = study.params
    if "judges" not in (params.judges.filter, params.evaluation.critic):
        return {}
    rules = {name: getattr(params.critic, f"threshold_{name}") for name in ("distill", "dataset")}
    seen = ~np.isnan(scores)
    return {name: choose_threshold(valid[seen], scores[seen], rule) for name, rule in rules.items()}


def _describe(judges: list[Respondent]) -> list[dict]:
    # What makes a judge another one; not how fast it is asked.
    return [
        {
            "name": judge.name,
            "model": judge.endpoint.model if judge.endpoint else judge.model and judge.model.model_dump(),
            "recorded": judge.recorded,
        }
        for judge in judges
    ]


def _names(described: list[dict]) -> str:
    return ", ".join(judge["name"] for judge in described) or "nobody"
