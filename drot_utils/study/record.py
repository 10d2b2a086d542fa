"""What a notebook opens first and closes last: its study, the machine it runs on, and the manifest."""

import ctypes
import gc
import json
import logging
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from drot_utils import __version__
from drot_utils.study.code import read_package
from drot_utils.study.errors import DataError, ModelError
from drot_utils.study.forecast import Machine
from drot_utils.study.outputs import (
    BATCH,
    BY_HAND,
    PLAY,
    Finished,
    closing_path,
    finish,
    list_files,
    overlay,
    read_params,
)
from drot_utils.study.params import Compute, Params, load_params
from drot_utils.study.paths import ROOT, WRITTEN, Run, resolve, sha256, to_json, write_text

#: Packages whose versions the manifest names.
PACKAGES = [
    "torch", "transformers", "peft", "datasets", "tokenizers", "safetensors", "pandas", "pyarrow", "numpy", "scikit-learn",
    "bertopic", "openai", "papermill", "snakemake",
]  # fmt: skip

FEW, MANY = 16, 640  # rows of measured products: where they may be slow, and those of a training step


def open_study(
    stage: str, params_file: str | Path, overrides: Mapping[str, Any] | None = None, variant: str = ""
) -> "Study":
    """Open a run from a notebook: check the parameters, quiet the libraries, start the clock.

    A notebook that the runner started writes into its run. One run by hand writes to ``runs/<profile>-play/`` and reads from
    there what is not there yet by links to the run's files, so that nothing of a batch run is lost.

    Parameters
    ----------
    stage : str
        The notebook's name, such as ``02_critic``.
    params_file : str or Path
        Such as ``params/demo.yaml``.
    overrides : mapping, optional
        Values by dotted key, such as ``{"nli.threshold": 0.4}``.
    variant : str
        Appended to the stage's name: the round, or the ablation.
    """
    read_package()  # what runs, should a file of it be edited meanwhile
    params = load_params(params_file, overrides)
    _quiet()
    pd.options.display.max_colwidth = 110
    study = Study(params, Run(params.profile, params.note), f"{stage}-{variant}" if variant else stage)
    if study.by_hand:
        study.run, base = Run(f"{params.profile}{PLAY}", params.note), study.run
        overlay(study.run, base)
        print(f"By hand: writes to runs/{study.run.profile}/, and reads what is not there from runs/{base.profile}/.")
    if params.compute.dtype == "bfloat16" and (warning := warn_slow(study.device)):
        print(warning)
    study.note(seed=params.seed)
    return study


def open_run(name: str, stage: str = "reading") -> "Study":
    """Open a run of that name, such as ``demo``, with the parameters it was made with; nothing is written into it.

    Raises
    ------
    DrotError
        See `outputs.read_params`.
    """
    _quiet()
    return Study(read_params(Run(name)), Finished(name), stage)


def _quiet() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)


@dataclass
class Study:
    """One notebook's view of a run: its parameters, where things lie, its name with its variant, what the manifest gets."""

    params: Params
    run: Run
    stage: str
    record: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @cached_property
    def device(self) -> torch.device:
        """The torch device of this run; torch is seeded and its threads set on first use.

        Raises
        ------
        ModelError
            When ``device: cuda`` is asked for and there is none.
        """
        compute = self.params.compute
        torch.manual_seed(self.params.seed)
        if compute.threads:
            torch.set_num_threads(compute.threads)
        if compute.device == "cuda" and not torch.cuda.is_available():
            todo = "use auto or cpu, or install the CUDA build"
            raise ModelError("`compute.device` is cuda but torch sees none", todo=todo)
        return torch.device("cuda" if compute.device != "cpu" and torch.cuda.is_available() else "cpu")

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products in training."""
        return choose_dtypes(self.params.compute, self.device)[0]

    @cached_property
    def scoring_dtype(self) -> torch.dtype:
        """The dtype of matrix products in scoring and sampling."""
        return choose_dtypes(self.params.compute, self.device)[1]

    def show(self, *names: str) -> None:
        """Print profile, seed, and the named sections or values (``critic.head``) of the parameters, as YAML."""
        values, chosen = self.params.model_dump(), {}
        for name in ("profile", "seed", *names):
            value, place = values, chosen
            *sections, last = name.split(".")
            for section in sections:
                value, place = value[section], place.setdefault(section, {})
            place[last] = value[last]
        print(yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True, width=110).strip())

    def note(self, **values: Any) -> None:
        """Put values into this stage's record in the manifest."""
        self.record.update(values)

    def note_data(self, *paths: str | Path) -> None:
        """Put the SHA-256 of input files into the record."""
        self.record.setdefault("data_sha256", {}).update({str(p): sha256(resolve(p)) for p in paths})

    def account(self, rows_in: int, kept: int, dropped: dict[str, int]) -> None:
        """Record rows in, kept, and dropped by reason.

        Raises
        ------
        DataError
            When they do not add up: no row may be lost without a reason.
        """
        if rows_in != kept + sum(dropped.values()):
            raise DataError(f"{rows_in} rows in, but {kept} kept and {dropped} dropped", where=self.stage)
        self.note(rows={"in": rows_in, "kept": kept, "dropped": dropped})

    def close(self, summary: str) -> None:
        """Keep this stage's record, and print one summary line; a quantity that is not known is None, never 0."""
        self.note(
            seconds=round(time.monotonic() - self.began, 1), summary=summary, machine=self._describe_machine(),
            written=datetime.now(UTC).isoformat(timespec="seconds"), files=list_files(self.run, WRITTEN),
        )  # fmt: skip
        if self.by_hand:
            finish(self.run, self.stage, BY_HAND, {**self.record, "parameters": self.params.model_dump(mode="json")})
        else:  # the runner adds the executed notebook
            write_text(closing_path(self.run, self.stage), to_json(self.record))
        print(f"{self.stage}: {summary}")

    @property
    def by_hand(self) -> bool:
        """Whether a person runs this notebook, and not the runner."""
        return os.environ.get(BATCH) != self.stage

    def _describe_machine(self) -> dict[str, Any]:
        lock = ROOT / "requirements" / "core.txt"
        return {
            "cpu": name_processor(), "device": str(self.device), "dtype": str(self.dtype).removeprefix("torch."),
            "scoring_dtype": str(self.scoring_dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(), "platform": platform.platform(), "python": platform.python_version(),
            "drot_utils": __version__, "lock_sha256": sha256(lock) if lock.exists() else None, "packages": {name: metadata.version(name) for name in PACKAGES},
        }  # fmt: skip


def name_processor() -> str:
    """Return the name of this machine's processor."""
    with suppress(OSError):
        named = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if named:
            return named[1]
    return platform.processor() or platform.machine()


def choose_dtypes(compute: Compute, device: torch.device) -> tuple[torch.dtype, torch.dtype, str]:
    """Return the dtypes of matrix products in training, and in scoring and sampling, and why.

    As asked, or bfloat16 where the machine multiplies it natively. A GPU that does not trains in float32, as gradients leave the
    range of float16, in which it scores and samples.
    """
    if compute.dtype != "auto":
        asked = getattr(torch, compute.dtype)
        return asked, asked, "as asked"
    if multiplies_bfloat16(device):
        return torch.bfloat16, torch.bfloat16, "native"
    if device.type == "cuda":
        return torch.float32, torch.float16, "no native bfloat16; scoring and sampling in float16"
    return torch.float32, torch.float32, "no native bfloat16"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 natively; a T4, say, only emulates it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # What torch may use: less than the processor has where ATEN_CPU_CAPABILITY says so.
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()


def measure_rate(device: torch.device, dtype: torch.dtype, busy: bool = False, seconds: float = 2.0) -> float:
    """Return operations a second in the products of a training step of the demo's student: forward, and both backward.

    The fastest of some times counts. Where others keep the processor `busy`, not even that is what it can do alone: then the time
    counts that its threads computed (those that wait must sleep, see `kernels.TUNED`), shared out evenly. Where bfloat16 is not
    native, products of few rows stand for all: they would take a minute.
    """
    clock, threads = (time.process_time, torch.get_num_threads()) if busy else (time.perf_counter, 1)
    rows = FEW if dtype == torch.bfloat16 and not multiplies_bfloat16(device) else MANY
    x, weight = (torch.ones(n, 576, device=device, dtype=dtype) for n in (rows, 1536))
    times, end = [], time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        began = clock()
        y = x @ weight.T
        _ = y @ weight, y.T @ x
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - began)
    return 6 * rows * weight.numel() * threads / min(times)


def warn_slow(device: torch.device) -> str:
    """Return a warning with the measured ratio where bfloat16 is not native and slower than float32, else nothing."""
    if multiplies_bfloat16(device):
        return ""
    slow, fast = (measure_rate(device, dtype) / 1e9 for dtype in (torch.bfloat16, torch.float32))
    found = f"measured {slow:,.1f} GFLOP/s against {fast:,.1f} in float32, {fast / slow:,.0f} times as slow"
    warning = f"Warning: `compute.dtype` is bfloat16, which is not native here: {found}; `auto` takes float32."
    return warning if slow < fast else ""


def measure_machine(study: Study) -> Machine:
    """Measure the machine on which a study runs, with the threads that a run uses."""
    device, (dtype, _, why) = study.device, choose_dtypes(study.params.compute, study.device)
    name, cores = name_processor(), torch.get_num_threads()
    if gpu := device.type == "cuda":
        name, cores = torch.cuda.get_device_name(), torch.cuda.device_count()
    load = 0.0 if gpu else os.getloadavg()[0]  # of the last minute
    load = load if load > cores / 2 else 0.0
    warning = warn_slow(device) if dtype == torch.bfloat16 else ""
    rate = measure_rate(device, dtype, busy=load > 0)
    return Machine(name, cores, gpu, str(dtype).removeprefix("torch."), why, rate, warning, load)


def release_memory() -> None:
    """Give back the memory of models that are no longer used, before the next one is loaded.

    They are part of reference cycles, half a gigabyte each, and glibc keeps freed blocks of some megabytes, of which caches
    of keys and values are made, for itself.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


if __name__ == "__main__":
    asked = load_params(sys.argv[1])
    try:
        print(json.dumps(vars(measure_machine(Study(asked, Run(asked.profile), "forecast")))))
    except ModelError as error:
        sys.exit(" ".join(str(error).split()))
