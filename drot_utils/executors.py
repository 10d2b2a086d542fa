"""Who does the shards: this process, several, or a Ray cluster. The rows and their order are the same from all of them."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue

import pandas as pd

from drot_utils.errors import DrotError
from drot_utils.settings import Executor

#: Turns the rows of one shard and its seed into the shard's result.
Work = Callable[[pd.DataFrame, int], pd.DataFrame]
#: Loads what the work needs (a model, say); called once in each process that works, so it must be picklable.
OpenWork = Callable[[], Work]
#: Number, rows and seed of a shard.
Task = tuple[int, pd.DataFrame, int]

RESTARTS = 10  # of a Ray worker that was killed

_work: Work | None = None  # what a worker process has opened


def run_tasks(
    open_work: OpenWork, tasks: list[Task], executor: Executor
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Do tasks and yield their numbers and results as they are finished, in any order.

    Parameters
    ----------
    open_work : callable
        Picklable unless the executor is ``local``.
    tasks : list of Task
    executor : Executor
        No more workers are started than there are tasks.

    Raises
    ------
    DrotError
        A worker process that died; Ray without its package, or without a cluster at its address.
    """
    if not tasks:
        return
    run = {"local": _run_here, "processes": _run_processes, "ray": _run_ray}[executor.kind]
    yield from run(open_work, tasks, executor)


def _run_here(
    open_work: OpenWork, tasks: list[Task], executor: Executor
) -> Iterator[tuple[int, pd.DataFrame]]:
    work = open_work()
    for number, part, seed in tasks:
        yield number, work(part, seed)


def _run_processes(
    open_work: OpenWork, tasks: list[Task], executor: Executor
) -> Iterator[tuple[int, pd.DataFrame]]:
    # Spawned, not forked: torch's threads do not survive a fork.
    workers = min(executor.workers, len(tasks))
    context = get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    pool = ProcessPoolExecutor(
        workers, context, initializer=_open_here, initargs=(open_work, workers, numbers)
    )
    try:
        futures = [pool.submit(_do_here, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise DrotError(
            "a worker process died",
            where=f"compute.executor, {workers} processes",
            todo="most often memory ran out: use fewer workers, then run again; finished shards are kept",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _open_here(open_work: OpenWork, workers: int, numbers: SimpleQueue) -> None:
    import torch

    global _work
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    if count := torch.cuda.device_count():
        torch.cuda.set_device(numbers.get() % count)  # the GPUs are shared out among the workers
    _work = open_work()


def _do_here(task: Task) -> tuple[int, pd.DataFrame]:
    number, part, seed = task
    return number, _work(part, seed)


class _Worker:
    def __init__(self, open_work: OpenWork) -> None:
        self.work = open_work()

    def do(self, task: Task) -> tuple[int, pd.DataFrame]:
        """Do a task and return its number with the result."""
        number, part, seed = task
        return number, self.work(part, seed)


def _run_ray(
    open_work: OpenWork, tasks: list[Task], executor: Executor
) -> Iterator[tuple[int, pd.DataFrame]]:
    try:
        import ray
    except ImportError as error:
        raise DrotError(
            "Ray is not installed",
            where="compute.executor",
            todo="make extras (pip install ray==2.60.*), or use processes",
        ) from error
    began = not ray.is_initialized()
    if began:
        try:
            ray.init(
                address=executor.address, log_to_driver=False, include_dashboard=False, logging_level="ERROR"
            )
        except ConnectionError as error:
            raise DrotError(
                f"no Ray cluster answers at {executor.address!r}", where="compute.executor.address",
                todo="start one (ray start --head), or set address: null for one on this machine",
            ) from error  # fmt: skip
    try:
        # A worker that is killed is started again, and what it was doing is done again; not for ever, as what it does may kill it.
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        worker = ray.remote(max_restarts=RESTARTS, max_task_retries=RESTARTS, num_gpus=gpus)(_Worker)
        pool = ray.util.ActorPool(
            [worker.remote(open_work) for _ in range(min(executor.workers, len(tasks)))]
        )
        yield from pool.map_unordered(lambda actor, task: actor.do.remote(task), tasks)
    finally:
        if began:
            ray.shutdown()
