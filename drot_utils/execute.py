"""Run one notebook with papermill: ``python -m drot_utils.execute STAGE PARAMS_FILE`` (what each Snakemake job does)."""

import argparse
import getpass
import json
import os
import sys
from pathlib import Path

from drot_utils.errors import DrotError, escape_output, wrap_os_error
from drot_utils.paths import NOTEBOOKS, ROOT, Run, exclusive, output_root, settle_output, write_text
from drot_utils.profiles import load_params
from drot_utils.progress import STATUS
from drot_utils.stages import Stage, list_stages, refuse_braces

THREADS = [f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "GOTO")] + [
    "VECLIB_MAXIMUM_THREADS"
]
START = 600  # seconds that a kernel may take to start: a network file system reads a thousand files first


def run_environment(run: Run) -> dict[str, str]:
    """Return the environment of the processes that a run starts: what is set stays, and caches go below the run's ``work/``.

    So a run needs no home that can be written, no name for its user, and leaves nothing behind elsewhere.

    Raises
    ------
    StorageError
        When there is no home, and none can be made below ``work/``.
    """
    cache = run.work("cache")
    own = {
        "DROT_OUTPUT": str(output_root()),
        # Of Snakemake, vLLM, and numba, where it cannot keep its code beside the packages (which all runs share).
        "XDG_CACHE_HOME": str(cache),
        "MPLCONFIGDIR": str(cache / "matplotlib"),
        "IPYTHONDIR": str(cache / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(cache / "jupyter"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        # Huge pages, where the kernel gives them on request: a training step takes a tenth less, as fresh memory is dear.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 (it gives "~" itself where there is none)
    forced = {}
    if not home.is_dir():
        home = cache / "home"
        forced["HOME"] = str(home)
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise wrap_os_error(error, home) from error
    # Models from the hub are large and for all runs, and the user's token lies beside them: they stay where they are, if they can.
    models = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface"
    if not models.is_dir() and not _can_be_made(models):
        models = cache / "huggingface"
    own["HF_HOME"] = str(models)
    try:
        getpass.getuser()
    except (KeyError, OSError):
        own["USER"] = f"uid{os.getuid()}"
    return own | {name: value for name, value in os.environ.items() if value or name not in own} | forced


def _can_be_made(folder: Path) -> bool:
    return os.access(next(place for place in folder.parents if place.exists()), os.W_OK | os.X_OK)


def execute(stage: Stage, params_file: str, run: Run) -> Path:
    """Execute a stage's notebook in a fresh kernel.

    Parameters
    ----------
    stage : Stage
    params_file : str
        Handed to the notebook.
    run : Run

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
    with exclusive(run.work("running") / f"{stage.name}.lock", wait=False, what=f"running {stage.name}"):
        _execute(stage, params_file, run, output)
    return output


def _execute(stage: Stage, params_file: str, run: Run, output: Path) -> None:
    import nbclient.exceptions
    import papermill

    unfinished = output.parent / "unfinished" / output.name
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    status = run.work("progress") / f"{stage.name}.json"
    write_text(
        status,
        json.dumps({"what": "starting", "n": 0, "total": 0, "unit": "", "rate": 0}),
    )
    os.environ[STATUS] = str(status)
    # Snakemake tells each job's libraries to use one thread; `compute.threads` says how many.
    for name in THREADS:
        os.environ.pop(name, None)
    try:
        papermill.execute_notebook(
            NOTEBOOKS / f"{stage.notebook}.ipynb", unfinished, {"params_file": params_file, **stage.parameters},
            kernel_name="python3", kernel_manager_class=_own_kernel(), start_timeout=START, cwd=ROOT, progress_bar=False,
        )  # fmt: skip
        unfinished.replace(output)
    except papermill.PapermillExecutionError as error:
        raise DrotError(
            f"cell {error.cell_index} failed with {error.ename}: {error.evalue}",
            where=stage.name,
            todo=f"the notebook up to that cell is {unfinished}; mend the cause and run the same command again",
        ) from error
    except nbclient.exceptions.DeadKernelError as error:
        raise DrotError(
            f"the notebook's kernel died ({error})",
            where=stage.name,
            todo="most often memory ran out: lower generation.batch_size or student.batch_size, then run again",
        ) from error
    except RuntimeError as error:
        raise DrotError(
            f"the notebook's kernel did not start ({error})",
            where=stage.name,
            todo=f"see what {sys.executable} -m ipykernel_launcher says; if nothing, run again: a slow disk may have needed "
            f"more than {START} s",
        ) from error
    except OSError as error:
        raise wrap_os_error(error, unfinished) from error
    finally:
        status.unlink(missing_ok=True)


def _own_kernel() -> type:
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class OwnKernel(AsyncKernelManager):
        # Whatever kernel is installed as python3, perhaps another environment's: ours runs in this interpreter.
        kernel_spec = KernelSpec(**get_kernel_dict())

    return OwnKernel


def main() -> int:
    """Run the stage named on the command line; 1 on a known error, said in one paragraph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("params_file")
    arguments = parser.parse_args()
    escape_output()
    try:
        settle_output()
        params = load_params(arguments.params_file)
        refuse_braces(Run(params.profile), params)
        os.environ.update(run_environment(Run(params.profile)))
        stages = {stage.name: stage for stage in list_stages(params, ablations=True)}
        if arguments.stage not in stages:
            raise DrotError(f"no stage {arguments.stage!r}; there are {', '.join(stages)}")
        execute(stages[arguments.stage], arguments.params_file, Run(params.profile))
    except DrotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
