"""Annotation servers for the tests marked slow: where they are installed, how one is started on this machine, and stopped."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from drot_utils.study.paths import ROOT

#: Names the folder of the tools' commands, such as ``/somewhere/venv/bin``.
FOLDER = "DROT_ANNOTATE"


def find_tool(name: str) -> str:
    """Return the path of a tool's command; skips the test where it is not installed."""
    path = Path(os.environ.get(FOLDER, ROOT / ".venv-annotate" / "bin")) / name
    if not path.exists():
        pytest.skip(f"no {name} in .venv-annotate or ${FOLDER}")
    return str(path)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(command: list[str], port: int, cwd: Path, **environment: str) -> Iterator[httpx.Client]:
    """Run a server while the block runs, for five minutes at most, and give a client of it."""
    with (cwd / "server.log").open("w") as log:
        server = subprocess.Popen(
            ["timeout", "300", *command], cwd=cwd, env={**os.environ, **environment}, stdout=log, stderr=log
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, follow_redirects=True) as client:
            _wait(client, server, cwd / "server.log")
            yield client
    finally:
        server.terminate()
        server.wait(30)


def _wait(client: httpx.Client, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 200
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        try:
            client.get("/")
            return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")
