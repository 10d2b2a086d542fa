"""Where everything lies: one run is one directory, and files appear whole or not at all."""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import psutil
from filelock import SoftFileLock, Timeout
from safetensors import SafetensorError

from drot_utils.study.errors import DrotError, MissingInputError, wrap_os_error

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = ROOT / "notebooks"
_LEFTOVER = re.compile(r"\.|~\$|(__MACOSX|Thumbs\.db|desktop\.ini)$", re.IGNORECASE)
#: What ``flock`` says where a file system has no locks (Lustre without ``-o flock``, NFS without its lock service).
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
PATIENCE = 300.0  # seconds to wait for a lock file; what is done under one takes seconds
TAKING = 0.2  # seconds in which a dead process's lock file is taken over
#: Files and folders that this process put in their place, in order: from these a stage's record names what it made.
WRITTEN: list[Path] = []


def output_root() -> Path:
    """Return the folder that holds ``runs/`` and ``figures/``: the checkout, or ``$DROT_OUTPUT`` (a scratch disk).

    Raises
    ------
    DrotError
        When ``DROT_OUTPUT`` is empty, or relative where `settle_output` was not called first.
    """
    root = os.environ.get("DROT_OUTPUT", str(ROOT))
    if not Path(root).is_absolute():
        found = f"expected the absolute path of a folder, found {root!r}"
        todo = "unset it (all goes below the checkout), or give a path that begins with /"
        raise DrotError(found, where="the environment variable DROT_OUTPUT", todo=todo)
    return Path(root).resolve()


def settle_output() -> None:
    """Make a relative ``$DROT_OUTPUT`` absolute, once, before there are processes that run in other folders."""
    if root := os.environ.get("DROT_OUTPUT"):
        os.environ["DROT_OUTPUT"] = str(Path(root).absolute())


def resolve(path: str | Path) -> Path:
    """Return `path` as it is when absolute, else below the checkout, so that notebooks run from any folder."""
    return ROOT / Path(path)


@dataclass(frozen=True)
class Run:
    """The directories of one run (``runs/<profile>/`` and ``figures/<profile>/``); nothing is written elsewhere."""

    profile: str
    note: str | None = field(default=None, compare=False)  # ends every table's caption

    @property
    def root(self) -> Path:
        """``runs/<profile>``: all that a run makes but figures and tables."""
        return output_root() / "runs" / self.profile

    @property
    def figures(self) -> Path:
        """``figures/<profile>``: what the paper shows."""
        return output_root() / "figures" / self.profile

    @property
    def manifest(self) -> Path:
        """The record of what was run, with what, and how it went."""
        return self.root / "manifest.json"

    @property
    def answers(self) -> Path:
        """The cache of endpoints' answers, which all notebooks share (see `llm.cache`)."""
        return self.root / "data" / "answers.sqlite"

    def data(self, name: str) -> Path:
        """Return the path of a table, such as ``d0`` or ``candidates_d1``."""
        return self.root / "data" / f"{name}.parquet"

    def model(self, name: str) -> Path:
        """Return the directory of a model, such as ``critic`` or ``self_distill_1``."""
        return self.root / "models" / name

    def work(self, name: str) -> Path:
        """Return a directory for unfinished work (shards, checkpoints), which only speeds up a re-run."""
        return self.root / "work" / name


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder in order, but for what systems and programs leave there for themselves.

    Those are hidden files and folders (``.DS_Store``, Jupyter's checkpoints), ``__MACOSX``, ``Thumbs.db``, ``desktop.ini``, and
    the ``~$`` lock files of office programs. A link to a folder is returned, not followed.
    """
    found = (
        path
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir())
        and not any(_LEFTOVER.match(part) for part in path.relative_to(folder).parts)
    )
    return sorted(found, key=lambda path: (path.parent, path.stem, path.suffix))  # `x` before its copy `x (1)`


def require(path: Path, made_by: str) -> Path:
    """Return `path` if it exists, else raise a `MissingInputError` that names the notebook which makes it."""
    if not path.exists():
        todo = f"run notebooks/{made_by}.ipynb with the same params_file first (`make demo` runs all in order)"
        raise MissingInputError("this input does not exist yet", where=str(path), todo=todo)
    return path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` for a file or a folder, and rename it when the block ends well.

    A reader (or a re-run after a kill) sees the whole of it or none.

    Raises
    ------
    StorageError
        When the disk is full or refuses the write; what is temporary is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
        temporary.replace(path)
        WRITTEN.append(path)
    except (OSError, SafetensorError) as error:
        raise wrap_os_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> Path:
    """Write `text` (UTF-8) to `path`, whole or not at all, and return the path."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Let `fill` write into a temporary folder, then put it in the place of `folder` (see `atomic`)."""
    for stale in folder.parent.glob(f".{folder.name}.[0-9]*.tmp"):
        number = int(stale.name.split(".")[-2])
        if number == os.getpid() or not psutil.pid_exists(number):  # of a process that was killed
            shutil.rmtree(stale, ignore_errors=True)
    with atomic(folder) as temporary:
        temporary.mkdir()
        fill(temporary)
    return folder


def to_json(value: Any, **options: Any) -> str:
    """Return `value` as JSON that every reader takes: NaN and infinity, which JSON lacks, as null; NumPy's values and paths, too."""
    return json.dumps(_plain(value), allow_nan=False, **options)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy's
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return None if str(value) in ("<NA>", "NaT") else str(value)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def file_system(path: Path) -> str:
    """Return the kind of file system that `path` lies on, such as ``ext4`` or ``nfs4``; empty when it is not known."""
    place = path.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if place.is_relative_to(m.mountpoint)]
    return max(reversed(mounts), key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""


@contextmanager
def exclusive(path: Path, *, wait: bool, what: str = "at work") -> Iterator[TextIO | None]:
    """Hold the lock file `path` while the block runs; the system lets go of it when the process dies, however it dies.

    Where the file system has no locks, a file ``<path>.held`` with the holder's machine and process takes their place. It is
    taken over when that process is gone from this machine; on another machine nobody can tell.

    Parameters
    ----------
    path : Path
        Made if it does not exist, never removed.
    wait : bool
        Wait for another holder, or raise.
    what : str
        What the other holder must be doing, for the error.

    Yields
    ------
    TextIO or None
        The locked file; None where the file system has no locks.

    Raises
    ------
    DrotError
        When another process holds the lock and `wait` is false; a `StorageError` when the lock file cannot be made.
    """
    todo = "wait for it, or stop it, then run again"
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = held.enter_context(path.open("a"))
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise DrotError(f"another process is {what}", where=str(path.parent), todo=todo) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise wrap_os_error(error, path) from error
            handle, soft = None, path.with_name(f"{path.name}.held")
            if not wait:
                message = (
                    f"{path.parent}: this file system has no locks ({error.strerror}); lock files are used instead. After a "
                    f"machine failed, {soft.name} may have to be removed there. Better: let DROT_OUTPUT name a disk that has "
                    "locks, or have this one mounted with them (Lustre: -o flock)"
                )
                warnings.warn(message, stacklevel=3)
            try:
                held.enter_context(SoftFileLock(soft, timeout=PATIENCE if wait else TAKING))
            except Timeout:
                with suppress(OSError):
                    what += f" (process, machine and the process's start: {' '.join(soft.read_text().split())})"
                todo += "; if it is gone with its machine, remove this file"
                raise DrotError(f"another process is {what}", where=str(soft), todo=todo) from error
        yield handle
