"""A training in several processes, on this machine's GPUs or its cores: each runs this module under ``torchrun``."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin

from drot_utils.errors import DrotError
from drot_utils.params import Params
from drot_utils.paths import Run, write_text
from drot_utils.schema import read_table, write_table
from drot_utils.study import Study


def launch(study: Study, rows: pd.DataFrame, job: dict, work: Path) -> None:
    """Train a student in ``compute.parallel.processes`` processes.

    Parameters
    ----------
    rows : DataFrame
        The training data.
    job : dict
        The other arguments of `distill.learn`.
    work : Path
        Gets the job, the rows and what the processes say (``log.txt``).

    Raises
    ------
    DrotError
        When a process fails; its error is quoted.
    """
    write_table(pa.Table.from_pandas(rows, preserve_index=False), work / "rows.parquet")
    write_text(
        work / "job.json",
        json.dumps({"params": study.params.model_dump(), "stage": study.stage, "job": job}, allow_nan=False),
    )
    processes = study.params.compute.parallel.processes
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        "-m", "drot_utils.parallel", str(work),
    ]  # fmt: skip
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **os.environ}
    log = work / "log.txt"
    with log.open("w", encoding="utf-8") as handle:
        done = subprocess.run(command, env=environment, stderr=handle, check=False)
    if done.returncode:
        said = re.findall(
            r"^(?:\[rank\d+\]: *)?(\w[\w.]*(?:Error|Exception)\b.*)$", log.read_text(), re.MULTILINE
        )
        raise DrotError(
            f"one of {processes} training processes failed ({said[0] if said else f'exit code {done.returncode}'})",
            where=str(log),
            todo="most often memory ran out: fewer processes, or a smaller student.batch_size; then run again",
        )


def open_accelerator(study: Study) -> Accelerator:
    """Join the other processes of a training: with copies of the weights (DDP), or with a share each (FSDP 2)."""
    plugin = None
    if study.params.compute.parallel.fsdp:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True
        )
    return Accelerator(cpu=study.device.type == "cpu", fsdp_plugin=plugin)


def main(work: Path) -> None:
    """Do one process's part of the job in `work`."""
    from drot_utils.distill import learn

    saved = json.loads((work / "job.json").read_text(encoding="utf-8"))
    params = Params.model_validate(saved["params"])
    study = Study(params, Run(params.profile), saved["stage"])
    if study.device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    learn(study, read_table(work / "rows.parquet"), **saved["job"], accelerator=open_accelerator(study))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
