"""Whose opinion of a context counts: the critic's, the independent critic's, or a panel of judges'; in filter and evaluation."""

from dataclasses import dataclass

from drot_utils.critic import read_record
from drot_utils.panel import Panel, load_panel
from drot_utils.paths import require
from drot_utils.scoring import ShardedCritic
from drot_utils.study import Study

NAMES = {
    "critic": "the critic",
    "critic_independent": "the independent critic",
    "judges": "the panel of judges",
}


@dataclass(frozen=True)
class Opinion:
    """Who says how probably a context is valid, what that one is called, and where its thresholds lie."""

    label: str
    critic: ShardedCritic | Panel
    thresholds: dict[str, float]


def load_opinion(study: Study, name: str | None = None) -> Opinion:
    """Load one opinion, as notebook 2 left it.

    Parameters
    ----------
    name : {"critic", "critic_independent", "judges"}, optional
        By default who filters by the parameters (`judges.filter`).

    Raises
    ------
    MissingInputError
        When notebook 2 has not run.
    DataError
        See `panel.load_panel`.
    """
    name = name or study.params.judges.filter
    folder = require(study.run.model(name) / "settings.json", "02_critic").parent
    critic = load_panel(study) if name == "judges" else ShardedCritic(study, name)
    label = NAMES[name] + " that filtered" * (name == study.params.judges.filter)
    return Opinion(label, critic, read_record(folder)["thresholds"])


def load_opinions(study: Study) -> dict[str, Opinion]:
    """Load those who judge the students (section 4), by the prefix of their columns in table 2.

    Returns
    -------
    dict of Opinion
        ``auto_``: whom `evaluation.critic` names. ``independent_``: a second opinion, where there is one: the independent
        critic, or, where that one is the first or does not exist, who filtered.
    """
    params = study.params
    chosen = {"same": params.judges.filter, "independent": "critic_independent", "judges": "judges"}
    first = chosen[params.evaluation.critic]
    others = [name for name in ("critic_independent", params.judges.filter) if name != first]
    second = [name for name in others if (study.run.model(name) / "settings.json").exists()][:1]
    names = zip(("auto_", "independent_"), [first, *second], strict=False)
    return {prefix: load_opinion(study, name) for prefix, name in names}
