"""What a notebook opens first and closes last: its parameters, its run directory, its place in the manifest."""

import logging
import os
import time
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from drot_utils.errors import DataError
from drot_utils.manifest import record_stage
from drot_utils.params import Params
from drot_utils.paths import Run, resolve, sha256
from drot_utils.profiles import load_params


@dataclass
class Study:
    """One notebook's view of a run.

    Attributes
    ----------
    params : Params
        The checked parameters.
    run : Run
        Where things lie.
    stage : str
        The notebook's name, with its variant if it has one.
    """

    params: Params
    run: Run
    stage: str
    record: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @cached_property
    def device(self) -> Any:
        """The torch device of this run; torch is seeded and its threads set on first use."""
        from drot_utils.models import set_up

        return set_up(self.params.compute, self.params.seed)

    @cached_property
    def dtype(self) -> Any:
        """The dtype of matrix products."""
        from drot_utils.models import compute_dtype

        return compute_dtype(self.params.compute, self.device)

    def show(self, *sections: str) -> None:
        """Print the resolved sections of the parameters, as YAML."""
        values = self.params.model_dump()
        chosen = {name: values[name] for name in ("profile", "seed", *sections)}
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
        """Write the record and print one summary line."""
        self.note(seconds=round(time.monotonic() - self.began, 1), summary=summary)
        record_stage(self.run, self.params, self.stage, self.record)
        print(f"{self.stage}: {summary}")


def open_study(stage: str, params_file: str | Path, variant: str = "") -> Study:
    """Open a run from a notebook: check the parameters, quiet the libraries, start the clock.

    Parameters
    ----------
    stage : str
        The notebook's name, such as ``02_critic``.
    params_file : str or Path
        Such as ``params/demo.yaml``.
    variant : str
        Appended to the stage's name: the round, or the ablation.

    Raises
    ------
    ParamsError
        See `load_params`.
    """
    params = load_params(params_file)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    pd.options.display.max_colwidth = 110
    study = Study(params, Run(params.profile), f"{stage}-{variant}" if variant else stage)
    study.note(seed=params.seed)
    return study
