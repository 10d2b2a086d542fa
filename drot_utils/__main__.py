"""The study from the command line: ``python -m drot_utils run | ask | compare | release | site | atlas | plan | answers | stage``."""

import argparse
import gc
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from drot_utils.study.errors import DataError, DrotError
from drot_utils.study.paths import Run, settle_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and do what it asks for; 1 on a known error, said in one paragraph."""
    options = _make_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show, such as a dash, must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        settle_output()
        return options.do(options) or 0
    except DrotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m drot_utils", description="The study from the command line.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, do: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(do=do)
        return command

    run = add("run", _run, "run a whole study and show its progress")
    run.add_argument("params_file", help="such as params/demo.yaml")
    run.add_argument("--cores", type=int, default=1, help="notebooks that may run side by side")
    run.add_argument("--ablations", action="store_true", help="also train the six ablated students of table 2")
    run.add_argument("--until", metavar="STAGE", help="stop after this stage, such as 04_distill_base")
    run.add_argument("--as", dest="name", metavar="NAME", help="a new run, which takes over unchanged stages")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of it, such as nli.threshold=0.4"
    )
    run.add_argument("--dry-run", action="store_true", help="only say what would run, why, and for how long")
    ask = add("ask", _ask, "ask a student about actions of your own")
    ask.add_argument(
        "actions", nargs="*", metavar="ACTION", help="such as 'Setting a fire'; default: standard input, one a line"
    )
    ask.add_argument("--run", default="demo", help="an existing run (demo)")
    ask.add_argument("--student", default="distill_final", help="one of its students (distill_final)")
    ask.add_argument(
        "--n", type=int, default=5, help="contexts for each action and direction (5); four times as many are written"
    )
    ask.add_argument("--json", action="store_true", help="show each context as a JSON object, one a line")
    ask.add_argument("--raw", action="store_true", help="show all candidates, and which ones the NLI filter drops")
    for name, do, text in (
        ("release", _release, "put the data set of a run together for others"),
        ("site", _write_site, "write the pages of a run: site/"),
        ("atlas", _write_atlas, "write a map of a run's rows: site/atlas/"),
    ):
        add(name, do, text).add_argument("--run", default="demo", help="a finished run (demo)")
    stage = add("stage", _run_stage, "run one stage of a study (what each Snakemake job does)")
    stage.add_argument("stage", help="such as 02_critic or 05_self_distill-1")
    stage.add_argument("params_file")
    stage.add_argument("--look", help="the stamp that the stage must have")
    plan = add("plan", _plan, "say what a run will take: time, work, requests and their cost")
    plan.add_argument("params_file")
    plan.add_argument(
        "--tflops", type=float, help="effective TFLOP/s of a GPU; by default what the paper's hours imply"
    )
    plan.add_argument(
        "--gpu-gib",
        type=float,
        metavar="GIB",
        help="say whether the students' training fits on a GPU of this memory, such as 24",
    )
    compare = add("compare", _compare, "show what differs between finished runs, and table 2 of each side by side")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="such as demo nli04")
    compare.add_argument(
        "--seeds", action="store_true", help="one study with several seeds: means, and how far these lie apart"
    )
    answers = add("answers", _exchange_answers, "export the cached answers of endpoints as JSON lines, or import some")
    answers.add_argument("what", choices=["export", "import"])
    answers.add_argument("cache", type=Path, help="such as runs/demo/data/answers.sqlite")
    answers.add_argument("files", type=Path, nargs="+", metavar="FILE", help="files of JSON lines; for an export, one")
    return parser


def _run(options: argparse.Namespace) -> int:
    from drot_utils.study.outputs import branch_run
    from drot_utils.study.params import read_overrides
    from drot_utils.study.runner import run_study

    params_file, overrides = options.params_file, read_overrides(options.set)
    if overrides and not options.name:
        raise DrotError("--set is for a new run, whose parameters it changes", todo="name the new run with --as")
    new = bool(options.name) and not Run(options.name).root.exists()
    if options.name:
        params_file = branch_run(params_file, options.name, overrides, options.dry_run)
    try:
        return run_study(params_file, options.cores, options.ablations, options.until, options.dry_run)
    finally:
        if new and options.dry_run and list(params_file.parent.iterdir()) == [params_file]:  # nobody began it meanwhile
            params_file.unlink()
            params_file.parent.rmdir()


def _run_stage(options: argparse.Namespace) -> None:
    from drot_utils.study.runner import run_stage

    run_stage(options.stage, options.params_file, options.look)


def _compare(options: argparse.Namespace) -> None:
    from drot_utils.report.tables import compare_runs

    print(compare_runs(options.runs, options.seeds))


def _ask(options: argparse.Namespace) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported: threads that wait sleep
    gc.disable()  # a quarter of the imports' time is a search for garbage, and of the end's
    from drot_utils.data.table import say_contexts
    from drot_utils.method.distill import ask_student, choose_best, load_scorer
    from drot_utils.method.student import require_student
    from drot_utils.study.paths import to_json
    from drot_utils.study.record import open_run

    gc.freeze()
    gc.enable()
    study = open_run(options.run, "ask")
    require_student(study, options.student)
    actions = options.actions or ([] if sys.stdin.isatty() else [line for line in sys.stdin if line.strip()])
    every = ask_student(study, options.student, actions, options.n, raw=True)
    best = None if options.raw else choose_best(every, options.n)
    filtered = ""
    if study.params.judges.filter == "critic":
        filtered = (
            f" In the rounds, what scored below {load_scorer(study, 'critic').thresholds['distill']:.2f} was not kept."
        )
    note = (
        f"{options.student} of the run {options.run}, a small language model, wrote this. It is never advice: no model knows what "
        f"is right.\nThe score is the critic's estimate of how probably a context shifts the action as asked.{filtered}\n"
    )
    print(note, file=sys.stderr if options.json else sys.stdout)
    if options.json:
        for row in (every if best is None else best).to_dict("records"):
            print(to_json({"run": options.run, "student": options.student, **row}))
    else:
        print(say_contexts(every, best))


def _release(options: argparse.Namespace) -> None:
    from drot_utils.report.release import release_run

    print(release_run(options.run))


def _write_site(options: argparse.Namespace) -> None:
    from drot_utils.report.site import make_site

    print(make_site(options.run))


def _write_atlas(options: argparse.Namespace) -> None:
    from drot_utils.report.site import make_atlas

    print(make_atlas(options.run))


def _plan(options: argparse.Namespace) -> None:
    from drot_utils.report.plan import require_builtin, say_plan
    from drot_utils.study.forecast import UNKNOWN, foresee
    from drot_utils.study.graph import list_stages
    from drot_utils.study.params import load_params

    params = load_params(options.params_file)
    require_builtin(params)
    stages, line = foresee(options.params_file, params, list_stages(params))
    print(line, end="\n\n")
    print(say_plan(params, options.tflops, options.gpu_gib, None if line.startswith(UNKNOWN) else stages))


def _exchange_answers(options: argparse.Namespace) -> None:
    from drot_utils.llm.cache import Cache, export_lines, import_lines

    if options.what == "export" and (len(options.files) > 1 or not options.cache.exists()):
        raise DataError("expected a cache that exists and one file to write", where=str(options.cache))
    cache = Cache(options.cache)
    for file in options.files:
        if options.what == "export":
            print(f"{file}: {export_lines(cache, file)} answers")
        else:
            print("{}: {} answers taken over, {} were there already".format(file, *import_lines(cache, file)))


if __name__ == "__main__":
    sys.exit(main())
