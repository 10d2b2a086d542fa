"""Run a whole study and show how it goes: ``python -m drot_utils params/demo.yaml`` (what `make demo` calls)."""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from drot_utils.errors import DrotError, escape_output
from drot_utils.execute import run_environment
from drot_utils.params import Params
from drot_utils.paths import ROOT, Run, exclusive, settle_output
from drot_utils.profiles import load_params
from drot_utils.progress import bar_left, study_left
from drot_utils.stages import Stage, list_stages, refuse_braces

LOG_EVERY = 30  # seconds between lines when the output is a file


def run_study(params_file: str, cores: int, ablations: bool, until: str | None = None) -> int:
    """Run all stages (or those up to `until`) that are not up to date, through Snakemake.

    Returns
    -------
    int
        0 when all ran or were up to date; else Snakemake's status.

    Raises
    ------
    DrotError
        When another run holds the same directory, or a stage fails.
    """
    params = load_params(params_file)
    run = Run(params.profile)
    stages = list_stages(params, ablations=True if ablations else None)
    if until and until not in {stage.name for stage in stages}:
        raise DrotError(f"no stage {until!r}; there are {', '.join(stage.name for stage in stages)}")
    refuse_braces(run, params)
    work = run.work("")
    # Snakemake reads the value as YAML, but strips quotes first; within a list they stay.
    quoted = json.dumps([str(params_file)], ensure_ascii=False)
    with exclusive(work / ".lock", wait=False, what="running this study") as lock:
        for stale in run.work("progress").glob("*"):
            stale.unlink()
        command = [
            sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(work),
            "--cores", str(cores), "--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime", "params", "input",
            "--nocolor", "--config", f"params_file={quoted}", *(["ablations=1"] if ablations else []),
            *(["--until", until] if until else []),
        ]  # fmt: skip
        log = work / "snakemake.log"
        environment = {
            **run_environment(run),
            "PYTHONUTF8": "1",
            "PYTHONIOENCODING": "utf-8",
        }  # whatever the terminal's is
        with (
            log.open("w") as handle,
            # Snakemake holds the lock too: if this process is killed and it is not, nobody starts a second one.
            subprocess.Popen(
                command,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[lock.fileno()] if lock else [],
            ) as process,
        ):
            try:
                _watch(process, log, run, stages, cores)
            except KeyboardInterrupt:
                process.terminate()
                print("\nstopped; the same command goes on from here")
                return 130
    if process.returncode:
        errors = re.findall(
            r"^error: .*(?:\n  .*)*", log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
        print("\n".join(errors) or f"Snakemake failed; its words are in {log}", file=sys.stderr)
        return process.returncode
    _close(run, params)
    return 0


def _watch(process: subprocess.Popen, log: Path, run: Run, stages: list[Stage], cores: int) -> None:
    began = shown = time.monotonic()
    started: dict[str, float] = {}
    took: dict[str, float] = {}
    needs = {stage.name: stage.needs for stage in stages}
    terminal = sys.stdout.isatty()
    while process.poll() is None:
        time.sleep(0.5)
        now = time.monotonic()
        text = log.read_text(encoding="utf-8", errors="replace")
        planned = {
            s.name: s.seconds for s in stages if re.search(rf"^{re.escape(s.name)}\s+1$", text, re.MULTILINE)
        }
        for name in re.findall(r"^Finished jobid: \d+ \(Rule: (\S+)\)", text, re.MULTILINE):
            if name in planned:
                took.setdefault(name, now - started.get(name, shown))
        running = {name: status for name, status in _read_status(run).items() if name not in took}
        for name in running:
            started.setdefault(name, now)
        if not running or now - shown < (0.5 if terminal else LOG_EVERY):
            continue
        shown = now
        line = f"[{len(took) + 1}/{len(planned)}] {' + '.join(_describe(n, s) for n, s in running.items())}"
        line += f" | {_clock(now - began)} so far"
        if took:
            at = {n: (now - started[n], bar_left(s, time.time())) for n, s in running.items() if n in planned}
            left = study_left(planned, needs, took, at, cores)
            line += ", longer than usual" if left is None else f", about {_clock(left)} left"
        print(f"\r\033[K{line[:180]}" if terminal else line, end="" if terminal else "\n", flush=True)
    if terminal:
        print("\r\033[K", end="")


def _read_status(run: Run) -> dict[str, dict]:
    status = {}
    for path in sorted(run.work("progress").glob("*.json")):
        try:
            status[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue  # just being replaced
    return status


def _describe(name: str, status: dict) -> str:
    if not status["total"]:
        return f"{name}: {status['what']}"
    return (
        f"{name}: {status['what']} {status['n']}/{status['total']} {status['unit']}, {status['rate']:.1f}/s"
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def _close(run: Run, params: Params) -> None:
    if params.student.base.source == "random":
        print("The models of this run are tiny and random: its numbers mean nothing.\n")
    table = run.figures / "table2_short.md"
    if table.exists():
        print(table.read_text(encoding="utf-8"))
    print(f"executed notebooks  {run.root / 'notebooks'}")
    print(f"data and models     {run.root / 'data'}, {run.root / 'models'}")
    print(f"figures and tables  {run.figures}")
    print(f"manifest            {run.manifest}")


def main() -> int:
    """Read the command line and run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("params_file", help="such as params/demo.yaml")
    parser.add_argument("--cores", type=int, default=1, help="notebooks that may run side by side")
    parser.add_argument("--ablations", action="store_true", help="with the six ablated students of table 2")
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage, such as 04_distill_base")
    arguments = parser.parse_args()
    escape_output()
    try:
        settle_output()
        return run_study(arguments.params_file, arguments.cores, arguments.ablations, arguments.until)
    except DrotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
