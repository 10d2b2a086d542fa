import hashlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
from conftest import make_questions
from hypothesis import given
from hypothesis import strategies as st

from drot_utils import tokens


@pytest.fixture
def tiktoken(monkeypatch, tmp_path):
    """A package that counts words and would reach for a network if its file were not there."""
    package = ModuleType("tiktoken")
    package.__spec__ = SimpleNamespace(name="tiktoken")
    package.encoding_name_for_model = lambda model: {"gpt-4o": "o200k_base"}[model]
    package.get_encoding = lambda name: SimpleNamespace(encode=lambda text, disallowed_special: text.split())
    monkeypatch.setitem(sys.modules, "tiktoken", package)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: package.__spec__)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_without_tiktoken_it_is_an_estimate_and_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    count, how = tokens.open_counter("gpt-4o")
    assert count("sixteen letters!") == 4 and how == "estimated at 4 bytes a token"


def test_tiktoken_counts_where_its_file_is_at_hand_only(tiktoken):
    assert tokens.open_counter("gpt-4o")[1].startswith("estimated")
    address = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
    (tiktoken / hashlib.sha1(address.encode()).hexdigest()).touch()
    count, how = tokens.open_counter("gpt-4o")
    assert count("three little words") == 3 and how == "counted with tiktoken (o200k_base)"
    assert tokens.open_counter("a-local-model")[1].startswith("estimated")


def test_messages_have_a_frame_and_prompts_have_none():
    (chat,) = make_questions(1)
    assert tokens.count_prompt(chat, len) == len("Question 0?") + 8
    assert tokens.count_prompt({"prompt": "abc"}, len) == 3


@given(st.text(st.characters(codec="utf-8")), st.integers(1, 9))
def test_the_bound_holds_for_a_tokenizer_of_bytes(text, n):
    prompt, completion = tokens.bound_tokens({"prompt": text, "max_tokens": 20, "n": n})
    assert prompt >= len(text.encode()) >= tokens.estimate_tokens(text) and completion == 20 * n


def test_what_limits_an_answer():
    assert tokens.read_most({"max_tokens": 5}) == tokens.read_most({"max_completion_tokens": 5}) == 5
    assert tokens.read_most({}) is None and tokens.bound_tokens({"prompt": ""})[1] is None
