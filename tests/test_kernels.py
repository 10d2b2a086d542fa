"""Tests of `kernels`: a server, and what becomes of its kernels when something dies."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_runner import small

from drot_utils.study import kernels, runner
from drot_utils.study.errors import DrotError
from drot_utils.study.paths import Run

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or Path("/dev/nvidiactl").exists(), reason="Linux without a GPU"
)


def wait_until(true):
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def is_gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server below a folder with a long name, and its socket."""
    folder = tmp_path_factory.mktemp("run") / ("long" * 30)
    folder.mkdir()
    before = set(psutil.Process().children())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(kernels.KERNELS, raising=False)
        with kernels.kernel_server(folder / "socket", dict(os.environ)) as served:
            (process,) = set(psutil.Process().children()) - before
            patch.setenv(kernels.KERNELS, served[kernels.KERNELS])
            yield process
    wait_until(lambda: is_gone(process))


def open_kernel(server, tmp_path, *manager):
    """Ask for a kernel without a manager, or through a command; return what was started, and the kernel."""
    file = tmp_path / "connection.json"
    ports = {f"{name}_port": 0 for name in ("shell", "iopub", "stdin", "control", "hb")}
    file.write_text(json.dumps({"transport": "tcp", "ip": "127.0.0.1", "key": "", **ports}))
    before = set(server.children())
    command = [part.format(connection_file=file) for part in kernels.kernel_command()]
    asker = subprocess.Popen([*manager, *command])
    wait_until(lambda: set(server.children()) - before)
    (kernel,) = set(server.children()) - before
    return asker, kernel


def test_a_kernel_has_the_libraries_not_the_package_and_the_askers_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DROT_TEST", "ä")
    source = (
        "import os, sys\n"
        "print('torch' in sys.modules, any(name.startswith('drot') for name in sys.modules), os.environ['DROT_TEST'],\n"
        "      os.getppid(), os.getcwd())"
    )
    executed = runner.execute(small(tmp_path, monkeypatch, source), "params/smoke.yaml", Run("smoke"))
    (said,) = [o["text"] for c in json.loads(executed.read_text())["cells"] for o in c["outputs"]]
    assert said == [f"True False ä {server.pid} {runner.ROOT}\n"]


def test_a_kernel_that_was_killed_is_seen(server, tmp_path, monkeypatch):
    killed = small(tmp_path, monkeypatch, "import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(DrotError, match="kernel died"):
        runner.execute(killed, "params/smoke.yaml", Run("smoke"))


def test_what_asked_ends_with_its_kernel_and_takes_it_along(server, tmp_path):
    asker, kernel = open_kernel(server, tmp_path)
    kernel.kill()
    asker.wait(60)
    asker, kernel = open_kernel(server, tmp_path)
    asker.kill()
    wait_until(lambda: is_gone(kernel))
    asker.wait()


def test_a_kernel_ends_with_its_manager(server, tmp_path):
    start = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    manager, kernel = open_kernel(server, tmp_path, sys.executable, "-c", start)
    manager.kill()
    manager.wait()
    wait_until(lambda: is_gone(kernel))


def test_without_its_server_a_kernel_is_fresh(tmp_path, monkeypatch):
    monkeypatch.setenv(kernels.KERNELS, str(tmp_path / "socket"))
    source = "import sys\nprint('torch' in sys.modules)"
    executed = runner.execute(small(tmp_path, monkeypatch, source), "params/smoke.yaml", Run("smoke"))
    assert "False" in executed.read_text()


def test_fresh_kernels_by_choice(tmp_path, monkeypatch):
    monkeypatch.setenv(kernels.KERNELS, "fresh")
    with kernels.kernel_server(tmp_path / "socket", {}) as served:
        assert served == {}
    assert kernels.kernel_command()[1:3] == ["-m", "ipykernel_launcher"]


def test_a_kernel_does_not_need_its_server_any_more_but_the_one_that_asked(server, tmp_path):
    """Last, as it ends the server."""
    asker, kernel = open_kernel(server, tmp_path)
    server.kill()
    server.wait(60)
    with pytest.raises(subprocess.TimeoutExpired):
        asker.wait(2)
    asker.kill()
    wait_until(lambda: is_gone(kernel))
    asker.wait()
