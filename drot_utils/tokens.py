"""How many tokens a request takes, before it is sent: counted with `tiktoken` where that can be done offline, else estimated."""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

BYTES_A_TOKEN = 4  # English text under current tokenizers; an estimate, and said to be one
FRAME = 4  # tokens around a message, and to open the answer
#: Where tiktoken gets its encodings; it looks for them in its own folder first, under the SHA-1 of the address.
ENCODINGS = "https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"

Counter = Callable[[str], int]


def open_counter(model: str) -> tuple[Counter, str]:
    """Return what counts the tokens of a text for a model, and how it does that, in words."""
    estimate = (estimate_tokens, f"estimated at {BYTES_A_TOKEN} bytes a token")
    if importlib.util.find_spec("tiktoken") is None:
        return estimate
    import tiktoken

    try:
        name = tiktoken.encoding_name_for_model(model)
    except KeyError:
        return estimate
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = folder or str(Path(tempfile.gettempdir()) / "data-gym-cache")
    address = ENCODINGS.format(name=name)
    if not (Path(folder) / hashlib.sha1(address.encode()).hexdigest()).exists():
        return estimate  # tiktoken would fetch it: planning must not need a network
    encoding = tiktoken.get_encoding(name)
    return lambda text: len(encoding.encode(text, disallowed_special=())), f"counted with tiktoken ({name})"


def estimate_tokens(text: str) -> int:
    """Return a text's tokens, roughly."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)


def count_prompt(request: dict[str, Any], count: Counter) -> int:
    """Return the tokens that go in with a request."""
    texts = texts_of(request)
    return sum(count(text) for text in texts) + (FRAME * (len(texts) + 1) if "messages" in request else 0)


def read_most(request: dict[str, Any]) -> int | None:
    """Return the most tokens that one choice of a request may have, None when it sets no limit."""
    return request.get("max_completion_tokens") or request.get("max_tokens")


def bound_tokens(request: dict[str, Any]) -> tuple[int, int | None]:
    """Return the most tokens that can go in with a request (no tokenizer makes more than there are bytes) and come out (None:
    it sets no limit).
    """
    most = read_most(request)
    prompt = sum(len(text.encode("utf-8", "replace")) for text in texts_of(request))
    frame = 16 * (len(request.get("messages", [])) + 1)
    return prompt + frame, None if most is None else most * request.get("n", 1)


def texts_of(request: dict[str, Any]) -> list[str]:
    """Return the texts of a request's messages, or its prompt."""
    if "messages" not in request:
        return [str(request.get("prompt", ""))]
    return [str(message.get("content") or "") for message in request["messages"]]
