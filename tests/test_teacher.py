"""Tests of `teacher`."""

import pytest
from conftest import make_endpoint
from fault_server import FaultServer, expected_text

from drot_utils.data import corpora
from drot_utils.llm.cache import Answer, Cache, request_key
from drot_utils.method import teacher
from drot_utils.study.errors import EndpointError
from drot_utils.study.record import Study


@pytest.fixture
def open_teacher(study):
    """Return the study with another teacher: at a server, or with some settings changed."""

    def change(server=None, kind="chat", cache="use", **changes):
        if server:
            changes = {"endpoint": make_endpoint(server.url, kind=kind), "recorded": None, **changes}
        teacher = study.params.teacher.model_copy(update=changes)
        requests = study.params.requests.model_copy(update={"cache": cache})
        params = study.params.model_copy(update={"teacher": teacher, "requests": requests, "seed": 7})
        return Study(params, study.run, "test")

    return change


@pytest.fixture
def kept(study):
    """The study's cache."""
    return Cache(study.run.answers)


def test_the_key_is_the_whole_request(open_teacher):
    params = open_teacher().params
    completions = params.teacher.endpoint.model_copy(update={"kind": "completions"})
    request = teacher.make_request(params, "Lying", 1)
    changed = [
        teacher.make_request(params, "Lying", -1),
        teacher.make_request(params.model_copy(update={"seed": 2}), "Lying", 1),
        teacher.make_request(open_teacher(top_p=0.8).params, "Lying", 1),
        teacher.make_request(open_teacher(endpoint=completions).params, "Lying", 1),
    ]
    assert len({request_key(r) for r in [request, *changed]}) == 5
    assert request["presence_penalty"] == request["frequency_penalty"] == 0.5 and request["top_p"] == 0.9


def test_recorded_responses_answer_without_key_or_network(open_teacher, actions):
    study = open_teacher(recorded="data/demo/teacher_rich.tsv")
    assert teacher.fill_cache(study, actions) == 910 * 2
    assert teacher.fill_cache(study, actions) == 0
    plain = open_teacher(recorded="data/demo/teacher_plain.tsv")
    assert teacher.fill_cache(plain, actions) == 910 * 2  # another file in the same place: it counts
    assert list(plain.record["data_sha256"]) == ["data/demo/teacher_plain.tsv"]
    some = actions.head(5)
    for mode in ("use", "only", "refresh"):
        asked = teacher.ask(open_teacher(recorded="data/demo/teacher_plain.tsv", cache=mode), some)
        assert len(asked.rows) == 5 * 2 * 2 and asked.rows["context"].notna().all() and asked.unparsed.empty
        usage = asked.describe()
        assert (usage["requests"], usage["from_cache"], usage["asked"], usage["calls"]) == (10, 10, 0, 0)
        assert usage["prompt_tokens"] is usage["completion_tokens"] is usage["cost_usd"] is None
        assert usage["spent_usd"] == 0.0 and usage["unparsed_texts"] == 0
    recorded = corpora.read_recorded("data/demo/teacher_plain.tsv", actions)
    first = recorded[(recorded["action_id"] == some["action_id"][0]) & (recorded["moral_variance"] == 1)]
    assert asked.rows["context"][0] == first.sort_values("choice")["context"].iloc[0].removesuffix(".")


def test_a_miss_without_a_key_names_request_and_variable(open_teacher, actions):
    with pytest.raises(EndpointError) as caught:
        teacher.ask(open_teacher(), actions.head(1))
    assert actions["action"][0] in str(caught.value) and "OPENAI_API_KEY" in str(caught.value)


@pytest.mark.parametrize("kind", ["chat", "completions"])
@pytest.mark.parametrize("n", ["given", "ignored"])
def test_a_real_endpoint(open_teacher, actions, kind, n):
    with FaultServer(n=n) as server:
        study = open_teacher(server, kind)
        asked = teacher.ask(study, actions.head(2))
        again = teacher.ask(study, actions.head(2))
    calls = 4 if n == "given" else 8
    assert len(asked.rows) == 8 and asked.rows["context"].nunique() == 8 and len(server.asked) == calls
    assert (
        asked.rows["candidate"].tolist() == [0, 1] * 4 and asked.rows["moral_variance"].tolist() == [1, 1, -1, -1] * 2
    )
    assert asked.usage.calls == calls and asked.usage.completion_tokens == 8 * 7
    assert again.usage.calls == 0 and again.rows.equals(asked.rows)


BAD, GOOD = "I cannot help with that.", " fine\nExplanation: why"


def test_a_recorded_response_that_does_not_parse_is_a_kept_row(open_teacher, kept, actions):
    study = open_teacher()
    for variance in (1, -1):
        request = teacher.make_request(study.params, actions["action"][0], variance)
        kept.put([(request, {0: Answer(BAD), 1: Answer(GOOD)})])
    asked = teacher.ask(study, actions.head(1))
    assert asked.rows["context"].fillna("null").tolist() == ["null", "fine"] * 2
    assert asked.rows["raw"][0] == BAD and asked.usage.calls == 0  # nobody to ask again
    assert asked.unparsed[["moral_variance", "candidate", "attempt", "raw"]].values.tolist() == [
        [1, 0, 0, BAD],
        [-1, 0, 0, BAD],
    ]


def test_what_does_not_parse_is_asked_again_with_other_seeds(open_teacher, kept, actions):
    with FaultServer() as server:
        study = open_teacher(server, parse_retries=3)
        request = teacher.make_request(study.params, actions["action"][0], 1)
        kept.put([(request, {0: Answer(BAD), 1: Answer(GOOD)})])
        asked = teacher.ask(study, actions.head(1))
        again = teacher.ask(open_teacher(server, parse_retries=3, cache="only"), actions.head(1))
    assert [body["seed"] == 7 for _, body in server.asked] == [True, False] and "n" not in server.asked[1][1]
    assert asked.rows["context"].notna().all() and asked.rows["raw"][0] == expected_text(server.asked[1][1], 0)
    assert asked.unparsed[["candidate", "attempt", "raw"]].values.tolist() == [[0, 0, BAD]]
    assert asked.usage.requests == 3 and asked.describe()["unparsed_texts"] == 1
    assert again.rows.equals(asked.rows) and again.unparsed.equals(asked.unparsed)


@pytest.mark.parametrize("retries", [0, 2])
def test_what_never_parses_keeps_its_first_text_and_all_of_them_are_shown(open_teacher, actions, retries):
    with FaultServer(text=BAD) as server:
        asked = teacher.ask(open_teacher(server, parse_retries=retries), actions.head(2))
    assert asked.rows["context"].isna().all() and (asked.rows["raw"] == BAD).all() and len(asked.rows) == 8
    assert asked.unparsed["attempt"].value_counts().to_dict() == dict.fromkeys(range(retries + 1), 8)
    assert len({body["seed"] for _, body in server.asked}) == (1 if not retries else 1 + 2 * retries)


def test_the_plan_asks_nobody(open_teacher, actions):
    study = open_teacher()
    plan = teacher.plan(study, actions.head(10))
    assert (plan.requests, plan.to_ask, plan.choices) == (20, 20, 40) and plan.prompt_tokens > 20 * 50
    teacher.fill_cache(study, actions)
    plan = teacher.plan(study, actions.head(10))
    assert plan.to_ask == 0 and plan.cost_usd == 0.0


@pytest.mark.slow
def test_notebook_1_against_a_real_server(tmp_path, monkeypatch):
    pytest.importorskip("fastapi", reason="what `transformers serve` needs is not installed")
    from teacher_smoke import ACTIONS, run_smoke

    assert run_smoke(tmp_path)["rows"]["in"] == ACTIONS * 4


def test_how_an_answer_ended_decides_what_is_read(open_teacher, actions):
    ends = {
        1: [("length", " fine\nExplanation: It is so. And th"), ("length", " fine\nExplanation: it is s")],
        -1: [("content_filter", " fine\nExplanation: why"), ("stop", " fine\nExplanation: why")],
    }

    def finish(body, choice):
        return ends[-1 if "unethical" in str(body) else 1][choice] if "n" in body else ("stop", BAD)

    with FaultServer(finish=finish) as server:
        study = open_teacher(server, parse_retries=1)
        asked = teacher.ask(study, actions.head(1))
    assert asked.rows["rationale"].fillna("null").tolist() == ["It is so", "null", "null", "why"]
    assert asked.rows["why"].fillna("").tolist() == ["max_tokens used up", "max_tokens used up", "content filter", ""]
    assert asked.rows["raw"].tolist() == [text for variance in (1, -1) for _, text in ends[variance]]
    assert asked.unparsed["why"].tolist() == ["max_tokens used up", "content filter", "refusal", "refusal"]
    assert asked.describe()["cut_rows"] == 1 and len(server.asked) == 4
    assert asked.usage.unfinished == {"content filter": 1, "max_tokens used up": 2}


def test_a_refused_input_is_a_null_row_and_is_not_asked_again(open_teacher, actions):
    first = actions["action"][0]
    with FaultServer(refuses={first: "content_policy_violation"}) as server:
        study = open_teacher(server)
        asked = teacher.ask(study, actions.head(2))
        again = teacher.ask(study, actions.head(2))
    assert asked.rows["context"].isna().tolist() == [True] * 4 + [False] * 4 and len(server.asked) == 4
    assert asked.unparsed["why"].value_counts().to_dict() == {"refused: content_policy_violation": 4}
    assert again.rows.equals(asked.rows) and asked.describe()["cut_rows"] == 0


def test_settings_that_are_null_are_not_sent(open_teacher, actions):
    names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens")
    nothing = dict.fromkeys(names)
    with FaultServer(unknown=(*names, "max_completion_tokens")) as server:
        study = open_teacher(server, **nothing)
        asked = teacher.ask(study, actions.head(1))
    assert asked.rows["context"].notna().all() and set(server.asked[0][1]) == {"model", "messages", "n", "seed"}


def test_some_that_never_end_do_not_stop_a_study_whose_others_do(open_teacher, actions):
    def finish(body, choice):
        return ("stop", None) if "n" in body and choice == 0 else ("length", "")

    with FaultServer(finish=finish) as server:
        study = open_teacher(server, parse_retries=2)
        asked = teacher.ask(study, actions.head(3))
    assert asked.rows["context"].isna().tolist() == [False, True] * 6 and len(server.asked) == 6 + 2 * 6
    assert set(asked.unparsed["why"]) == {"max_tokens used up"}
