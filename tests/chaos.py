"""Kill the smoke study at random moments, start it again until it ends, and compare all it made with an undisturbed run's.

``python tests/chaos.py --kills 30`` (``make chaos``): every parquet, table, figure and safetensors file must be the same, byte by
byte. Files that hold times by nature are listed by name and not compared.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent
COMPARED = {
    ".parquet", ".safetensors", ".csv", ".tex", ".md", ".tsv", ".png", ".pdf", ".json", ".jsonl", ".html", ".xml", ".yaml",
}  # fmt: skip
#: Hold times or the path of the run: the manifest (seconds), the model's training record is compared.
TIMED = {"manifest.json"}


def start(params_file: Path, output: Path, until: list[str]) -> subprocess.Popen[bytes]:
    """Start the study in a process group of its own, with kernels of its own or, in the tests, of their server: they end with it."""
    command = [sys.executable, "-m", "drot_utils", "run", str(params_file), "--cores", "2", *until]
    log = (output / "log.txt").open("ab")
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "DROT_OUTPUT": str(output)},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the study, its runner, its jobs and their kernels, all at once."""
    victims = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    psutil.wait_procs([psutil.Process(pid) for pid in victims if psutil.pid_exists(pid)], timeout=5)


def run_disturbed(
    params_file: Path, output: Path, rng: random.Random, kills: int, longest: float, until: list[str]
) -> int:
    """Run a study to its end through at most `kills` kills; return how many there were."""
    done = 0
    while True:
        process = start(params_file, output, until)
        wait = rng.uniform(1, longest) if done < kills else 3600
        try:
            if process.wait(timeout=wait) == 0:
                return done
            raise SystemExit(f"the study failed; see {output / 'log.txt'}\n{(output / 'log.txt').read_text()[-2000:]}")
        except subprocess.TimeoutExpired:
            kill(process)
            done += 1
            print(f"  killed after {wait:.1f} s ({done})", flush=True)


def files_of(output: Path) -> dict[str, bytes]:
    """Return the compared files of a run by name; unfinished work (shards, checkpoints, logs) is not part of the result."""
    found = {}
    for path in sorted(output.rglob("*")):
        name = str(path.relative_to(output))
        timed = "/work/" in name or "/stages/" in name or path.name in TIMED
        if path.suffix in COMPARED and not timed and path.is_file():
            found[name] = path.read_bytes()
    return found


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Return what is missing on one side, or not the same."""
    return [name for name in sorted(one | other) if one.get(name) != other.get(name)]


def main() -> int:
    """Run the comparison; 1 when a file differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--each", type=int, default=10, help="kills a study at most")
    parser.add_argument("--longest", type=float, default=40.0, help="seconds a study lives at most before a kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", metavar="STAGE", help="only up to this stage, without the ablations")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    until = ["--until", arguments.until] if arguments.until else []
    with tempfile.TemporaryDirectory() as folder:
        values = {"extends": str(ROOT / "params/smoke.yaml"), "ablations": arguments.until is None}
        params_file = Path(folder) / "chaos.yaml"
        params_file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        whole = Path(folder) / "whole"
        whole.mkdir()
        began = time.perf_counter()
        run_disturbed(params_file, whole, rng, 0, 0, until)
        expected = files_of(whole)
        print(f"undisturbed: {len(expected)} files in {time.perf_counter() - began:.0f} s", flush=True)
        total = rounds = 0
        while total < arguments.kills:
            output = Path(folder) / f"killed{rounds}"
            output.mkdir()
            kills = min(arguments.each, arguments.kills - total)
            total += run_disturbed(params_file, output, rng, kills, arguments.longest, until)
            rounds += 1
            different = differences(expected, files_of(output))
            print(f"study {rounds}: {total} kills so far, {len(different)} files differ {different[:5]}", flush=True)
            if different:
                return 1
        print(
            f"{total} kills in {rounds} studies, {len(expected)} files each: no difference. Not compared: {sorted(TIMED)}, "
            "*.ipynb and answers.sqlite (which hold times), logs"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
