"""What a run's requests took, as the manifest has it; what is not known is None there, never 0."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Usage:
    """What a list of requests took.

    Attributes
    ----------
    requests, choices : int
        Asked for, and answered: all of them.
    from_cache, asked : int
        Requests that were in the cache whole, and those that were not.
    calls : int
        What was sent to the server, all tries.
    faults : dict
        What went wrong on the way and was asked again, by kind.
    prompt_tokens, completion_tokens : int or None
        Of all choices, those from the cache too; None when one of them was not counted.
    cost_usd : float or None
        All choices at the table's prices for this endpoint; None when a price or a count is not known.
    spent_usd : float or None
        What the answers to this run's calls cost by the table, 0 when it asked nothing; None when that is not known.
    unmetered : int
        Calls of this run that may have been billed although no answer arrived whole; they are not in `spent_usd`.
    ignored : dict
        Settings that this model's server was seen to pass over in the cache's life, with how often.
    unfinished : dict
        Choices that did not come to an end of their own, by reason (see `answers.explain_finish`).
    answered_by : dict
        Choices by the name that the server gave the model that answered.
    """

    requests: int = 0
    choices: int = 0
    from_cache: int = 0
    asked: int = 0
    calls: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    cost_usd: float | None = 0.0
    spent_usd: float | None = 0.0
    unmetered: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    unfinished: dict[str, int] = field(default_factory=dict)
    answered_by: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: "Usage") -> "Usage":
        """Return the usage of both together."""
        values = {name: _add(value, getattr(other, name)) for name, value in vars(self).items()}
        names = (
            self.ignored | other.ignored
        )  # counted over the cache's life: the later count holds the earlier
        values["ignored"] = {n: max(self.ignored.get(n, 0), other.ignored.get(n, 0)) for n in names}
        return Usage(**values)

    def add_to(self, record: dict[str, Any], key: str) -> None:
        """Add it to what `record` has of the same one under `key`: somebody may be asked several times."""
        record[key] = dict(vars(Usage(**record.get(key, {})) + self))


def _add(one: object, other: object) -> object:
    if one is None or other is None:
        return None
    if isinstance(one, dict):
        return dict(sorted((Counter(one) + Counter(other)).items()))
    return one + other
