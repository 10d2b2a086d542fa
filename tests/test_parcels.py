import json

from conftest import make_questions

from drot_utils import parcels
from drot_utils.answers import Work
from drot_utils.cache import Cache, request_key


def open_works(count, **changes):
    return [Work(request_key(r), r, list(range(r["n"]))) for r in make_questions(count, **changes)]


def test_work_is_cut_to_sizes_that_the_server_takes(monkeypatch):
    monkeypatch.setattr(parcels, "MOST_LINES", 4)
    assert [len(part) for part in parcels.cut_work(open_works(10))] == [4, 4, 2]
    monkeypatch.setattr(parcels, "MOST_LINES", 100)
    monkeypatch.setattr(parcels, "MOST_BYTES", 1000)
    parts = list(parcels.cut_work(open_works(10)))
    assert [len(part) for part in parts] == [2] * 5
    assert list(parcels.cut_work([])) == []


def test_choices_that_come_one_by_one_are_lines_of_their_own():
    one, two = open_works(2, n=3)
    one.alone = True
    (part,) = parcels.cut_work([one, two])
    assert [work.missing for work in part] == [[0], [1], [2], [0, 1, 2]]


def test_a_parcel_is_written_down_before_it_is_sent(cache):
    works = open_works(3, n=2)
    parcel = parcels.pack(works, "/v1/chat/completions", "there", cache)
    lines = [json.loads(line) for line in parcel.path(cache).read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == list(parcel.lines) and lines[0][
        "url"
    ] == "/v1/chat/completions"
    assert [line["body"] for line in lines] == [work.outgoing() for work in works]
    other = Cache(cache.path)
    assert parcels.list_parcels("there", other) == [parcel] and parcels.list_parcels("elsewhere", other) == []
    found = parcels.find_request(works[1].key, other)
    assert found == {name: value for name, value in works[1].request.items() if name != "n"}
    known = parcels.note_id(parcel, "batch-1", cache)
    assert parcels.list_parcels("there", other) == [known] and known.id == "batch-1"
    parcels.forget(known, cache)
    assert parcels.list_parcels("there", other) == [] and not parcel.path(cache).exists()
    assert other.query("SELECT count(*) FROM lines") == [(0,)]
