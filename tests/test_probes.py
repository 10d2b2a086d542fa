from conftest import USE, make_endpoint, make_questions
from fault_server import FaultServer

from drot_utils.ledger import read_ignored
from drot_utils.probes import probe_penalties

NOT_SEEN = "not seen to be ignored"


def test_a_penalty_that_changes_nothing_is_ignored(cache):
    (request,) = make_questions(1, n=3, presence_penalty=0.5, frequency_penalty=0.5)
    with FaultServer(deaf_to=("presence_penalty",)) as server:
        for _ in range(2):
            found = probe_penalties(request, make_endpoint(server.url), USE, cache)
            assert found == {"presence_penalty": "ignored", "frequency_penalty": NOT_SEEN}
    assert read_ignored(cache, "m") == {"presence_penalty": 1}  # the second time it is known
    sent = [(body["presence_penalty"], body["frequency_penalty"]) for _, body in server.asked]
    assert sent == [(0, 0), (2, 0), (0, 2)] and server.busiest == 1 and "n" not in server.asked[0][1]


def test_a_server_that_heeds_both_and_one_that_cannot_be_tried(cache):
    (request,) = make_questions(1, presence_penalty=0.5, frequency_penalty=0.5)
    with FaultServer() as server:
        assert set(probe_penalties(request, make_endpoint(server.url), USE, cache).values()) == {NOT_SEEN}
    assert read_ignored(cache, "m") == {}
    with FaultServer(model="other") as server:
        found = probe_penalties({**request, "seed": 2}, make_endpoint(server.url), USE, cache)
    assert "could not be tried: the server refused with HTTP 404" in found["presence_penalty"]


def test_what_is_not_sent_is_not_tried_and_no_text_shows_nothing(cache):
    (request,) = make_questions(1, presence_penalty=0.5)
    with FaultServer() as server:
        found = probe_penalties(request, make_endpoint(server.url), USE, cache)
        none = probe_penalties(make_questions(1)[0], make_endpoint(server.url), USE, cache)
    assert found == {"presence_penalty": NOT_SEEN, "frequency_penalty": "not sent"}
    assert set(none.values()) == {"not sent"} and all("frequency_penalty" not in b for _, b in server.asked)
    with FaultServer(refuses={"Question 1?": "content_filter"}) as server:
        request = make_questions(2, presence_penalty=0.5)[1]
        found = probe_penalties(request, make_endpoint(server.url), USE, cache)
    assert found["presence_penalty"] == NOT_SEEN  # two empty answers are not the same text
