"""Probes: does a server heed the settings that its answers alone do not show?"""

from typing import Any

from drot_utils.cache import Cache
from drot_utils.endpoint import ask_all
from drot_utils.ledger import IGNORED, Line, enter, read_ignored
from drot_utils.settings import Endpoint, Requests
from drot_utils.usage import Usage

PENALTIES = ("presence_penalty", "frequency_penalty")
IGNORED_PENALTIES = " and ".join(PENALTIES)


def probe_penalties(
    request: dict[str, Any], endpoint: Endpoint, settings: Requests, cache: Cache
) -> tuple[bool, Usage]:
    """Ask one request twice, with the lowest penalties and with the highest: one text for both means that they are ignored.

    That texts differ does not prove the contrary, as the server may ignore the seed. The answers are cached like all
    others; what is found is entered into the ledger once.

    Parameters
    ----------
    request : dict
        As it is going to be asked, with a seed.

    Returns
    -------
    ignored : bool
    usage : Usage
    """
    one = {name: value for name, value in request.items() if name != "n"}
    both = [{**one, **dict.fromkeys(PENALTIES, value)} for value in (-2.0, 2.0)]
    (low, high), usage = ask_all(both, endpoint, settings, cache, "trying the penalties")
    ignored = low[0].text == high[0].text
    if ignored and IGNORED_PENALTIES not in read_ignored(cache, endpoint.model):
        enter(cache, Line(endpoint.model, endpoint.transport, IGNORED + IGNORED_PENALTIES))
    return ignored, usage
