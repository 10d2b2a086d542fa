"""How two ways of doing the same work are timed: interleaved, at least three times, in one process, medians compared."""

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

#: Does the work once; what it returns is not looked at.
Work = Callable[[], object]


def read_options(description: str) -> argparse.Namespace:
    """Read ``--quick`` (less work, within 3 minutes on 2 cores) and ``--rounds``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="less work: within 3 minutes on 2 cores")
    parser.add_argument("--rounds", type=int, default=3, help="times each side runs (at least 3)")
    return parser.parse_args()


def compare(
    name: str,
    sides: dict[str, tuple[Work, float]],
    unit: str,
    *,
    rounds: int = 3,
    quick: bool = False,
    notes: dict[str, object] | None = None,
    write: bool = True,
) -> dict[str, object]:
    """Time all sides in turn and report their rates.

    Parameters
    ----------
    name : str
        Of the benchmark.
    sides : dict
        ``ours``, the peer under its own name and, where there is one, ``bound`` (the matrix products alone); each with the
        work and the amount of it, in `unit` without the ``/s``.
    unit : str
        Such as ``tokens/s``.
    rounds : int
        Times each side runs, in turn.
    notes : dict
        Goes into the result as it is.

    Returns
    -------
    dict
        What is printed as one line of JSON and written to ``results/<name>.json``.
    """
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for k in range(max(3, rounds)):
        # The order turns, so that no side always runs in the other's wake.
        for side in list(sides)[k % 2 :: 1] + list(sides)[: k % 2]:
            work, amount = sides[side]
            gc.collect()
            began = time.perf_counter()
            work()
            rates[side].append(amount / (time.perf_counter() - began))
    return report(name, rates, unit, quick=quick, notes=notes, write=write)


def report(
    name: str,
    rates: dict[str, list[float]],
    unit: str,
    *,
    quick: bool = False,
    notes: dict[str, object] | None = None,
    write: bool = True,
) -> dict[str, object]:
    """Print a table of rates with medians and spreads and one line of JSON, and write the latter (see `compare`)."""
    median = {side: statistics.median(values) for side, values in rates.items()}
    peer = next(side for side in rates if side not in ("ours", "bound"))
    print(f"\n{name}\n{'':24}{'median':>12}{'lowest':>12}{'highest':>12}  {unit}")
    for side, values in rates.items():
        print(f"{side:24}{median[side]:12.2f}{min(values):12.2f}{max(values):12.2f}")
    bound = median.get("bound")
    result = {
        "name": name,
        "ours": round(median["ours"], 3),
        "peer": round(median[peer], 3),
        "peer_name": peer,
        "unit": unit,
        "ratio": round(median["ours"] / median[peer], 3),
        "bound": round(bound, 3) if bound else None,
        "of_bound": round(median["ours"] / bound, 3) if bound else None,
        "quick": quick,
        "rounds": len(rates["ours"]),
        "machine": f"{platform.machine()}, {_cores()} cores",
        **(notes or {}),
    }
    if write:
        write_result(name, result)
    return result


def write_result(name: str, result: dict[str, object]) -> None:
    """Print a result as one line of JSON and write it to ``results/<name>.json``."""
    line = json.dumps(result)
    print(line)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(line + "\n", encoding="utf-8")


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
