"""Training beside another busy process: what OpenMP's threads do while they wait (spin, or sleep), against libgomp's default.

A thread that spins holds a core which the other process could have, and the thread that it waits for is the one without a core. Each
setting is timed alone and beside one process that keeps a core busy. Only numbers from an otherwise quiet machine mean anything.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.harness import read_options, write_result
from drot_utils.study.paths import ROOT
from drot_utils.study.runner import THREADS

WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # torch's wheels for Linux bring libgomp
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "spin 100,000": {"GOMP_SPINCOUNT": "100000"},
}


def main() -> None:
    """Run the benchmark."""
    options = read_options(__doc__)
    rounds, seconds = (1, 6.0) if options.quick else (max(3, options.rounds), 20.0)
    rates: dict[str, dict[bool, list[float]]] = {name: {False: [], True: []} for name in SETTINGS}
    for k in range(rounds):
        # The order turns, so that no setting always runs in the other's wake.
        for name in list(SETTINGS)[k:] + list(SETTINGS)[:k]:
            for busy in (False, True):
                rates[name][busy].append(measure(SETTINGS[name], seconds, busy))
    table = {
        name: {"alone": statistics.median(r[False]), "beside": statistics.median(r[True])} for name, r in rates.items()
    }
    first = table["default"]
    print(f"\ncontention\n{'':16}{'alone':>10}{'beside':>10}  steps/s {'of default':>12}{'':8}{'kept':>8}")
    for name, row in table.items():
        print(
            f"{name:16}{row['alone']:10.2f}{row['beside']:10.2f}{row['alone'] / first['alone']:14.2f} alone"
            f"{row['beside'] / first['beside']:8.2f} beside{row['beside'] / row['alone']:8.2f}"
        )
    write_result(
        "contention",
        {"name": "contention", "ours": round(table["passive"]["beside"], 3), "peer": round(first["beside"], 3),
         "peer_name": "libgomp's default, beside a busy process", "unit": "steps/s",
         "ratio": round(table["passive"]["beside"] / first["beside"], 3),
         "ratio_alone": round(table["passive"]["alone"] / first["alone"], 3), "quick": options.quick, "rounds": rounds,
         "cores": os.cpu_count(),
         "settings": {n: {k: round(v, 3) for k, v in row.items()} for n, row in table.items()}},
    )  # fmt: skip


def measure(setting: dict[str, str], seconds: float, busy: bool) -> float:
    """Return the training steps a second of a process with `setting` in its environment, alone or beside a busy one."""
    environment = {k: v for k, v in os.environ.items() if k not in (*THREADS, *WAITS)} | setting
    code = f"from benchmarks.contention import train; print(train({seconds}))"
    with _spinner() if busy else contextlib.nullcontext():
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE
        )
    return float(done.stdout.split()[-1])


def train(seconds: float) -> float:
    """Train a few layers of the demo's student's width for so long, and return the steps a second."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(576, 9, 1536, dropout=0.0, batch_first=True)
    model = nn.Sequential(
        nn.Embedding(8192, 576), nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(576, 8192)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, 8192, (8, 64))

    def step() -> None:
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    began, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - began < seconds:
        step()
        steps += 1
    return steps / (time.perf_counter() - began)


@contextlib.contextmanager
def _spinner() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    main()
