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
        How many units there are.
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
        rate = round((self.n - self.start_n) / max(now - self.began, 1e-9), 2)
        line = {
            "what": self.what, "n": self.n, "total": self.total, "done": self.start_n, "began": self.began,
            "unit": self.unit, "rate": rate,
        }  # fmt: skip
        try:
            temporary = Path(f"{self.status}.tmp")
            temporary.write_text(json.dumps(line))
            temporary.replace(self.status)
        except OSError:
            self.status = None  # progress is a courtesy: the work itself continues


def bar_left(status: dict, now: float) -> float | None:
    """Return the seconds until the work of a status file is done, at its own rate; None when the rate is not known.

    The rate is counted up to `now`, so that the time left grows while nothing is done.
    """
    gained = status["n"] - status.get("done", 0)
    if gained <= 0 or status["n"] >= status["total"]:
        return None
    return (status["total"] - status["n"]) * (now - status["began"]) / gained


def study_left(
    usual: dict[str, float],
    needs: dict[str, tuple[str, ...]],
    took: dict[str, float],
    running: dict[str, tuple[float, float | None]],
    cores: int,
) -> float | None:
    """Return the seconds until a study is done.

    Parameters
    ----------
    usual : dict
        The seconds that each planned stage takes elsewhere; here they are stretched as those of the finished ones were.
    needs : dict
        The stages that each one waits for.
    took : dict
        The real seconds of the finished ones.
    running : dict
        The seconds so far of the running ones, and what is left of their present work (see `bar_left`).
    cores : int
        Stages that run side by side.

    Returns
    -------
    float or None
        None when a stage takes longer than usual and its own rate is not known.
    """
    pace = sum(took.values()) / sum(usual[name] for name in took) if took else 1.0
    ends = {}
    for name, (so_far, bar) in running.items():
        ends[name] = max(usual[name] * pace - so_far, bar or 0)
        if ends[name] <= 0:
            return None
    now, done = 0.0, set(took)
    waiting = [name for name in usual if name not in done and name not in running]
    while waiting or ends:
        for name in [name for name in waiting if set(needs[name]) & set(usual) <= done]:
            if len(ends) < cores:
                ends[name] = now + usual[name] * pace
                waiting.remove(name)
        if not ends:
            break
        first = min(ends, key=ends.get)
        now = ends.pop(first)
        done.add(first)
    return now
