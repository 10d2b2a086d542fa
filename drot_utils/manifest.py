"""The record of a run: parameters, versions, models, data, seeds, times, row counts, tokens and cost."""

import json
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from drot_utils import __version__
from drot_utils.params import Params
from drot_utils.paths import ROOT, Run, exclusive, sha256, to_json, write_text

PACKAGES = [
    "torch", "transformers", "datasets", "tokenizers", "safetensors", "pandas", "pyarrow", "numpy", "scikit-learn",
    "bertopic", "openai", "papermill", "snakemake",
]  # fmt: skip


def record_stage(run: Run, params: Params, stage: str, record: dict[str, Any]) -> Path:
    """Write what a notebook did, and put all stages together in ``manifest.json``.

    Parameters
    ----------
    run : Run
    params : Params
        The effective parameters; kept in the manifest.
    stage : str
        The notebook's name with its variant.
    record : dict
        Rows, tokens, cost, models, seconds ...; a quantity that is not known is None, never 0.

    Returns
    -------
    Path
        The manifest.
    """
    folder = run.work("stages")
    # Two notebooks may end at once (`make smoke` runs them in parallel): one puts the manifest together at a time.
    with exclusive(folder / ".lock", wait=True):
        write_text(folder / f"{stage}.json", _json(record))
        stages = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))}
        write_text(run.manifest, _json({**_environment(params), "stages": stages}))
    return run.manifest


def read_manifest(run: Run) -> dict[str, Any]:
    """Return the manifest of a run, empty when there is none yet."""
    return json.loads(run.manifest.read_text(encoding="utf-8")) if run.manifest.exists() else {}


def _environment(params: Params) -> dict[str, Any]:
    lock = ROOT / "requirements" / "core.txt"
    return {
        "profile": params.profile,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "drot_utils": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "lock_sha256": sha256(lock) if lock.exists() else None,
        "parameters": params.model_dump(),
    }


def _json(value: Any) -> str:
    return to_json(value, indent=2, sort_keys=True) + "\n"
