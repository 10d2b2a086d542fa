"""Probes: does a server heed the settings that its answers alone do not show?"""

from typing import Any

from drot_utils.cache import Cache
from drot_utils.endpoint import ask_all
from drot_utils.errors import EndpointError
from drot_utils.ledger import IGNORED, Line, enter, read_ignored
from drot_utils.settings import Endpoint, Requests

PENALTIES = ("presence_penalty", "frequency_penalty")
HIGHEST = 2.0


def probe_penalties(
    request: dict[str, Any], endpoint: Endpoint, settings: Requests, cache: Cache
) -> dict[str, str]:
    """Ask one request without penalties and with each of them at its highest: the same text means that it is ignored.

    Other texts do not prove the contrary, as the server may not heed the seed. One request goes out after the other, since
    some servers have one seed for all that is under way. The answers are cached like all others; what is found is entered
    into the ledger, once.

    Parameters
    ----------
    request : dict
        As it is going to be asked, with a seed.

    Returns
    -------
    dict of str
        For each penalty: ``ignored``, ``not seen to be ignored``, ``not sent`` (null), or why it could not be tried.
    """
    tried = [penalty for penalty in PENALTIES if penalty in request and endpoint.names.get(penalty, penalty)]
    one_by_one = endpoint.model_copy(update={"concurrency": 1, "transport": "direct"})
    plain = {name: value for name, value in request.items() if name != "n"} | dict.fromkeys(tried, 0.0)
    if not tried:
        return dict.fromkeys(PENALTIES, "not sent")
    try:
        bodies = [plain, *({**plain, penalty: HIGHEST} for penalty in tried)]
        ((without,), *others), _ = ask_all(bodies, one_by_one, settings, cache, "trying the penalties")
    except EndpointError as error:
        return dict.fromkeys(PENALTIES, f"could not be tried: {error.found}")
    found = dict.fromkeys(PENALTIES, "not sent")
    for penalty, (answer,) in zip(tried, others, strict=True):
        ignored = answer.text == without.text != ""
        found[penalty] = "ignored" if ignored else "not seen to be ignored"
        if ignored and penalty not in read_ignored(cache, endpoint.model):
            enter(cache, Line(endpoint.model, endpoint.transport, IGNORED + penalty))
    return found
