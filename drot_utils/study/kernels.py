"""Kernels that start in no time: one process imports the libraries once, and is forked for each notebook (Linux).

The runner starts the server, which imports nothing before a notebook asks. What the kernel manager starts in the place of a
kernel is a small process that asks the server for one and ends with it: so a dead kernel is seen as always. When the one that
asked dies, or its manager, the kernel is killed, and the server ends with the runner.
``DROT_KERNELS=fresh`` does without, and another value names the socket of a server that is there. This file runs on its own,
too, and so imports the standard library only.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

KERNELS = "DROT_KERNELS"  # names the server's socket
ROOT = Path(__file__).resolve().parent.parent.parent
FRESH = ["-m", "ipykernel_launcher"]
#: Environment variables by which a library is told its number of threads.
THREADS = [f"{name}_NUM_THREADS" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "GOTO")] + ["VECLIB_MAXIMUM_THREADS"]
#: Settings under which all processes of a run compute, where they are not set.
TUNED = {
    # Huge pages, where the kernel gives them on request: a training step takes a tenth less, as fresh memory is dear.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # Threads of OpenMP that wait sleep: those that spin halve a training beside another busy process (benchmarks/contention.py).
    "OMP_WAIT_POLICY": "passive",
}


@contextmanager
def kernel_server(place: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Serve kernels at the socket `place` while the block runs, where that is possible; yields what those who ask need to know.

    That is for their environment. `environment` is the server's, but for the numbers of threads.
    """
    gpu = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))  # CUDA does not survive a fork
    if sys.platform != "linux" or gpu or os.environ.get(KERNELS):
        yield {}
        return
    for stale in (place, place.with_name(f"{place.name}.new")):
        stale.unlink(missing_ok=True)
    kept = {name: value for name, value in environment.items() if name not in THREADS}
    kept.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as a kernel does before it imports
    command = [sys.executable, __file__, "serve", str(place)]
    with subprocess.Popen(command, env=kept, stdin=subprocess.PIPE, start_new_session=True) as server:
        try:
            while not place.exists() and server.poll() is None:  # who asks before it listens would get a fresh kernel
                time.sleep(0.02)
            yield {KERNELS: str(place)}
        finally:
            server.kill()  # perhaps while it imports; its kernels do not need it any more


def kernel_command() -> list[str]:
    """Return the command that starts a kernel: through the server of this run where there is one."""
    place = os.environ.get(KERNELS) or "fresh"
    start = FRESH if place == "fresh" else ["-I", "-S", "-X", "utf8", __file__, "ask", place]
    return [sys.executable, *start, "-f", "{connection_file}"]


def ask(place: str, arguments: list[str]) -> None:
    """Ask the server for a kernel with these arguments, and end when it or the kernel manager ends; without a server, become a fresh kernel."""
    request = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    server = socket.socket(socket.AF_UNIX)
    try:
        os.chdir(Path(place).parent)  # the address of a socket may have a hundred letters only
        server.connect(Path(place).name)
        socket.send_fds(server, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        kernel = int(server.makefile().readline())
        end = os.pidfd_open(kernel)
    except (OSError, ValueError):
        os.chdir(request["folder"])
        os.execv(sys.executable, [sys.executable, *FRESH, *arguments])
    signal.signal(signal.SIGINT, lambda number, _: os.kill(kernel, number))
    manager = os.getppid()
    while os.getppid() == manager and not select.select([end], [], [], 1.0)[0]:
        continue


def serve(place: str) -> None:
    """Fork a kernel for each process that asks, until standard input ends, and with it who started this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(Path(place).parent)
    listener.bind(f"{Path(place).name}.new")
    listener.listen()
    Path(f"{Path(place).name}.new").rename(Path(place).name)  # so that where it is, somebody listens
    # Nobody waits for the kernels, so that the number of one that ended stays its own.
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        load_libraries()
        asker, _ = listener.accept()
        with asker, suppress(OSError, ValueError):
            message, streams, _, _ = socket.recv_fds(asker, 1 << 16, 3)
            while not message.endswith(b"\n"):
                message += asker.recv(1 << 16) or b"\n"
            request = json.loads(message)
            kernel = os.fork()
            if not kernel:
                listener.close()
                _become_kernel(request, streams, asker)
            asker.send(f"{kernel}\n".encode())
            for stream in streams:
                os.close(stream)


@cache
def load_libraries() -> None:
    """Import all that the package imports, but not the package: it may change while a study runs."""
    sys.path.insert(0, str(ROOT))
    for path in sorted((ROOT / "drot_utils").glob("*/*.py")):
        if path.stem != "__init__":
            importlib.import_module(f"drot_utils.{path.parent.name}.{path.stem}")
    for name in [name for name in sys.modules if name.split(".")[0] == "drot_utils"]:
        del sys.modules[name]
    del sys.path[0]
    importlib.import_module("ipykernel.kernelapp")
    gc.collect()
    gc.freeze()


def _become_kernel(request: dict, streams: list[int], asker: socket.socket) -> None:
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        threading.Thread(target=_end_with, args=[asker], daemon=True).start()
        from ipykernel.kernelapp import IPKernelApp

        # 1: it is not for the terminal, and need not look whether its parent lives.
        IPKernelApp.launch_instance(argv=[*request["arguments"], "--IPKernelApp.parent_handle=1"])
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def _end_with(asker: socket.socket) -> None:
    with suppress(OSError):
        asker.recv(1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    del sys.path[0]  # this folder
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        ask(sys.argv[2], sys.argv[3:])
