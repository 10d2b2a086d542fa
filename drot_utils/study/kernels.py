"""Kernels that start in no time: one process imports the libraries once, and is forked for each notebook (Linux).

The runner starts the server, which imports nothing before a notebook asks. What the kernel manager starts in the place of a
kernel is a small process that asks the server for one and ends with it: so a dead kernel is seen as always. When the one that
asked dies, its kernel is killed, and the server ends with the runner.
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
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

KERNELS = "DROT_KERNELS"  # names the server's socket
ROOT = Path(__file__).resolve().parent.parent.parent
FRESH = ["-m", "ipykernel_launcher"]


@contextmanager
def kernel_server(place: Path, environment: dict[str, str], keeper: list[int]):
    """Serve kernels while the block runs, where that is possible; yields what to add to the environment of those who ask.

    Parameters
    ----------
    place : Path
        The socket.
    environment : dict
        Of the server.
    keeper : list of int
        Gets the number of an open file: the server lives as long as a process has it.
    """
    gpu = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))  # CUDA does not survive a fork
    if sys.platform != "linux" or gpu or os.environ.get(KERNELS):
        yield {}
        return
    place.unlink(missing_ok=True)
    read, write = os.pipe()
    keeper.append(write)
    command = [sys.executable, __file__, "serve", str(place), str(read)]
    environment = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"} | environment  # as a kernel sets it
    subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[read], start_new_session=True)
    os.close(read)
    try:
        yield {KERNELS: str(place)}
    finally:
        os.close(write)


def kernel_command() -> list[str]:
    """Return the command that starts a kernel: through the server of this run where there is one."""
    place = os.environ.get(KERNELS) or "fresh"
    start = FRESH if place == "fresh" else ["-I", "-S", "-X", "utf8", __file__, "ask", place]
    return [sys.executable, *start, "-f", "{connection_file}"]


def ask(place: str, arguments: list[str]) -> None:
    """Ask the server for a kernel with these arguments, and end when it ends; without a server, become a fresh kernel."""
    request = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    server = socket.socket(socket.AF_UNIX)
    try:
        os.chdir(Path(place).parent)  # the address of a socket may have a hundred letters only
        server.connect(Path(place).name)
        socket.send_fds(server, [json.dumps(request).encode() + b"\n"], [1, 2])
        kernel = int(server.makefile().readline())
        end = os.pidfd_open(kernel)
    except (OSError, ValueError):
        os.chdir(request["folder"])
        os.execv(sys.executable, [sys.executable, *FRESH, *arguments])
    signal.signal(signal.SIGINT, lambda number, _: os.kill(kernel, number))
    select.select([end], [], [])


def serve(place: str, keeper: int) -> None:
    """Fork a kernel for each process that asks, until the file `keeper` ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(Path(place).parent)
    listener.bind(Path(place).name)
    listener.listen()
    # Nobody waits for the kernels, so that the number of one that ended stays its own.
    while keeper not in select.select([listener, keeper], [], [])[0]:
        load_libraries()
        asker, _ = listener.accept()
        with asker, suppress(OSError, ValueError):
            message, streams, _, _ = socket.recv_fds(asker, 1 << 16, 2)
            while not message.endswith(b"\n"):
                message += asker.recv(1 << 16) or b"\n"
            request = json.loads(message)
            if not os.fork():
                listener.close()
                _become_kernel(request, streams, asker)
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
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        threading.Thread(target=_end_with, args=[asker], daemon=True).start()
        asker.send(f"{os.getpid()}\n".encode())
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
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        ask(sys.argv[2], sys.argv[3:])
