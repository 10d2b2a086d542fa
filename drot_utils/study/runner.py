"""Who runs the stages: a whole study through Snakemake, with its progress; one notebook with papermill."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError
from tqdm import tqdm

from drot_utils.study import outputs
from drot_utils.study.errors import DrotError, MissingInputError, wrap_os_error
from drot_utils.study.forecast import finish_time, foresee
from drot_utils.study.graph import Stage, Stamp, list_stages, refuse_braces, stamp_stages
from drot_utils.study.kernels import THREADS, TUNED, kernel_command, kernel_server
from drot_utils.study.params import Params, load_params
from drot_utils.study.paths import ROOT, Run, exclusive, output_root, write_text
from drot_utils.study.progress import STATUS, rate_of

LOG_EVERY = 30  # seconds between lines when the output is a file
START = 600  # seconds that a kernel may take to start: a network file system reads a thousand files first


def run_study(
    params_file: str | Path, cores: int = 1, ablations: bool = False, until: str | None = None, dry: bool = False
) -> int:
    """Run the stages of a study (or those that `until` needs, and itself) whose results are not there, through Snakemake.

    What another run has already is taken over from it (see `outputs`).

    Parameters
    ----------
    dry : bool
        Only say what would run, why, and for about how long.

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
    stamps = stamp_stages(stages, params)
    if until:
        stages = _needed_by(_find_stage(stages, until), stages)
    refuse_braces(run.root)
    if dry:
        made = {stage.name: outputs.find_made(run, stage.name, stamps[stage.name].look) for stage in stages}
        planned = [stage for stage in stages if not made[stage.name]]
        if planned:
            planned, said = foresee(params_file, params, planned, cores)
            print(said)
        expected = {stage.name: stage for stage in planned}
        print(outputs.describe_stages(run, [expected.get(stage.name, stage) for stage in stages], stamps, made))
        return 0
    work = run.work("")
    with exclusive(work / ".lock", wait=False, what="running this study") as lock:
        before = outputs.read_records(run)
        missing = outputs.settle(run, stages, stamps)
        taken = [f"{name} ({record['from']})" for name, record in outputs.read_records(run).items()
                 if record.get("from") and name not in before]  # fmt: skip
        if taken:
            print(f"taken over from other runs: {', '.join(taken)}")
        if missing:
            targets = [str(outputs.record_path(run, name, stamps[name].look)) for name in missing]
            planned, said = foresee(params_file, params, [stage for stage in stages if stage.name in missing], cores)
            print(said, flush=True)
            if status := _run_snakemake(run, params_file, cores, ablations, targets, planned, lock):
                return status
    _conclude(run, params)
    return 0


def _run_snakemake(
    run: Run, params_file: str | Path, cores: int, ablations: bool, targets: list[str], stages: list[Stage], lock: TextIO | None
) -> int:  # fmt: skip
    work = run.work("")
    # Snakemake reads the value as YAML, but strips quotes first; within a list they stay.
    quoted = json.dumps([str(params_file)], ensure_ascii=False)
    command = [
        sys.executable, "-m", "snakemake", *targets, "--snakefile", str(ROOT / "Snakefile"), "--directory", str(work),
        "--cores", str(cores), "--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime", "--nocolor",
        "--config", f"params_file={quoted}", *(["ablations=1"] if ablations else []),
    ]  # fmt: skip
    log = work / "snakemake.log"
    for stale in run.work("progress").glob("*"):
        stale.unlink()
    # UTF-8, whatever the terminal's encoding is.
    environment = run_environment(run) | {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}
    # Snakemake holds the lock too: if this process is killed and it is not, nobody starts a second one.
    held = [lock.fileno()] if lock else []
    with (
        log.open("w") as out,
        kernel_server(work / "kernels.socket", environment) as served,
        subprocess.Popen(command, stdout=out, stderr=out, env=environment | served, pass_fds=held) as process,
    ):
        try:
            _watch(process, log, run, stages, cores)
        except KeyboardInterrupt:
            process.terminate()
            print("\nstopped; the same command continues from here")
            return 130
    if process.returncode:
        errors = re.findall(r"^error: .*(?:\n  .*)*", log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        print("\n".join(errors) or f"Snakemake failed; its messages are in {log}", file=sys.stderr)
    return process.returncode


def _needed_by(last: Stage, stages: list[Stage]) -> list[Stage]:
    needed = {last.name}
    for stage in reversed(stages):
        if stage.name in needed:
            needed |= set(stage.needs)
    return [stage for stage in stages if stage.name in needed]


def _find_stage(stages: list[Stage], name: str) -> Stage:
    for stage in stages:
        if stage.name == name:
            return stage
    raise DrotError(f"no stage {name!r}; there are {', '.join(stage.name for stage in stages)}")


def _watch(process: subprocess.Popen, log: Path, run: Run, stages: list[Stage], cores: int) -> None:
    began = shown = time.time()
    started: dict[str, float] = {}
    took: dict[str, float] = {}
    terminal = sys.stdout.isatty()
    while process.poll() is None:
        time.sleep(0.5)
        now = time.time()
        text = log.read_text(encoding="utf-8", errors="replace")
        listed = re.findall(r"^(\S+) +1$", text, re.MULTILINE)  # Snakemake's table of what it will run
        planned = {stage.name: stage for stage in stages if stage.name in listed}
        for name in re.findall(r"^Finished jobid: \d+ \(Rule: (\S+)\)", text, re.MULTILINE):
            if name in planned:
                took.setdefault(name, now - started.get(name, shown))
        words, running = [], {}
        for path in sorted(run.work("progress").glob("*.json")):
            if (name := path.stem) in planned and name not in took:
                with suppress(FileNotFoundError):  # just finished
                    status = json.loads(path.read_text(encoding="utf-8"))
                    rate, rest = rate_of(status, now), status["total"] - status["n"]
                    running[name] = now - started.setdefault(name, now), rest / rate if rate else 0.0
                    done = f" {status['n']}/{status['total']} {status['unit']}, {rate:.1f}/s" if status["total"] else ""
                    words.append(f"{name}: {status['what']}{done}")
        if not running or now - shown < (0.5 if terminal else LOG_EVERY):
            continue
        shown = now
        line = f"[{len(took) + 1}/{len(planned)}] {' + '.join(words)} | {tqdm.format_interval(now - began)} so far"
        if left := time_left(list(planned.values()), took, running, cores):
            line += f", about {tqdm.format_interval(left)} left"
        print(f"\r\033[K{line[:180]}" if terminal else line, end="" if terminal else "\n", flush=True)
    if terminal:
        print("\r\033[K", end="")


def time_left(
    planned: list[Stage], took: dict[str, float], running: dict[str, tuple[float, float]], cores: int
) -> float:
    """Return the seconds until a study is done (see `finish_time`).

    A stage takes what it usually takes, stretched as it was in the finished ones and is in running ones that are late. How much
    that is believed grows with their share of the study: a stage of seconds that took four times as long says little of hours.

    Parameters
    ----------
    planned : list of Stage
        All that this run runs, in their order.
    took : dict
        The seconds of the finished ones.
    running : dict
        The seconds so far of the running ones, and those that are left of their present work.
    """
    usual = {stage.name: stage.seconds for stage in planned}
    believed = sum(usual.values()) / 10  # as much as if a tenth of the study had taken its usual time

    def pace_of(seen: dict[str, float]) -> float:
        return (sum(seen.values()) + believed) / (sum(usual[name] for name in seen) + believed)

    pace = pace_of(took)
    pace = pace_of(took | {name: so_far for name, (so_far, _) in running.items() if so_far > usual[name] * pace})
    left = {}
    for stage in planned:
        if stage.name not in took:
            so_far, present = running.get(stage.name, (0, 0))
            left[stage.name] = max(stage.seconds * pace - so_far, present)
    return finish_time(planned, left, cores)


def _conclude(run: Run, params: Params) -> None:
    if params.student.base.source == "random":
        print("The models of this run are tiny and random: its numbers mean nothing.\n")
    if warnings := [text for record in outputs.read_records(run).values() for text in record.get("warnings", [])]:
        print("\n".join(warnings), end="\n\n")
    table = run.figures / "table2.md"
    if table.exists():
        print(table.read_text(encoding="utf-8"))
    print(f"executed notebooks  {run.root / 'notebooks'}")
    print(f"data and models     {run.root / 'data'}, {run.root / 'models'}")
    print(f"figures and tables  {run.figures}")
    print(f"manifest            {run.manifest}")


def run_stage(name: str, params_file: str, look: str | None = None) -> None:
    """Execute the stage of that name (see `execute`).

    Raises
    ------
    MissingInputError
        When the run has not what the stage needs, or has it as other parameters, code or data made it.
    DrotError
        When there is no such stage, or its stamp is not `look`.
    """
    params = load_params(params_file)
    run = Run(params.profile)
    refuse_braces(run.root)
    # The ablations change the stamp of what comes after them: with them or without, as planned.
    for stages in (list_stages(params), list_stages(params, ablations=True)):
        if name in {stage.name for stage in stages}:
            stamps, stage = stamp_stages(stages, params), _find_stage(stages, name)
            if look in (None, stamps[name].look):
                _require_needs(run, stage, stamps, params_file)
                os.environ.update(run_environment(run))
                execute(stage, params_file, run, stamps[name])
                return
    _find_stage(stages, name)
    found = "the code, the parameters or the data changed since this run began"
    raise DrotError(found, where=name, todo="run the same command again")


def _require_needs(run: Run, stage: Stage, stamps: dict[str, Stamp], params_file: str) -> None:
    # Else its record would say that it was made of what would be made now, and not of what is there.
    records = outputs.read_records(run)
    for need in stage.needs:
        record = records.get(need)
        if record is None or record.get("stamp") != stamps[need].value:
            why = "; ".join(outputs.explain(stamps[need], record)[:4])
            raise MissingInputError(
                f"needs {need} as it would be made now ({why})", where=stage.name,
                todo=f"run the stage {need} first, or all that is needed: run {params_file} --until {stage.name}",
            )  # fmt: skip


def execute(stage: Stage, params_file: str | Path, run: Run, stamp: Stamp | None = None) -> Path:
    """Execute a stage's notebook in a kernel of its own (see `kernels`), and keep the record of what it made.

    Returns
    -------
    Path
        The executed notebook. While it runs, and after an error, what there is of it lies in the folder ``unfinished``
        beside it.

    Raises
    ------
    DrotError
        When a cell fails or the kernel dies; says which cell, and where to look.
    """
    output = stage.output(run)
    unfinished = output.parent / "unfinished" / output.name
    status, closing = run.work("progress") / f"{stage.name}.json", outputs.closing_path(run, stage.name)
    with exclusive(run.work("running") / f"{stage.name}.lock", wait=False, what=f"running {stage.name}"):
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        write_text(status, json.dumps({"what": "starting", "n": 0, "start_n": 0, "total": 0, "began": 0}))
        os.environ |= {STATUS: str(status), outputs.BATCH: stage.name}
        # Snakemake tells each job's libraries to use one thread; `compute.threads` says how many.
        for name in THREADS:
            os.environ.pop(name, None)
        outputs.begin(run, stage.name)
        closing.unlink(missing_ok=True)
        try:
            _run_notebook(stage, str(params_file), unfinished)
            unfinished.replace(output)
        except OSError as error:
            raise wrap_os_error(error, unfinished) from error
        finally:
            status.unlink(missing_ok=True)
        record = json.loads(closing.read_text(encoding="utf-8")) if closing.exists() else {"files": {}}
        record["files"] |= outputs.list_files(run, [output])
        if stamp:
            record |= {"stamp": stamp.value, "look": stamp.look, "inputs": stamp.inputs}
        outputs.finish(run, stage.name, stamp.look if stamp else outputs.BY_HAND, record)
    return output


def _run_notebook(stage: Stage, params_file: str, output: Path) -> None:
    try:
        papermill.execute_notebook(
            stage.notebook, output, {"params_file": params_file, **stage.parameters}, kernel_name="python3",
            kernel_manager_class=_OwnKernel, start_timeout=START, cwd=ROOT, progress_bar=False,
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        found = f"cell {error.cell_index} failed with {error.ename}: {error.evalue}"
        todo = f"the notebook up to that cell is {output}; correct the cause and run the same command again"
        raise DrotError(found, where=stage.name, todo=todo) from error
    except DeadKernelError as error:
        todo = "most often memory ran out: lower generation.batch_size or student.batch_size, then run again"
        raise DrotError(f"the notebook's kernel died ({error})", where=stage.name, todo=todo) from error
    except RuntimeError as error:
        todo = f"see what {sys.executable} -m ipykernel_launcher says; if it starts, run again: the disk may have been too slow"
        raise DrotError(f"the notebook's kernel did not start ({error})", where=stage.name, todo=todo) from error


class _OwnKernel(AsyncKernelManager):
    @property
    def kernel_spec(self) -> KernelSpec:
        """Of this interpreter, whatever is installed as python3: perhaps another environment's."""
        return KernelSpec(**get_kernel_dict() | {"argv": kernel_command()})


def run_environment(run: Run) -> dict[str, str]:
    """Return the environment of the processes that a run starts: what is set stays, and caches go below the run's ``work/``.

    So a run needs no home that can be written, no name for its user, and leaves nothing behind elsewhere.
    """
    cache = run.work("cache")
    home, forced = Path(os.path.expanduser("~")), {}  # noqa: PTH111 (it gives "~" itself where there is none)
    if not (os.access(home, os.X_OK) and home.is_dir()):  # a container's user may have root's, which it may not enter
        home = cache / "home"
        home.mkdir(parents=True, exist_ok=True)
        forced = {"HOME": str(home)}
    # Models from the hub are large and for all runs, and the user's token lies beside them: they stay where they are, if they can.
    models = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface"
    above = next(place for place in models.parents if place.exists())
    usable = models.is_dir() or os.access(above, os.W_OK | os.X_OK)
    own = {
        "USER": f"uid{os.getuid()}",  # for libraries that ask for a name, where there is none
        "DROT_OUTPUT": str(output_root()),
        # Of Snakemake, vLLM, and numba, where it cannot keep its code beside the packages (which all runs share).
        "XDG_CACHE_HOME": str(cache),
        "MPLCONFIGDIR": str(cache / "matplotlib"),
        "IPYTHONDIR": str(cache / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(cache / "jupyter"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        "HF_HOME": str(models if usable else cache / "huggingface"),
        **TUNED,
    }
    return own | {name: value for name, value in os.environ.items() if value or name not in own} | forced
