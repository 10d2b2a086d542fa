import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from drot_utils import corpora, teacher
from drot_utils.errors import DataError, TeacherError


@pytest.fixture
def settings(smoke):
    return smoke.teacher.model_copy(update={"max_retries": 0, "timeout_s": 5})


@pytest.fixture
def cache(tmp_path):
    return teacher.Cache(tmp_path / "cache.jsonl")


@pytest.fixture
def server():
    """An OpenAI-compatible endpoint on loopback that ignores `n`; remembers what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, request, self.headers["Authorization"]))
            text = f" place {request['seed']}\nExplanation: reason"
            choice = {"index": 0, "finish_reason": "stop"}
            chat = "chat" in self.path
            choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            body = {"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}  # fmt: skip
            data = json.dumps(body).encode()
            status = 401 if request["model"] == "forbidden" else 200
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/v1", asked
        httpd.shutdown()


def test_the_key_is_the_whole_request(settings):
    request = teacher.make_request("Lying", 1, settings, 1)
    changed = [
        teacher.make_request("Lying", -1, settings, 1),
        teacher.make_request("Lying", 1, settings, 2),
        teacher.make_request("Lying", 1, settings.model_copy(update={"top_p": 0.8}), 1),
        teacher.make_request("Lying", 1, settings.model_copy(update={"endpoint": "completions"}), 1),
    ]
    assert len({teacher.request_key(r) for r in [request, *changed]}) == 5
    assert request["presence_penalty"] == request["frequency_penalty"] == 0.5 and request["top_p"] == 0.9


def test_recorded_responses_answer_without_key_or_network(settings, cache, actions):
    recorded = corpora.read_recorded("data/demo/teacher_plain.tsv", actions)
    some = actions.head(5)
    assert teacher.fill_cache(cache, recorded, settings, 1) == 790 * 2
    assert teacher.fill_cache(cache, recorded, settings, 1) == 0
    rich = corpora.read_recorded("data/demo/teacher_rich.tsv", actions)
    other = teacher.Cache(cache.path.with_name("other.jsonl"))
    teacher.fill_cache(other, recorded, settings, 1)
    assert (
        teacher.fill_cache(other, rich, settings, 1) == 790 * 2
    )  # another file in the same place: it counts
    rows, usage = teacher.ask_teacher(some, settings, cache, 1)
    assert len(rows) == 5 * 2 * 2 and rows["context"].notna().all()
    assert usage == {
        "requests": 10,
        "from_cache": 10,
        "asked": 0,
        "prompt_tokens": None,
        "completion_tokens": None,
    }
    first = recorded[(recorded["action_id"] == some["action_id"][0]) & (recorded["moral_variance"] == 1)]
    assert rows["context"][0] == first.sort_values("choice")["context"].iloc[0].removesuffix(".")


def test_a_miss_without_a_key_names_request_and_variable(settings, cache, actions):
    with pytest.raises(TeacherError) as caught:
        teacher.ask_teacher(actions.head(1), settings, cache, 1)
    assert actions["action"][0] in str(caught.value) and "OPENAI_API_KEY" in str(caught.value)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_real_endpoint_that_ignores_n(settings, cache, actions, server, monkeypatch, endpoint):
    url, asked = server
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    settings = settings.model_copy(update={"base_url": url, "endpoint": endpoint})
    rows, usage = teacher.ask_teacher(actions.head(2), settings, cache, 7)
    assert len(rows) == 8 and rows.groupby(["action_id", "moral_variance"])["context"].nunique().eq(2).all()
    assert usage["asked"] == 4 and usage["prompt_tokens"] == 80 and usage["completion_tokens"] == 40
    assert len(asked) == 8 and asked[0][2] == "Bearer sk-secret"
    assert "sk-secret" not in cache.path.read_text()
    again, usage = teacher.ask_teacher(actions.head(2), settings, teacher.Cache(cache.path), 7)
    assert usage["asked"] == 0 and len(asked) == 8 and again.equals(rows)


def test_endpoint_errors_say_what_to_check(settings, cache, actions, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    for changes in ({"base_url": "http://127.0.0.1:9/v1"}, {"base_url": server[0], "model": "forbidden"}):
        with pytest.raises(TeacherError, match="check the address") as caught:
            teacher.ask_teacher(actions.head(1), settings.model_copy(update=changes), cache, 1)
        assert "sk-secret" not in str(caught.value)


def test_a_response_that_does_not_parse_is_a_kept_row(settings, cache, actions):
    for variance in (1, -1):
        key = teacher.request_key(teacher.make_request(actions["action"][0], variance, settings, 1))
        cache.put(key, teacher.Response(["I cannot help with that.", " fine\nExplanation: why"]))
    rows, _ = teacher.ask_teacher(actions.head(1), settings, cache, 1)
    assert (
        rows["context"].fillna("null").tolist() == ["null", "fine"] * 2
        and rows["raw"][0] == "I cannot help with that."
    )


def test_a_cut_short_last_line_is_dropped_and_any_other_corruption_named(cache):
    cache.put_all([("a", teacher.Response(["x"])), ("b", teacher.Response(["y"]))])
    text = cache.path.read_text()
    cache.path.write_text(text[:-20])
    assert set(teacher.Cache(cache.path).responses) == {"a"}
    assert cache.path.read_text() == text.splitlines(keepends=True)[0]
    cache.path.write_text("garbage\n" + text)
    with pytest.raises(DataError, match=r"line 1.*\n.*ask this request again"):
        teacher.Cache(cache.path)
