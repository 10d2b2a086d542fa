"""Work for other processes: they import this module, which is light, not the tests and all that those import.

Most of them are forked from one that has imported the libraries, but not the package: that takes ten seconds of a start.
"""

import os
import signal
import subprocess
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TextIO

import pandas as pd

from drot_utils.study.errors import ModelError

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch", "torch.distributed.tensor", "transformers", "accelerate", "peft", "pyarrow.parquet", "sklearn.metrics"]
)


def open_worker(environment: dict[str, str], *arguments: object) -> None:
    """Open a worker of `shards` with the environment of the test that forked it."""
    from drot_utils.engine import shards

    os.environ.update(environment)
    shards._open_worker(*arguments)


def train_forked(command: list[str], env: dict[str, str], stderr: TextIO, check: bool) -> subprocess.CompletedProcess:
    """Do what torch's launcher does with this command, but fork the processes that train together."""
    from servers import free_port

    count, work = command[command.index("--nproc-per-node") + 1], command[-1]
    common = env | {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [common | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(int(count))]
    started = [FORKS.Process(target=train_part, args=(rank, stderr.name, work)) for rank in ranks]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return subprocess.CompletedProcess(command, sum(process.exitcode != 0 for process in started))


def train_part(environment: dict[str, str], log: str, work: str) -> None:
    """Train as one of several processes."""
    os.environ.update(environment)
    with Path(log).open("a") as handle:
        os.dup2(handle.fileno(), 2)
    from drot_utils.method import student

    student.main(Path(work))


def open_work():
    return work


def work(part: pd.DataFrame, seed: int) -> pd.DataFrame:
    time.sleep(0.01 * (seed % 5))  # so that shards do not end in the order in which they began
    return pd.DataFrame({"x": part["x"] * 10, "seed": seed})


def open_damaged():
    raise ModelError("expected SHA-256 x, found y", where="model.safetensors", todo="copy it again")


def open_suicide(mark: Path):
    return partial(suicide, mark)


def suicide(mark: Path, part: pd.DataFrame, seed: int) -> pd.DataFrame:
    if part["x"].iloc[0] == 4 and not mark.exists():
        mark.write_text("once")
        os.kill(os.getpid(), signal.SIGKILL)
    return work(part, seed)
