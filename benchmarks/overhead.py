"""What papermill, Snakemake and imports cost: the cells' own work against the whole ``make smoke``."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import read_options, write_result
from drot_utils.paths import ROOT


def main() -> None:
    """Run the benchmark: one smoke study, as it takes three minutes; `overhead` is a share, not a rate."""
    read_options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "drot_utils", "params/smoke.yaml", "--cores", "1"]
        subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "DROT_OUTPUT": folder},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        whole = time.perf_counter() - began
        manifest = json.loads((Path(folder) / "runs/smoke/manifest.json").read_text(encoding="utf-8"))
    work = sum(stage["seconds"] for stage in manifest["stages"].values())
    share = 1 - work / whole
    print(f"whole study {whole:.1f} s, the notebooks' own work {work:.1f} s, overhead {share:.0%}")
    write_result(
        "overhead",
        {"name": "overhead", "ours": round(work, 1), "peer": round(whole, 1), "peer_name": "whole smoke study", "unit": "s",
         "ratio": round(share, 3), "bound": None, "of_bound": None},
    )  # fmt: skip


if __name__ == "__main__":
    main()
