"""Tests of `teacher`."""

import pytest
from conftest import USE, make_endpoint
from fault_server import FaultServer, expected_text

from drot_utils.data import corpora
from drot_utils.llm.cache import Cache, Entry, request_key
from drot_utils.method import teacher
from drot_utils.study.errors import EndpointError


def settings_for(smoke, server=None, kind="chat", **changes):
    endpoint = smoke.teacher.endpoint
    if server:
        endpoint = make_endpoint(server.url, kind=kind)
        changes = {"recorded": None, **changes}
    return smoke.teacher.model_copy(update={"endpoint": endpoint, **changes})


def test_the_key_is_the_whole_request(smoke):
    settings = settings_for(smoke)
    completions = settings.endpoint.model_copy(update={"kind": "completions"})
    request = teacher.make_request("Lying", 1, settings, 1)
    changed = [
        teacher.make_request("Lying", -1, settings, 1),
        teacher.make_request("Lying", 1, settings, 2),
        teacher.make_request("Lying", 1, settings_for(smoke, top_p=0.8), 1),
        teacher.make_request("Lying", 1, settings_for(smoke, endpoint=completions), 1),
    ]
    assert len({request_key(r) for r in [request, *changed]}) == 5
    assert request["presence_penalty"] == request["frequency_penalty"] == 0.5 and request["top_p"] == 0.9


def test_recorded_responses_answer_without_key_or_network(smoke, cache, actions):
    settings = settings_for(smoke)
    recorded = corpora.read_recorded("data/demo/teacher_plain.tsv", actions)
    some = actions.head(5)
    assert teacher.fill_cache(cache, recorded, settings, 1) == 790 * 2
    assert teacher.fill_cache(cache, recorded, settings, 1) == 0
    rich = corpora.read_recorded("data/demo/teacher_rich.tsv", actions)
    other = Cache(cache.path.with_name("other.sqlite"))
    teacher.fill_cache(other, recorded, settings, 1)
    # another file in the same place: it counts
    assert teacher.fill_cache(other, rich, settings, 1) == 790 * 2
    for mode in ("use", "only", "refresh"):
        asked = teacher.ask_teacher(some, settings, USE.model_copy(update={"cache": mode}), cache, 1)
        assert len(asked.rows) == 5 * 2 * 2 and asked.rows["context"].notna().all() and asked.unparsed.empty
        usage = asked.describe()
        assert (usage["requests"], usage["from_cache"], usage["asked"], usage["calls"]) == (10, 10, 0, 0)
        assert usage["prompt_tokens"] is usage["completion_tokens"] is usage["cost_usd"] is None
        assert usage["spent_usd"] == 0.0 and usage["unparsed_texts"] == 0
    first = recorded[(recorded["action_id"] == some["action_id"][0]) & (recorded["moral_variance"] == 1)]
    assert asked.rows["context"][0] == first.sort_values("choice")["context"].iloc[0].removesuffix(".")


def test_a_miss_without_a_key_names_request_and_variable(smoke, cache, actions):
    with pytest.raises(EndpointError) as caught:
        teacher.ask_teacher(actions.head(1), settings_for(smoke), USE, cache, 1)
    assert actions["action"][0] in str(caught.value) and "OPENAI_API_KEY" in str(caught.value)


@pytest.mark.parametrize("kind", ["chat", "completions"])
@pytest.mark.parametrize("n", ["given", "ignored"])
def test_a_real_endpoint(smoke, cache, actions, kind, n):
    with FaultServer(n=n) as server:
        settings = settings_for(smoke, server, kind)
        asked = teacher.ask_teacher(actions.head(2), settings, USE, cache, 7)
        again = teacher.ask_teacher(actions.head(2), settings, USE, Cache(cache.path), 7)
    calls = 4 if n == "given" else 8
    assert len(asked.rows) == 8 and asked.rows["context"].nunique() == 8 and len(server.asked) == calls
    assert (
        asked.rows["candidate"].tolist() == [0, 1] * 4 and asked.rows["moral_variance"].tolist() == [1, 1, -1, -1] * 2
    )
    assert asked.usage.calls == calls and asked.usage.completion_tokens == 8 * 7
    assert again.usage.calls == 0 and again.rows.equals(asked.rows)


BAD, GOOD = "I cannot help with that.", " fine\nExplanation: why"


def test_a_recorded_response_that_does_not_parse_is_a_kept_row(smoke, cache, actions):
    settings = settings_for(smoke)
    for variance in (1, -1):
        request = teacher.make_request(actions["action"][0], variance, settings, 1)
        cache.put([(request, {0: Entry(BAD), 1: Entry(GOOD)})])
    asked = teacher.ask_teacher(actions.head(1), settings, USE, cache, 1)
    assert asked.rows["context"].fillna("null").tolist() == ["null", "fine"] * 2
    assert asked.rows["raw"][0] == BAD and asked.usage.calls == 0  # nobody to ask again
    assert asked.unparsed[["moral_variance", "candidate", "attempt", "raw"]].values.tolist() == [
        [1, 0, 0, BAD],
        [-1, 0, 0, BAD],
    ]


def test_what_does_not_parse_is_asked_again_with_other_seeds(smoke, cache, actions):
    with FaultServer() as server:
        settings = settings_for(smoke, server, parse_retries=3)
        request = teacher.make_request(actions["action"][0], 1, settings, 1)
        cache.put([(request, {0: Entry(BAD), 1: Entry(GOOD)})])
        asked = teacher.ask_teacher(actions.head(1), settings, USE, cache, 1)
        again = teacher.ask_teacher(actions.head(1), settings, USE.model_copy(update={"cache": "only"}), cache, 1)
    assert [body["seed"] == 1 for _, body in server.asked] == [True, False] and "n" not in server.asked[1][1]
    assert asked.rows["context"].notna().all() and asked.rows["raw"][0] == expected_text(server.asked[1][1], 0)
    assert asked.unparsed[["candidate", "attempt", "raw"]].values.tolist() == [[0, 0, BAD]]
    assert asked.usage.requests == 3 and asked.describe()["unparsed_texts"] == 1
    assert again.rows.equals(asked.rows) and again.unparsed.equals(asked.unparsed)


@pytest.mark.parametrize("retries", [0, 2])
def test_what_never_parses_keeps_its_first_text_and_all_of_them_are_shown(smoke, cache, actions, retries):
    with FaultServer(text=BAD) as server:
        settings = settings_for(smoke, server, parse_retries=retries)
        asked = teacher.ask_teacher(actions.head(2), settings, USE, cache, 1)
    assert asked.rows["context"].isna().all() and (asked.rows["raw"] == BAD).all() and len(asked.rows) == 8
    assert asked.unparsed["attempt"].value_counts().to_dict() == dict.fromkeys(range(retries + 1), 8)
    assert len({body["seed"] for _, body in server.asked}) == (1 if not retries else 1 + 2 * retries)


def test_the_plan_asks_nobody(smoke, cache, actions):
    settings = settings_for(smoke)
    plan = teacher.plan_teacher(actions["action"].head(10), settings, USE, None, 1)
    assert (plan.requests, plan.to_ask, plan.choices) == (20, 20, 40) and plan.prompt_tokens > 20 * 50
    teacher.fill_cache(cache, corpora.read_recorded("data/demo/teacher_plain.tsv", actions), settings, 1)
    plan = teacher.plan_teacher(actions["action"].head(10), settings, USE, cache, 1)
    assert plan.to_ask == 0 and plan.cost_usd == 0.0


def test_trying_the_teacher(smoke, cache):
    with FaultServer(deaf_to=("presence_penalty", "frequency_penalty")) as server:
        settings = settings_for(smoke, server)
        found = teacher.try_teacher("Lying", settings, USE, cache, 1)
        asked = teacher.ask_teacher(corpora.read_actions("data/demo/actions.tsv").head(1), settings, USE, cache, 1)
    assert found == {"presence_penalty": "ignored", "frequency_penalty": "ignored"}
    assert asked.usage.ignored == {"presence_penalty": 1, "frequency_penalty": 1}


@pytest.mark.slow
def test_notebook_1_against_a_real_server(tmp_path, monkeypatch):
    pytest.importorskip("fastapi", reason="what `transformers serve` needs is not installed")
    from teacher_smoke import ACTIONS, run_smoke

    assert run_smoke(tmp_path)["rows"]["in"] == ACTIONS * 4


def test_how_an_answer_ended_decides_what_is_read(smoke, cache, actions):
    ends = {
        1: [("length", " fine\nExplanation: It is so. And th"), ("length", " fine\nExplanation: it is s")],
        -1: [("content_filter", " fine\nExplanation: why"), ("stop", " fine\nExplanation: why")],
    }

    def finish(body, choice):
        return ends[-1 if "unethical" in str(body) else 1][choice] if "n" in body else ("stop", BAD)

    with FaultServer(finish=finish) as server:
        settings = settings_for(smoke, server, parse_retries=1)
        asked = teacher.ask_teacher(actions.head(1), settings, USE, cache, 7)
    assert asked.rows["rationale"].fillna("null").tolist() == ["It is so", "null", "null", "why"]
    assert asked.rows["why"].fillna("").tolist() == [
        "max_tokens used up",
        "max_tokens used up",
        "content filter",
        "",
    ]
    assert asked.rows["raw"].tolist() == [text for variance in (1, -1) for _, text in ends[variance]]
    assert asked.unparsed["why"].tolist() == ["max_tokens used up", "content filter", "refusal", "refusal"]
    assert asked.describe()["cut_rows"] == 1 and len(server.asked) == 4
    assert asked.usage.unfinished == {"content filter": 1, "max_tokens used up": 2}


def test_a_refused_input_is_a_null_row_and_is_not_asked_again(smoke, cache, actions):
    first = actions["action"][0]
    with FaultServer(refuses={first: "content_policy_violation"}) as server:
        settings = settings_for(smoke, server)
        asked = teacher.ask_teacher(actions.head(2), settings, USE, cache, 7)
        again = teacher.ask_teacher(actions.head(2), settings, USE, cache, 7)
    assert asked.rows["context"].isna().tolist() == [True] * 4 + [False] * 4 and len(server.asked) == 4
    assert asked.unparsed["why"].value_counts().to_dict() == {"refused: content_policy_violation": 4}
    assert again.rows.equals(asked.rows) and asked.describe()["cut_rows"] == 0


def test_settings_that_are_null_are_not_sent(smoke, cache, actions):
    names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens")
    nothing = dict.fromkeys(names)
    with FaultServer(unknown=(*names, "max_completion_tokens")) as server:
        settings = settings_for(smoke, server, **nothing)
        asked = teacher.ask_teacher(actions.head(1), settings, USE, cache, 7)
        assert set(teacher.try_teacher("Lying", settings, USE, cache, 7).values()) == {"not sent"}
    assert asked.rows["context"].notna().all() and set(server.asked[0][1]) == {
        "model",
        "messages",
        "n",
        "seed",
    }


def test_some_that_never_end_do_not_stop_a_study_whose_others_do(smoke, cache, actions):
    def finish(body, choice):
        return ("stop", None) if "n" in body and choice == 0 else ("length", "")

    with FaultServer(finish=finish) as server:
        settings = settings_for(smoke, server, parse_retries=2)
        asked = teacher.ask_teacher(actions.head(3), settings, USE, cache, 7)
    assert asked.rows["context"].isna().tolist() == [False, True] * 6 and len(server.asked) == 6 + 2 * 6
    assert set(asked.unparsed["why"]) == {"max_tokens used up"}
