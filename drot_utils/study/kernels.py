"""Kernels that start in no time: one process imports the libraries once, and is forked for each notebook (Linux).

The runner starts the server, which imports nothing before a notebook asks. What the kernel manager starts in the place of a
kernel is a small process that asks the server for one, lives as long as it does, and ends as it did. So a dead kernel is seen as
always; when the one that asked dies, its kernel is killed; and the server ends when the runner and its last kernel have.
``DROT_KERNELS=fresh`` does without, and another value names the socket of a server that is there. This file runs on its own,
too, and so imports the standard library only.
"""

import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

KERNELS = "DROT_KERNELS"  # names the server's socket
ROOT = Path(__file__).resolve().parent.parent.parent
#: What notebooks set before they import, and the server must set before it does.
EARLY = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}
FRESH = ["-m", "ipykernel_launcher"]


@contextmanager
def kernel_server(place: Path, environment: dict[str, str], keeper: list[int]):
    """Serve kernels while the block runs, where that is possible; yields what to add to the environment of those who ask.

    Parameters
    ----------
    place : Path
        The socket.
    environment : dict
        Of the kernels.
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
    subprocess.Popen(
        command, env=EARLY | environment, stdin=subprocess.DEVNULL, pass_fds=[read], start_new_session=True
    )
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
    """Ask the server for a kernel with these arguments, and end as it ends; without a server, become a fresh kernel."""
    server = socket.socket(socket.AF_UNIX)
    try:
        with _short(place) as path:
            server.connect(path)
        request = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
        socket.send_fds(server, [json.dumps(request).encode() + b"\n"], [1, 2])
        answers = server.makefile()
        kernel = int(answers.readline())
    except (OSError, ValueError):
        os.execv(sys.executable, [sys.executable, *FRESH, *arguments])
    signal.signal(signal.SIGINT, lambda number, _: os.kill(kernel, number))
    status = int(answers.readline() or 1)
    if status < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def serve(place: str, keeper: int) -> None:
    """Fork a kernel for each process that asks, until the file `keeper` ends and so have the kernels."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    with _short(place) as path:
        listener.bind(path)
    listener.listen()
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(keeper, selectors.EVENT_READ)
    kernels: dict[int, tuple[int, socket.socket]] = {}  # by the file that ends with the kernel
    loaded = False
    while keeper is not None or kernels:
        for key, _ in selector.select():
            if key.fileobj is listener:
                if not loaded:
                    load_libraries()
                    loaded = True
                asker, _ = listener.accept()
                with suppress(OSError, ValueError):
                    message, streams, _, _ = socket.recv_fds(asker, 1 << 16, 2)
                    while not message.endswith(b"\n"):
                        message += asker.recv(1 << 16) or b"\n"
                    kernel = os.fork()
                    if not kernel:
                        open_files = [listener, asker, selector, *(other for _, other in kernels.values())]
                        _become_kernel(json.loads(message), streams, open_files)
                    for stream in streams:
                        os.close(stream)
                    end = os.pidfd_open(kernel)
                    kernels[end] = kernel, asker
                    selector.register(end, selectors.EVENT_READ)
                    selector.register(asker, selectors.EVENT_READ, kernel)
                    asker.send(f"{kernel}\n".encode())
            elif key.fileobj == keeper:
                selector.unregister(keeper)
                selector.unregister(listener)
                keeper = None
            elif key.fileobj in kernels:
                kernel, asker = kernels.pop(key.fileobj)
                selector.unregister(key.fileobj)
                os.close(key.fileobj)
                _, status = os.waitpid(kernel, 0)
                with suppress(KeyError):
                    selector.unregister(asker)
                with suppress(OSError):
                    asker.send(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                asker.close()
            else:  # who asked is gone
                selector.unregister(key.fileobj)
                with suppress(ProcessLookupError):
                    os.killpg(key.data, signal.SIGKILL)


@contextmanager
def _short(place: str):
    # The address of a socket may have a hundred letters only.
    folder = os.open(Path(place).parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{Path(place).name}"
    finally:
        os.close(folder)


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


def _become_kernel(request: dict, streams: list[int], open_files: list) -> None:
    try:
        server = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the server
        if os.getppid() != server:
            os._exit(1)
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for file in open_files:
            file.close()
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(request["environment"], JPY_PARENT_PID=str(server))
        os.chdir(request["folder"])
        from ipykernel.kernelapp import IPKernelApp

        IPKernelApp.launch_instance(argv=[*request["arguments"], f"--IPKernelApp.parent_handle={server}"])
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 0 if error.code is None else 1)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    del sys.path[0]  # this folder
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        ask(sys.argv[2], sys.argv[3:])
