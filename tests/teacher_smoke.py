"""Notebook 1 against a real server: ``transformers serve`` with the packaged SmolLM2 on loopback, 20 actions (`make teacher-smoke`).

The server does not heed `n`, and the model seldom keeps the form of the prompt: what the client does
about all of that is what this is for. A few minutes on two cores.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import write_params

from drot_utils.data.table import read_table
from drot_utils.engine.load import load_model
from drot_utils.study.params import ModelRef
from drot_utils.study.paths import ROOT, Run

ACTIONS = 20
START = 300  # seconds that the server has to load its model


def prepare_model(folder: Path) -> Path:
    """Put SmolLM2 into `folder`, told to sample: the server heeds temperature and `top_p` only then."""
    run = Run("demo")  # the demo's dequantized copy serves, if there is one
    name = "smollm2-135m-instruct"
    load_model(ModelRef(source="package", name=name), "student", run)
    place = shutil.copytree(run.work("base") / name, folder / name, copy_function=os.symlink)
    config = place / "generation_config.json"
    values = json.loads(config.read_text()) if config.exists() else {}
    config.unlink(missing_ok=True)  # the link, not the original
    config.write_text(json.dumps({**values, "do_sample": True}))
    return place


@contextmanager
def serve(model: Path, log: Path) -> Iterator[str]:
    """Run ``transformers serve`` on a free port of loopback while the block runs, and give the API's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--host", "127.0.0.1", "--port", str(port),
        "--device", "cpu", "--log-level", "error",
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as server:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    began = time.monotonic()
    while time.monotonic() - began < START and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")


def run_smoke(folder: Path) -> dict:
    """Run notebook 1 against the server, its output below `folder`, and return what the manifest says of it.

    Raises
    ------
    AssertionError
        When rows are missing, or what the server ignores was not noticed.
    """
    model = prepare_model(folder / "model")
    with serve(model, folder / "server.log") as url:
        endpoint = {
            "kind": "completions", "base_url": url, "model": str(model), "api_key_env": None, "concurrency": 2,
            "requests_per_minute": None, "tokens_per_minute": None, "timeout_s": 300, "max_retries": 2, "transport": "direct",
        }  # fmt: skip
        changes = {
            "teacher__endpoint": endpoint,
            "teacher__recorded": None,
            "teacher__max_tokens": 40,
            "teacher__parse_retries": 1,
        }
        params = write_params(
            folder / "params.yaml", "smoke", profile="teacher-smoke", corpus__seed_actions=ACTIONS, **changes
        )
        command = [
            sys.executable, "-m", "papermill", str(ROOT / "notebooks/01_seed_generation.ipynb"), str(folder / "01.ipynb"),
            "-p", "params_file", str(params), "--no-progress-bar",
        ]  # fmt: skip
        environment = {**os.environ, "DROT_OUTPUT": str(folder), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    os.environ["DROT_OUTPUT"] = str(folder)
    run = Run("teacher-smoke")
    rows = read_table(run.data("teacher"))
    stage = json.loads(run.manifest.read_text(encoding="utf-8"))["stages"]["01_seed_generation"]
    usage = stage["usage"]
    assert len(rows) == ACTIONS * 2 * 2 and rows["raw"].nunique() > ACTIONS * 2, "rows are missing, or all the same"
    assert usage["ignored"]["n: fewer choices than asked"] == ACTIONS * 2
    assert usage["completion_tokens"] > 0 and usage["cost_usd"] is None and usage["spent_usd"] is None
    assert usage["unparsed_texts"] >= rows["context"].isna().sum()
    return stage


def main() -> None:
    """Run in a temporary folder and print what came of it."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=os.environ.get("DROT_OUTPUT")) as folder:
        stage = run_smoke(Path(folder))
    print(json.dumps(stage, indent=2, sort_keys=True))
    print(f"teacher-smoke: {stage['summary']}, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
