"""Progress of long work: a tqdm bar for a person at the keyboard, a small status file for the runner of a batch."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Self

from tqdm.auto import tqdm

STATUS = "DROT_PROGRESS"  # names the status file; set by the runner for the notebooks it starts


class Progress:
    """Count `total` units of work under a title, as a context manager.

    Parameters
    ----------
    what, unit : str
        What is being done, such as "sampling", and the field's word for one unit, such as "candidates".
    done : int
        Units finished by an earlier run; they count as done, not towards the rate.
    quiet : bool
        Show nothing: another process shows the same work.
    """

    def __init__(self, what: str, total: int, unit: str = "rows", done: int = 0, *, quiet: bool = False) -> None:
        self.what, self.total, self.unit, self.n, self.start_n = what, total, unit, done, done
        self.status = None if quiet else os.environ.get(STATUS)
        self.began = time.time()  # the runner, another process, computes with it
        self.written = 0.0
        interactive = sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ
        silent = quiet or bool(self.status) or not interactive
        self.bar = tqdm(
            total=total, initial=done, desc=what, unit=f" {unit}", disable=silent, mininterval=1, leave=False
        )

    def __enter__(self) -> Self:
        self._write(force=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.close()
        self._write(force=True)

    def update(self, n: int = 1) -> None:
        """Say that `n` more units are done."""
        self.n += n
        self.bar.update(n)
        self._write()

    def say(self, what: str) -> None:
        """Say what is being done now, in the place of the title."""
        self.what = what
        self.bar.set_description(what, refresh=False)
        self.update(0)

    def _write(self, force: bool = False) -> None:
        now = time.time()
        if not self.status or (not force and now - self.written < 1):
            return
        self.written = now
        line = {name: getattr(self, name) for name in ("what", "n", "start_n", "total", "unit", "began")}
        try:
            temporary = Path(f"{self.status}.tmp")
            temporary.write_text(json.dumps(line))
            temporary.replace(self.status)
        except OSError:
            self.status = None  # progress is a courtesy: the work itself continues


def rate_of(status: dict, now: float) -> float:
    """Return the units a second of the work of a status file up to `now`, so that it falls while nothing is done."""
    return (status["n"] - status["start_n"]) / max(now - status["began"], 1e-9)
