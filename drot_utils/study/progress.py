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
    what : str
        What is being done, such as "sampling".
    total : int
    unit : str
        The field's word for one unit, such as "candidates".
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


def bar_left(status: dict, now: float) -> float:
    """Return the seconds until the work of a status file is done, at its own rate up to `now`; 0 when the rate is not known."""
    gained = status["n"] - status["start_n"]
    return (status["total"] - status["n"]) * (now - status["began"]) / gained if gained > 0 else 0.0


def study_left(
    usual: dict[str, float],
    needs: dict[str, tuple[str, ...]],
    took: dict[str, float],
    running: dict[str, tuple[float, float]],
    cores: int,
) -> float:
    """Return the seconds until a study is done: those of its longest chain of stages, or of all of them shared by the cores.

    Parameters
    ----------
    usual : dict
        The seconds that each planned stage takes elsewhere; here they are stretched as those of the finished ones were, and of the
        running ones that are late.
    needs : dict
        The stages that each one waits for.
    took : dict
        The seconds of the finished ones; at least one.
    running : dict
        The seconds so far of the running ones, and what is left of their present work (see `bar_left`).
    cores : int
        Stages that run side by side.
    """

    def pace(seconds: dict[str, float]) -> float:
        return sum(seconds.values()) / sum(usual[name] for name in seconds)

    late = {name: so_far for name, (so_far, _) in running.items() if so_far > usual[name] * pace(took)}
    here = pace(took | late)
    left = {name: seconds * here for name, seconds in usual.items() if name not in took}
    for name, (so_far, bar) in running.items():
        left[name] = max(left[name] - so_far, bar)

    def until(name: str) -> float:
        return left[name] + max((until(before) for before in needs[name] if before in left), default=0.0)

    return max([sum(left.values()) / cores, *map(until, left)])
