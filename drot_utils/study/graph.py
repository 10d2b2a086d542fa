"""The study as a graph: which notebook runs with what, after which others. The `Snakefile` and the runner read it."""

import ast
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from drot_utils.study.errors import DrotError
from drot_utils.study.params import Params
from drot_utils.study.paths import NOTEBOOKS, ROOT, Run, files_below, resolve

#: The order of the students, our name to the paper's.
STUDENTS = {
    "teacher": "teacher (the paper's: GPT-3)",
    "base": "zero-shot base model",
    "distill_base": "Distill_base",
    "distill_base-no_critic": "- No Critic",
    "self_distill_1": "SelfDistill_1",
    "self_distill_1-top_1_only": "- Top 1 Only",
    "self_distill_1-no_nli": "- No NLI",
    "self_distill_2": "SelfDistill_2",
    "self_distill_2-top_1_only": "- Top 1 Only",
    "self_distill_2-no_nli": "- No NLI",
    "self_distill_2-no_self_distill": "- No Self-distill",
    "distill_final": "Distill_final",
}
ABLATIONS = [name for name in STUDENTS if "-" in name]


@dataclass(frozen=True)
class Stage:
    """One run of one notebook.

    Attributes
    ----------
    name : str
        The notebook's name, with its variant after a dash.
    needs : tuple of str
        Stages whose results it reads.
    sections : tuple of str
        Sections of the parameters it depends on; a change in another one does not run it again.
    seconds : int
        About how long it takes in the demo on two slow cores; only the estimate of the time left uses it.
    parameters : dict
        What papermill sets besides ``params_file``.
    """

    name: str
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    seconds: int
    parameters: dict[str, str | int] = field(default_factory=dict)

    @property
    def notebook(self) -> Path:
        """The committed notebook."""
        return NOTEBOOKS / f"{self.name.split('-')[0]}.ipynb"

    def output(self, run: Run) -> Path:
        """Return where the executed notebook goes; it appears there only when all of it ran."""
        return run.root / "notebooks" / f"{self.name}.ipynb"


TRAINS = ("seed", "compute", "corpus", "critic", "judges", "nli", "student")
WRITES = (*TRAINS, "generation")


def list_stages(params: Params, ablations: bool | None = None) -> list[Stage]:
    """Return the stages of a study in the order in which they can run.

    That is the reading order, but the judges (12) come before the first stage that needs their scores, if any does.

    Parameters
    ----------
    params : Params
    ablations : bool, optional
        With the six ablated students of table 2; by default as `params` says, or when some of them exist already.
    """
    if ablations is None:
        ablations = params.ablations or any(Run(params.profile).model(name).exists() for name in ABLATIONS)
    sections = ("seed", "compute", "corpus", "requests", "critic", "judges", "evaluation")
    panel = Stage("12_judges", ("02_critic",), sections, 12)
    # Judges that stand in the critic's place run before whoever asks them.
    filters, judged = (
        (panel.name,) if by == "judges" else () for by in (params.judges.filter, params.evaluation.critic)
    )
    first, last = ([panel], []) if filters or judged else ([], [panel])
    before_base = ("01_seed_generation", "02_critic", "03_nli_filter", *filters)
    stages = [
        Stage("01_seed_generation", (), ("seed", "corpus", "requests", "teacher"), 8),
        Stage("02_critic", (), ("seed", "compute", "corpus", "critic", "evaluation"), 85),
        Stage("03_nli_filter", (), ("seed", "compute", "nli"), 50),
        *first,
        Stage("04_distill_base", before_base, WRITES, 100),
        _round(1, "04_distill_base", 117),
        _round(2, "05_self_distill-1", 147),
        Stage("06_final_dataset", ("05_self_distill-2",), WRITES, 310),
    ]
    variants = _list_ablations() if ablations else []
    students = tuple(stage.name for stage in [stages[-1], *variants])
    final = ("06_final_dataset",)
    return [
        *stages,
        *variants,
        Stage("07_evaluation", (*students, *judged), (*WRITES, "requests", "teacher", "evaluation"), 300),
        Stage("08_topics", final, ("seed", "compute", "topics"), 55),
        Stage("09_toxicity", final, ("seed", "compute", "toxicity"), 8),
        Stage("10_cultural_bias", final, (*WRITES, "topics", "bias"), 18),
        Stage(
            "11_human_evaluation",
            ("07_evaluation",),
            ("seed", "compute", "corpus", "critic", "judges", "nli", "annotation"),
            10,
        ),
        *last,
    ]


def _round(number: int, after: str, seconds: int, variant: str = "") -> Stage:
    name = f"05_self_distill-{number}" + (f"-{variant}" if variant else "")
    return Stage(name, (after,), WRITES, seconds, {"round": number, "variant": variant})


def _list_ablations() -> list[Stage]:
    base = "04_distill_base"
    stages = [Stage(f"{base}-no_critic", (base,), WRITES, 150, {"variant": "no_critic"})]
    for variant in ("top_1_only", "no_nli"):
        stages.append(_round(1, base, 110, variant))
        stages.append(_round(2, stages[-1].name, 140, variant))
    # Its number of training steps is that of both rounds together.
    stages.append(_round(2, "05_self_distill-2", 230, "no_self_distill"))
    return stages


def inputs_of(stage: Stage, run: Run, params: Params) -> list[Path]:
    """Return the files a stage depends on: its notebook, the modules it imports, its data (of a folder, all files), the notebooks before it."""
    before = [run.root / "notebooks" / f"{name}.ipynb" for name in stage.needs]
    values = [value for section in stage.sections for value in _texts(getattr(params, section))]
    return [stage.notebook, *modules_of(stage.notebook), *_files(values), *before]


def refuse_braces(run: Run, params: Params) -> None:
    """Raise a `DrotError` where a path that the runner gets holds a brace: Snakemake reads ``{name}`` as a placeholder."""
    for path in [ROOT, run.root, *_files(_texts(params))]:
        if set("{}") & set(str(path)):
            raise DrotError(
                "a path with a brace, which the runner (Snakemake) takes for a placeholder",
                where=str(path),
                todo="give the folder or the file another name",
            )


def modules_of(notebook: Path) -> list[Path]:
    """Return the modules of this package that a notebook imports, directly or through each other."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    waiting = _imported("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        found.add(path)
        waiting |= _imported(path.read_text(encoding="utf-8")) - found
    return sorted(found)


def _imported(source: str) -> set[Path]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "drot_utils":
            place = ROOT.joinpath(*node.module.split("."))
            # `from drot_utils.room.file import name`, or `from drot_utils.room import file`.
            found |= {place.with_suffix(".py"), *((place / f"{alias.name}.py") for alias in node.names)}
    return {path for path in found if path.is_file()}


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif hasattr(value, "__pydantic_fields__"):
        for name in type(value).model_fields:
            yield from _texts(getattr(value, name))


def _files(values: Iterable[str]) -> list[Path]:
    paths = [resolve(value) for value in values if "/" in value]
    below = [file for path in paths if path.is_dir() for file in files_below(path)]
    return sorted({path for path in [*paths, *below] if path.is_file()})
