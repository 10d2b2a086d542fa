"""What papermill, Snakemake and imports cost: the cells' own work against the whole ``make smoke``.

The bound is what a notebook costs that only imports torch and transformers in a kernel of its own, started afresh: a run's
kernels are forked from one process that has imported them (`study.kernels`), so the overhead may be below it.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from benchmarks.harness import read_options, write_result
from drot_utils.study.paths import ROOT


def main() -> None:
    """Run the benchmark: one smoke study, as it takes four minutes; the ratio is overhead's share, not one of rates."""
    read_options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "drot_utils", "run", "params/smoke.yaml", "--cores", "1"]
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, "DROT_OUTPUT": folder}, check=True, stdout=subprocess.DEVNULL
        )
        whole = time.perf_counter() - began
        manifest = json.loads((Path(folder) / "runs/smoke/manifest.json").read_text(encoding="utf-8"))
        bare = statistics.median(_empty_notebook(Path(folder)) for _ in range(3))
    work = sum(stage["seconds"] for stage in manifest["stages"].values())
    notebooks = len(manifest["stages"])
    share, least = 1 - work / whole, 1 - work / (work + notebooks * bare)
    print(
        f"whole study {whole:.1f} s, the notebooks' own work {work:.1f} s, overhead {share:.0%}: "
        f"{notebooks} notebooks of {(whole - work) / notebooks:.1f} s; {bare:.1f} s ({least:.0%}) for an empty one"
    )
    write_result(
        "overhead",
        {"name": "overhead", "ours": round(work, 1), "peer": round(whole, 1), "peer_name": "whole smoke study", "unit": "s",
         "ratio": round(share, 3), "bound": round(least, 3), "of_bound": round(least / share, 3), "notebooks": notebooks},
    )  # fmt: skip


def _empty_notebook(folder: Path) -> float:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import torch\nimport transformers.modeling_utils")]
    )
    nbformat.write(notebook, folder / "empty.ipynb")
    began = time.perf_counter()
    command = [sys.executable, "-m", "papermill", "empty.ipynb", "out.ipynb", "-k", "python3"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
