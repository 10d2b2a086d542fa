"""Asking a server: our client, with its cache and accounts, against plain ``AsyncOpenAI`` under a semaphore, and distilabel's.

The server is a process of its own that answers after 50 ms. distilabel does not go with our versions: it is used in an
environment of its own, made in a temporary folder (or given: ``DROT_DISTILABEL=path/to/python``), and left out, with the reason,
where it cannot be installed. A cached replay of 100,000 requests is timed, too.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import AsyncOpenAI

from benchmarks.harness import read_options, report
from drot_utils.llm.cache import Answer, Cache
from drot_utils.llm.client import ask_all
from drot_utils.study.params import Endpoint, Requests
from drot_utils.study.paths import ROOT

CONCURRENCY = 64
LATENCY = 0.05  # seconds
REPLAYED = 100_000
USE = Requests(cache="use", prices="data/prices.yaml", budget_usd=None)
#: What distilabel's environment runs: batches of as many requests as ours has under way, after one that is not timed.
DISTILABEL = """
import sys, time
from distilabel.models import OpenAILLM
url, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
llm = OpenAILLM(model="m", base_url=url, api_key="none")
llm.load()
ask = lambda ks: llm.generate(inputs=[[{"role": "user", "content": f"Question {k}?"}] for k in ks], max_new_tokens=128, temperature=1.0)
ask(range(size))
began, texts = time.perf_counter(), []
for start in range(0, count, size):
    texts += [output["generations"][0] for output in ask(range(start, min(count, start + size)))]
print(time.perf_counter() - began, len(texts), sum(map(bool, texts)))
"""


def main() -> None:
    """Run the benchmark."""
    options = read_options(__doc__)
    count = 2_000 if options.quick else 6_000
    requests = [_question(k) for k in range(count)]
    rates: dict[str, list[float]] = {"ours": [], "AsyncOpenAI, semaphore": []}
    with tempfile.TemporaryDirectory() as folder, _server() as url, _find_distilabel(Path(folder)) as peer:
        for k in range(max(3, options.rounds)):
            sides = {"ours": lambda k=k: _ask_ours(url, requests, Path(folder) / f"{k}.sqlite")}
            sides["AsyncOpenAI, semaphore"] = lambda: asyncio.run(_ask_plainly(url, requests))
            texts = {}
            for side in list(sides)[k % 2 :: 1] + list(sides)[: k % 2]:
                began = time.perf_counter()
                texts[side] = sides[side]()
                rates[side].append(count / (time.perf_counter() - began))
            assert texts["ours"] == texts["AsyncOpenAI, semaphore"], "the two got different answers"
            if peer:
                rates.setdefault("distilabel", []).append(_ask_distilabel(peer, url, count))
        replay = _replay(Path(folder) / "replay.sqlite")
    print(f"{REPLAYED:,} requests from the cache in {replay:.1f} s")
    notes = {"requests": count, "concurrency": CONCURRENCY, "latency_s": LATENCY, "replay_requests": REPLAYED}
    notes["replay_seconds"] = round(replay, 1)
    if peer:
        median = {side: sorted(values)[len(values) // 2] for side, values in rates.items()}
        notes["ratio_to_distilabel"] = round(median["ours"] / median["distilabel"], 3)
    report("teacher", rates, "requests/s", quick=options.quick, notes=notes)


def _question(number: int) -> dict:
    messages = [{"role": "user", "content": f"Question {number}?"}]
    return {"model": "m", "messages": messages, "temperature": 1.0, "max_tokens": 128, "seed": 1}


@contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, str(ROOT / "tests" / "fault_server.py"), "--latency", str(LATENCY)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.stdin.close()


def _ask_ours(url: str, requests: list[dict], path: Path) -> list[str]:
    endpoint = Endpoint(
        kind="chat", base_url=url, model="m", api_key_env=None, concurrency=CONCURRENCY, requests_per_minute=None,
        tokens_per_minute=None, timeout_s=60, max_retries=5, transport="direct",
    )  # fmt: skip
    answers, usage = ask_all(requests, endpoint, USE, Cache(path), "asking")
    assert usage.calls == len(requests) and usage.completion_tokens == 7 * len(requests)
    return [group[0].text for group in answers]


async def _ask_plainly(url: str, requests: list[dict]) -> list[str]:
    semaphore = asyncio.Semaphore(CONCURRENCY)
    async with AsyncOpenAI(api_key="none", base_url=url) as client:
        return await asyncio.gather(*(_ask_one(client, semaphore, request) for request in requests))


async def _ask_one(client: AsyncOpenAI, semaphore: asyncio.Semaphore, request: dict) -> str:
    async with semaphore:
        return (await client.chat.completions.create(**request)).choices[0].message.content


@contextmanager
def _find_distilabel(folder: Path) -> Iterator[str | None]:
    python = os.environ.get("DROT_DISTILABEL")
    if python is None:
        python = str(folder / "distilabel" / "bin" / "python")
        print("making an environment for distilabel (some minutes)")
        for command in (
            [sys.executable, "-m", "venv", str(folder / "distilabel")],
            [python, "-m", "pip", "install", "--quiet", "distilabel[openai]", "requests"],  # which it imports unasked,
        ):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
            except (subprocess.SubprocessError, OSError) as error:
                said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
                print(f"distilabel is left out: it could not be installed ({' '.join(said)})")
                python = None
                break
    yield python


def _ask_distilabel(python: str, url: str, count: int) -> float:
    command = [python, "-c", DISTILABEL, url, str(count), str(CONCURRENCY)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=550, env=environment)
    seconds, texts, whole = done.stdout.split()[-3:]
    assert int(texts) == int(whole) == count, "distilabel lost answers"
    return count / float(seconds)


def _replay(path: Path) -> float:
    cache, requests = Cache(path), [_question(k) for k in range(REPLAYED)]
    cache.put((request, {0: Answer(f"Answer {k}", "stop", 10, 7, "m-1")}) for k, request in enumerate(requests))
    endpoint = Endpoint(
        kind="chat", base_url="http://127.0.0.1:9/v1", model="m", api_key_env=None, concurrency=1, requests_per_minute=None,
        tokens_per_minute=None, timeout_s=1, max_retries=0, transport="direct",
    )  # fmt: skip
    began = time.perf_counter()
    answers, _ = ask_all(requests, endpoint, USE.model_copy(update={"cache": "only"}), cache, "replaying")
    took = time.perf_counter() - began
    assert [group[0].text for group in answers[:: REPLAYED // 10]] == [
        f"Answer {k}" for k in range(0, REPLAYED, REPLAYED // 10)
    ]
    return took


if __name__ == "__main__":
    main()
