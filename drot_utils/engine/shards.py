"""Long work as a map over fixed shards: killed at any moment, a re-run does only what is missing and ends the same.

Who does the shards (this process, several, a Ray cluster) changes neither the rows nor their order.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from drot_utils.data.table import to_pandas
from drot_utils.study.code import hash_code, refuse_edited
from drot_utils.study.errors import DrotError
from drot_utils.study.outputs import borrow
from drot_utils.study.params import Executor
from drot_utils.study.paths import atomic
from drot_utils.study.progress import Progress
from drot_utils.study.record import Study

#: Turns the rows of one shard and its seed into the shard's result.
Work = Callable[[pd.DataFrame, int], pd.DataFrame]
#: Loads what the work needs (a model, say); called once in each process that works, so it must be picklable.
OpenWork = Callable[[], Work]
#: Number, rows and seed of a shard, then number and result, in any order.
Task = tuple[int, pd.DataFrame, int]
Result = tuple[int, pd.DataFrame]

RESTARTS = 10  # of a Ray worker that was killed


def map_rows(
    study: Study, asked: pd.DataFrame, open_work: OpenWork, what: str, unit: str, *key: object
) -> pd.DataFrame:
    """Apply work to rows in shards of ``compute.shard_rows``, by the executor of the parameters (see `map_shards`).

    `key` is all that the result depends on beside the rows and the code: weights and settings.
    """
    compute = study.params.compute
    name = fingerprint(asked, *key, compute.shard_rows, str(study.scoring_dtype), hash_work(open_work))
    return map_shards(
        asked, compute.shard_rows, open_work, borrow(study.run, f"shards/scoring-{name}"),
        seed=study.params.seed, stage=what, unit=unit, executor=compute.executor,
    )  # fmt: skip


def map_shards(
    rows: pd.DataFrame,
    size: int,
    open_work: OpenWork,
    folder: Path,
    *,
    seed: int,
    stage: str,
    executor: Executor,
    per_row: int = 1,
    unit: str = "rows",
) -> pd.DataFrame:
    """Apply work to fixed stretches of `rows`, keep every finished one on disk, and return their rows in order.

    Parameters
    ----------
    size : int
        Rows a shard; part of the result's definition, as the seeds depend on it.
    open_work : callable
        Returns what gets a stretch and its seed and returns its result rows; not called when nothing is missing, and
        picklable unless the executor is ``local``.
    folder : Path
        Where shards are kept. Its name must change with everything that the result depends on (see `fingerprint`).
    stage : str
        Enters the shards' seeds and titles the progress.
    executor : Executor
        Who does it; the result does not depend on it. No more workers are started than there are shards.
    per_row : int
        Units of progress a row stands for.

    Raises
    ------
    DrotError
        A worker process that died; Ray without its package, or without a cluster at its address.
    """
    # Of no rows, one empty shard, so that the result has its columns.
    parts = [rows.iloc[start : start + size] for start in range(0, len(rows) or 1, size)]
    done = _read_whole(folder, len(parts))
    missing = [(n, part, derive_seed(seed, stage, n)) for n, part in enumerate(parts) if n not in done]
    finished = sum(len(parts[number]) for number in done)
    run = {"local": _run_here, "processes": _run_processes, "ray": _run_ray}[executor.kind]
    if missing and executor.kind != "local":
        refuse_edited(_place(open_work))
    with Progress(stage, len(rows) * per_row, unit, done=finished * per_row) as progress:
        for number, result in run(open_work, missing, executor) if missing else ():
            content = result.to_parquet(index=False, compression="zstd")
            with atomic(folder / _name(number, content)) as temporary:
                temporary.write_bytes(content)
            done[number] = _decode(content)  # as a re-run will read it
            progress.update(len(parts[number]) * per_row)
    return pd.concat([done[number] for number in range(len(parts))], ignore_index=True)


def fingerprint(*parts: Any) -> str:
    """Return twelve hexadecimal digits that change with any of `parts` (tables, or what JSON can hold)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, pd.DataFrame):
            digest.update(part.to_csv(index=False).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]


def hash_work(open_work: OpenWork) -> str:
    """Return a hash of the code that `open_work` reaches, for fingerprints: what other code did is not used again."""
    return hash_code(_place(open_work))


def _place(open_work: OpenWork) -> str:
    function = getattr(open_work, "func", open_work)
    return f"{function.__module__.removeprefix('drot_utils.')}.{function.__qualname__}"


def derive_seed(seed: int, stage: str, number: int) -> int:
    """Return the seed of a shard: a function of the run's seed, the stage's name and the shard's number only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}/{number}".encode()).digest()[:4], "big")


def _name(number: int, content: bytes) -> str:
    # The checksum is part of the name: Parquet's own cover its pages, not what says how to read them.
    return f"{number:06d}-{zlib.crc32(content):08x}.parquet"


def _decode(content: bytes) -> pd.DataFrame:
    return to_pandas(pq.read_table(pa.BufferReader(content)))


def _read_whole(folder: Path, count: int) -> dict[int, pd.DataFrame]:
    found: dict[int, pd.DataFrame] = {}
    for path in sorted(folder.glob("*-*.parquet")):
        content, number = path.read_bytes(), int(path.stem.split("-")[0])
        if path.name != _name(number, content):
            path.unlink()  # a shard that is not whole is done again
        elif number < count and number not in found:  # two processes may have done one: always the same counts
            found[number] = _decode(content)
    return found


class _Worker:
    def __init__(self, open_work: OpenWork) -> None:
        self.open_work = open_work

    @cached_property
    def work(self) -> Work:
        """The work, opened with the first task: an error in a worker's start would only be known as its death."""
        return self.open_work()

    def do(self, task: Task) -> Result:
        """Do a task and return its number with the result."""
        number, part, seed = task
        return number, self.work(part, seed)


def _run_here(open_work: OpenWork, tasks: list[Task], executor: Executor) -> Iterator[Result]:
    return map(_Worker(open_work).do, tasks)


def _run_processes(open_work: OpenWork, tasks: list[Task], executor: Executor) -> Iterator[Result]:
    workers = min(executor.workers, len(tasks))
    context = get_context("spawn")  # not forked: torch's threads do not survive a fork
    numbers = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    pool = ProcessPoolExecutor(workers, context, _open_worker, (open_work, workers, numbers))
    try:
        for future in as_completed([pool.submit(_do_task, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise DrotError(
            "a worker process died",
            where=f"compute.executor, {workers} processes",
            todo="most often memory ran out: use fewer workers, then run again; finished shards are kept",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: _Worker | None = None  # of a worker process


def _open_worker(open_work: OpenWork, workers: int, numbers: SimpleQueue) -> None:
    import torch

    global _worker
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    if count := torch.cuda.device_count():
        torch.cuda.set_device(numbers.get() % count)  # the GPUs are shared out among the workers
    _worker = _Worker(open_work)


def _do_task(task: Task) -> Result:
    return _worker.do(task)


def _run_ray(open_work: OpenWork, tasks: list[Task], executor: Executor) -> Iterator[Result]:
    try:
        import ray
    except ImportError as error:
        todo = "make extras (pip install ray==2.60.*), or use processes"
        raise DrotError("Ray is not installed", where="compute.executor", todo=todo) from error
    began = not ray.is_initialized()
    if began:
        try:
            ray.init(address=executor.address, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        except ConnectionError as error:
            raise DrotError(
                f"no Ray cluster answers at {executor.address!r}", where="compute.executor.address",
                todo="start one (ray start --head), or set address: null for one on this machine",
            ) from error  # fmt: skip
    try:
        # A killed worker is started again, and its task done again; not for ever, as the task may be what kills it.
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        worker = ray.remote(max_restarts=RESTARTS, max_task_retries=RESTARTS, num_gpus=gpus)(_Worker)
        pool = ray.util.ActorPool([worker.remote(open_work) for _ in range(min(executor.workers, len(tasks)))])
        yield from pool.map_unordered(lambda actor, task: actor.do.remote(task), tasks)
    finally:
        if began:
            ray.shutdown()
