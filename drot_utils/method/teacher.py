"""The teacher: what it is asked, and the rows that its answers make (section 3.1, appendix A)."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from drot_utils.data.corpora import read_recorded
from drot_utils.data.parsing import diagnose, parse_teacher
from drot_utils.llm.accounts import Forecast, Usage, forecast
from drot_utils.llm.cache import Answer, Cache, request_key
from drot_utils.llm.client import ask_all
from drot_utils.llm.replies import REFUSED, derive_choice_seed, explain_finish, phrase_request, read_whole
from drot_utils.method.prompts import teacher_prompt, teacher_response
from drot_utils.study.params import Endpoint, Params, Requests
from drot_utils.study.record import Study

#: What a request says of sampling, where it is not null.
SAMPLING = ["temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens"]
ROW = ["action_id", "action", "moral_variance", "candidate", "source", "context", "rationale", "raw", "why"]
UNPARSED = ["action_id", "action", "moral_variance", "candidate", "attempt", "raw", "why"]


@dataclass(frozen=True)
class Asked:
    """What the teacher said.

    Attributes
    ----------
    rows : DataFrame
        One row a choice: columns `ROW`. One that did not parse in any try has the raw text of the first and no context
        and rationale; ``why`` says why. It also marks an answer that was cut and whose whole sentences were read, and is
        null for all others.
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


def make_request(params: Params, action: str, moral_variance: int) -> dict[str, Any]:
    """Return the whole request for one action and moral variance, as the endpoint gets it."""
    settings, prompt = params.teacher, teacher_prompt(action, moral_variance)
    sampling = {name: getattr(settings, name) for name in SAMPLING}
    return phrase_request(settings.endpoint, prompt, n=settings.contexts_per_variance, **sampling, seed=params.seed)


def baseline_request(params: Params, endpoint: Endpoint, action: str, moral_variance: int) -> dict[str, Any]:
    """Return the request for a baseline's best context."""
    settings = {"n": 1, "temperature": 0.0, "max_tokens": params.teacher.max_tokens, "seed": params.seed}
    return phrase_request(endpoint, teacher_prompt(action, moral_variance), **settings)


def list_requests(params: Params, actions: Iterable[str], n: int | None = None) -> list[dict[str, Any]]:
    """Return the requests for actions, in both directions, for `n` choices each (`teacher.contexts_per_variance`)."""
    few = {} if n is None else {"n": n}
    return [make_request(params, action, variance) | few for action in actions for variance in (1, -1)]


def choose_requests(params: Params) -> Requests:
    """Return how the cache is used: recorded responses are the answers, so there is nobody to ask them anew."""
    anew = params.teacher.recorded and params.requests.cache == "refresh"
    return params.requests.model_copy(update={"cache": "use"}) if anew else params.requests


def fill_cache(study: Study, actions: pd.DataFrame) -> int:
    """Put the responses of ``teacher.recorded``, if any, into the cache as the answers to this study's requests.

    `actions` are all of `corpora.read_actions`. Returns how many requests had no answer, or another one, before.
    """
    settings = study.params.teacher
    if settings.recorded is None:
        return 0
    study.note_data(settings.recorded)
    recorded, answers = read_recorded(settings.recorded, actions), []
    for (action, variance), group in recorded.groupby(["action", "moral_variance"], sort=False):
        group = group.sort_values("choice").head(settings.contexts_per_variance)
        texts = [teacher_response(c, r) for c, r in zip(group["context"], group["rationale"], strict=True)]
        answers.append((make_request(study.params, action, int(variance)), dict(enumerate(map(Answer, texts)))))
    cache = Cache(study.run.answers)
    kept = cache.read(request_key(request) for request, _ in answers)
    new = [(body, texts) for body, texts in answers if not texts.items() <= kept.get(request_key(body), {}).items()]
    cache.put(new, replace=True)
    return len(new)


def plan(study: Study, actions: pd.DataFrame) -> Forecast:
    """Return what asking for these actions will take (see `accounts.Forecast`); nothing is asked."""
    params = study.params
    bodies = list_requests(params, actions["action"])
    return forecast(bodies, params.teacher.endpoint, choose_requests(params), Cache(study.run.answers))


def ask(study: Study, actions: pd.DataFrame, n: int | None = None) -> Asked:
    """Ask for the contexts of all actions in both directions, `n` of each (default: `teacher.contexts_per_variance`).

    What is in the cache is not asked; the first choices are the same whatever `n` is.
    Texts that do not parse are asked again, each `teacher.parse_retries` times at most, with seeds of their own; recorded
    ones are not, nor what the server refused for its content. `client.ask_all` says what may be raised.
    """
    settings, requests, cache = study.params.teacher, choose_requests(study.params), Cache(study.run.answers)
    n = n or settings.contexts_per_variance
    bodies = list_requests(study.params, actions["action"], n)
    answers, usage = ask_all(bodies, settings.endpoint, requests, cache, "asking the teacher")
    prompts = [(row.action_id, row.action, variance) for row in actions.itertuples() for variance in (1, -1)]
    rows = [_to_row((*prompts[k // n], k % n), answers[k // n][k % n]) for k in range(len(prompts) * n)]
    unparsed = [{**row, "attempt": 0} for row in rows if row["context"] is None]
    for attempt in range(1, 1 if settings.recorded else settings.parse_retries + 1):
        bad = [k for k, row in enumerate(rows) if row["context"] is None and not row["why"].startswith(REFUSED)]
        seeds = [derive_choice_seed(bodies[k // n]["seed"], f"choice {k % n}, attempt {attempt}") for k in bad]
        again = [{**bodies[k // n], "n": 1, "seed": seed} for k, seed in zip(bad, seeds, strict=True)]
        if not again:
            break
        answers, more = ask_all(again, settings.endpoint, requests, cache, "asking again what did not parse")
        usage += more
        for k, (answer,) in zip(bad, answers, strict=True):
            row = _to_row((*prompts[k // n], k % n), answer)
            if row["context"] is None:
                unparsed.append({**row, "attempt": attempt})
            else:
                rows[k] = row
    return Asked(pd.DataFrame(rows), pd.DataFrame(unparsed, columns=UNPARSED), usage)


def _to_row(asked: tuple[str, str, int, int], answer: Answer) -> dict[str, Any]:
    text = read_whole(answer)
    parsed = parse_teacher(text)
    read = (parsed.context, parsed.rationale) if parsed else (None, None)
    why = explain_finish(answer.finish) or (None if parsed else diagnose(text))
    return dict(zip(ROW, (*asked, "teacher", *read, answer.text, why), strict=True))
