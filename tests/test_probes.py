import pytest
from conftest import USE, make_endpoint, make_questions
from fault_server import FaultServer

from drot_utils.ledger import read_ignored
from drot_utils.probes import IGNORED_PENALTIES, probe_penalties


@pytest.mark.parametrize("heeded", [True, False])
def test_penalties_that_change_nothing_are_ignored(cache, heeded):
    (request,) = make_questions(1, n=3)
    with FaultServer(penalties=heeded) as server:
        for _ in range(2):
            ignored, usage = probe_penalties(request, make_endpoint(server.url), USE, cache)
            assert ignored == (not heeded)
    assert len(server.asked) == 2 and usage.calls == 0  # the second time it is known
    assert read_ignored(cache, "m") == ({} if heeded else {IGNORED_PENALTIES: 1})
    assert {body["presence_penalty"] for _, body in server.asked} == {-2.0, 2.0} and "n" not in server.asked[
        0
    ][1]
