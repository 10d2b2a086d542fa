"""Run one notebook with papermill: ``python -m drot_utils.execute STAGE PARAMS_FILE`` (what each Snakemake job does)."""

import argparse
import json
import os
import sys
from pathlib import Path

from drot_utils.errors import DrotError, escape_output, wrap_os_error
from drot_utils.paths import NOTEBOOKS, ROOT, Run, exclusive, write_text
from drot_utils.profiles import load_params
from drot_utils.progress import STATUS
from drot_utils.stages import Stage, list_stages, refuse_braces

THREADS = [f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "GOTO")] + [
    "VECLIB_MAXIMUM_THREADS"
]


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
    # Huge pages, where the kernel gives them on request: a training step takes a tenth less, as fresh memory is dear.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    try:
        papermill.execute_notebook(
            NOTEBOOKS / f"{stage.notebook}.ipynb", unfinished, {"params_file": params_file, **stage.parameters},
            kernel_name="python3", cwd=ROOT, progress_bar=False,
        )  # fmt: skip
        unfinished.replace(output)
    except papermill.PapermillExecutionError as error:
        raise DrotError(
            f"cell {error.cell_index} failed with {error.ename}: {error.evalue}",
            where=stage.name,
            todo=f"the notebook up to that cell is {unfinished}; mend the cause and run the same command again",
        ) from error
    except (nbclient.exceptions.DeadKernelError, RuntimeError) as error:
        raise DrotError(
            f"the notebook's kernel died ({error})",
            where=stage.name,
            todo="most often memory ran out: lower generation.batch_size or student.batch_size, then run again",
        ) from error
    except OSError as error:
        raise wrap_os_error(error, unfinished) from error
    finally:
        status.unlink(missing_ok=True)


def main() -> int:
    """Run the stage named on the command line; 1 on a known error, said in one paragraph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("params_file")
    arguments = parser.parse_args()
    escape_output()
    try:
        params = load_params(arguments.params_file)
        refuse_braces(Run(params.profile), params)
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
