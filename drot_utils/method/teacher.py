"""The teacher: what it is asked, and the rows that its answers make (section 3.1, appendix A)."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from drot_utils.data.parsing import diagnose, parse_teacher
from drot_utils.llm.cache import Cache, Entry, request_key
from drot_utils.llm.client import ask_all, probe_penalties
from drot_utils.llm.costs import Forecast, Usage, forecast, read_prices
from drot_utils.llm.replies import (
    REFUSED,
    Answer,
    derive_choice_seed,
    explain_finish,
    phrase_request,
    read_whole,
)
from drot_utils.method.prompts import teacher_prompt, teacher_response
from drot_utils.study.params import Endpoint, Params, Requests
from drot_utils.study.params import Teacher as Settings

UNPARSED = ["action_id", "action", "moral_variance", "candidate", "attempt", "raw", "why"]


@dataclass(frozen=True)
class Asked:
    """What the teacher said.

    Attributes
    ----------
    rows : DataFrame
        One row a choice: ``action_id action moral_variance candidate source context rationale raw why``. A choice that did
        not parse in any try keeps the raw text of the first and has null context and rationale; ``why`` says why, and marks
        an answer that was cut and whose whole sentences were read. It is null for all others.
    unparsed : DataFrame
        Every text that did not parse, those that were asked again with success too: columns `UNPARSED`.
    usage : Usage
        Of all tries together.
    """

    rows: pd.DataFrame
    unparsed: pd.DataFrame
    usage: Usage

    def describe(self) -> dict[str, Any]:
        """Return what the manifest keeps: usage, how many texts did not parse, and how many rows come from a cut answer."""
        cut = int((self.rows["context"].notna() & self.rows["why"].notna()).sum())
        return {**asdict(self.usage), "unparsed_texts": len(self.unparsed), "cut_rows": cut}


def make_request(action: str, moral_variance: int, settings: Settings, seed: int) -> dict[str, Any]:
    """Return the whole request for one action and moral variance, as the endpoint gets it."""
    return phrase_request(
        settings.endpoint,
        teacher_prompt(action, moral_variance),
        n=settings.contexts_per_variance,
        temperature=settings.temperature,
        top_p=settings.top_p,
        presence_penalty=settings.presence_penalty,
        frequency_penalty=settings.frequency_penalty,
        max_tokens=settings.max_tokens,
        seed=seed,
    )


def fill_cache(cache: Cache, recorded: pd.DataFrame, settings: Settings, seed: int) -> int:
    """Put recorded responses into the cache as the answers to the requests of this study, in the place of other ones.

    Returns
    -------
    int
        Requests newly answered.
    """
    answers = []
    for (action, variance), group in recorded.groupby(["action", "moral_variance"], sort=False):
        group = group.sort_values("choice").head(settings.contexts_per_variance)
        texts = [teacher_response(c, r) for c, r in zip(group["context"], group["rationale"], strict=True)]
        request = make_request(action, int(variance), settings, seed)
        answers.append((request, {number: Entry(text) for number, text in enumerate(texts)}))
    kept = cache.read(request_key(request) for request, _ in answers)
    new = [(request, texts) for request, texts in answers if not _holds(kept.get(request_key(request), {}), texts)]
    cache.put(new, replace=True)
    return len(new)


def plan_teacher(
    actions: Iterable[str], settings: Settings, requests: Requests, cache: Cache | None, seed: int
) -> Forecast:
    """Return what asking for these actions will take (see `forecast.Forecast`); nothing is asked."""
    bodies = [make_request(action, variance, settings, seed) for action in actions for variance in (1, -1)]
    refresh = _prefer_recorded(settings, requests).cache == "refresh"
    return forecast(bodies, settings.endpoint, read_prices(requests.prices), cache, refresh=refresh)


def try_teacher(action: str, settings: Settings, requests: Requests, cache: Cache, seed: int) -> dict[str, str]:
    """Ask for one action whether the server heeds the penalties (see `probes.probe_penalties`)."""
    request = make_request(action, 1, settings, seed)
    return probe_penalties(request, settings.endpoint, requests, cache)


def ask_teacher(actions: pd.DataFrame, settings: Settings, requests: Requests, cache: Cache, seed: int) -> Asked:
    """Ask for the contexts of all actions in both directions; what is in the cache is not asked.

    Texts that do not parse are asked again, each `settings.parse_retries` times at most, with seeds of their own; recorded
    ones are not, nor what the server refused for its content.

    Parameters
    ----------
    actions : DataFrame
        ``action_id`` and ``action``.
    cache : Cache
        Holds earlier and recorded responses, and gets the new ones.

    Raises
    ------
    EndpointError, BudgetError
        See `endpoint.ask_all`.
    """
    requests = _prefer_recorded(settings, requests)
    prompts = [(row.action_id, row.action, variance) for row in actions.itertuples() for variance in (1, -1)]
    bodies = [make_request(action, variance, settings, seed) for _, action, variance in prompts]
    answers, usage = ask_all(bodies, settings.endpoint, requests, cache, "asking the teacher")
    n = settings.contexts_per_variance
    rows = [_to_row(prompts[k // n], k % n, answers[k // n][k % n]) for k in range(len(prompts) * n)]
    unparsed = [{**row, "attempt": 0} for row in rows if row["context"] is None]
    for attempt in range(1, settings.parse_retries + 1):
        unread = [number for number, row in enumerate(rows) if row["context"] is None]
        bad = [number for number in unread if not rows[number]["why"].startswith(REFUSED)]
        if not bad or settings.recorded:
            break
        again = [_make_again(bodies[number // n], number % n, attempt) for number in bad]
        answers, more = ask_all(again, settings.endpoint, requests, cache, "asking again what did not parse")
        usage += more
        for number, (answer,) in zip(bad, answers, strict=True):
            row = _to_row(prompts[number // n], number % n, answer)
            if row["context"] is None:
                unparsed.append({**row, "attempt": attempt})
            else:
                rows[number] = row
    return Asked(pd.DataFrame(rows), pd.DataFrame(unparsed, columns=UNPARSED), usage)


def _prefer_recorded(settings: Settings, requests: Requests) -> Requests:
    # Recorded responses are the answers: there is nobody to ask them anew.
    anew = settings.recorded and requests.cache == "refresh"
    return requests.model_copy(update={"cache": "use"}) if anew else requests


def _make_again(request: dict[str, Any], candidate: int, attempt: int) -> dict[str, Any]:
    seed = derive_choice_seed(request["seed"], f"choice {candidate}, attempt {attempt}")
    return {**request, "n": 1, "seed": seed}


def _to_row(prompt: tuple[str, str, int], candidate: int, answer: Answer) -> dict[str, Any]:
    action_id, action, variance = prompt
    text, why = read_whole(answer), explain_finish(answer.finish)
    parsed = parse_teacher(text)
    return {
        "action_id": action_id,
        "action": action,
        "moral_variance": variance,
        "candidate": candidate,
        "source": "teacher",
        "context": parsed.context if parsed else None,
        "rationale": parsed.rationale if parsed else None,
        "raw": answer.text,
        "why": why or (None if parsed else diagnose(text)),
    }


def _holds(kept: dict[int, Entry], texts: dict[int, Entry]) -> bool:
    return all(number in kept and kept[number].text == entry.text for number, entry in texts.items())


def baseline_request(params: Params, endpoint: Endpoint, action: str, moral_variance: int) -> dict[str, Any]:
    """Return the request for a baseline's best context."""
    settings = {"n": 1, "temperature": 0.0, "max_tokens": params.teacher.max_tokens, "seed": params.seed}
    return phrase_request(endpoint, teacher_prompt(action, moral_variance), **settings)
