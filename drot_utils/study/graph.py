"""The study as a graph: which notebook runs with what, after which others. The `Snakefile` and the runner read it."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from drot_utils.study.code import hash_notebook
from drot_utils.study.errors import DrotError
from drot_utils.study.params import Params
from drot_utils.study.paths import NOTEBOOKS, ROOT, Run, files_below, resolve, sha256

#: Who writes contexts, our name to the paper's; between the last two come the rounds, ``self_distill_1`` and so on.
WRITERS = {
    "teacher": "teacher (the paper's: GPT-3)",
    "base": "zero-shot base model",
    "distill_base": "Distill_base",
    "distill_final": "Distill_final",
}
#: The ablations of table 2: what follows a student's name after a dash.
VARIANTS = {
    "no_critic": "- No Critic",
    "top_1_only": "- Top 1 Only",
    "no_nli": "- No NLI",
    "no_self_distill": "- No Self-distill",
}


def label(student: str) -> str:
    """Return the paper's name of a student, such as ``SelfDistill_1``, or of its ablation."""
    name, _, variant = student.partition("-")
    return VARIANTS.get(variant) or WRITERS.get(name) or name.replace("self_distill", "SelfDistill")


def in_order(students: Iterable[str]) -> list[str]:
    """Return writers in the order of table 2: each one's ablations after it, the rounds before the final student."""
    first, variants = list(WRITERS), ["", *VARIANTS]

    def rank(student: str) -> tuple[float, int]:
        name, _, variant = student.partition("-")
        place = 2 + int(name.removeprefix("self_distill_")) if name not in WRITERS else first.index(name)
        return (math.inf if name == "distill_final" else place), variants.index(variant)

    return sorted(students, key=rank)


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
        Sections of the parameters it depends on, or one key of a section; a change elsewhere does not run it again.
    seconds : float
        How long it takes beside its matrix products: about as in the smoke study, whose models are tiny, with what loading and
        compiling a student of the demo's size adds. `forecast` adds the products. Only estimates of time use it.
    parameters : dict
        What papermill sets besides ``params_file``.
    """

    name: str
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    seconds: float
    parameters: dict[str, str | int] = field(default_factory=dict)

    @property
    def notebook(self) -> Path:
        """The committed notebook."""
        return NOTEBOOKS / f"{self.name.split('-')[0]}.ipynb"

    def output(self, run: Run) -> Path:
        """Return where the executed notebook goes; it appears there only when all of it ran."""
        return run.root / "notebooks" / f"{self.name}.ipynb"


#: Keys of the parameters whose values are files or folders; `folder`: the name of a model whose source is one.
PATHS = (
    "actions", "filled", "folder", "gold", "groups", "prices", "recorded", "reference_votes", "teacher_rows", "threshold_rows",
    "word_list",
)  # fmt: skip

TRAINS = ("seed", "compute", "corpus.actions", "critic", "judges", "nli", "distill", "student")
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
        ablations = params.ablations or any(Run(params.profile).model("").glob("*-*"))
    sections = ("seed", "compute", "corpus.actions", "requests", "critic", "judges", "evaluation")
    panel = Stage("12_judges", ("02_critic",), sections, 3)
    # Judges that stand in the critic's place run before whoever asks them.
    filters, judged = (
        (panel.name,) if by == "judges" else () for by in (params.judges.filter, params.evaluation.critic)
    )
    first, last = ([panel], []) if filters or judged else ([], [panel])
    before_base = ("01_seed_generation", "02_critic", "03_nli_filter", *filters)
    rounds = len(params.corpus.round_actions)
    stages = [
        Stage("01_seed_generation", (), ("seed", "corpus", "requests", "teacher"), 5),
        Stage("02_critic", (), ("seed", "compute", "corpus.actions", "critic", "evaluation.bootstrap"), 10),
        Stage("03_nli_filter", (), ("seed", "compute", "nli"), 8),
        *first,
        Stage("04_distill_base", before_base, WRITES, 40),
        *_list_rounds(rounds),
    ]
    stages.append(Stage("06_final_dataset", (stages[-1].name,), WRITES, 15))
    variants = _list_ablations(rounds) if ablations else []
    students = tuple(stage.name for stage in [stages[-1], *variants])
    final = ("06_final_dataset",)
    people = (
        "seed", "compute", "corpus.actions", "corpus.round_actions", "critic", "judges", "nli", "evaluation.critic", "evaluation.candidates",
        "annotation",
    )  # fmt: skip
    return [
        *stages,
        *variants,
        Stage("07_evaluation", (*students, *judged), (*WRITES, "requests", "teacher", "evaluation"), 40),
        Stage("08_topics", final, ("seed", "compute", "topics"), 55),
        Stage("09_toxicity", final, ("seed", "compute", "toxicity"), 3),
        Stage("10_cultural_bias", final, (*WRITES, "topics", "bias"), 5),
        Stage("11_human_evaluation", ("07_evaluation",), people, 5),
        *last,
    ]


def _list_rounds(rounds: int, variant: str = "") -> list[Stage]:
    stages, before = [], "04_distill_base"
    for number in range(1, rounds + 1):
        name = f"05_self_distill-{number}" + (f"-{variant}" if variant else "")
        stages.append(Stage(name, (before,), WRITES, 10, {"round": number, "variant": variant}))
        before = name
    return stages


def _list_ablations(rounds: int) -> list[Stage]:
    base, last = "04_distill_base", f"05_self_distill-{rounds}"
    stages = [Stage(f"{base}-no_critic", (base,), WRITES, 10, {"variant": "no_critic"})]
    for variant in ("top_1_only", "no_nli"):
        stages += _list_rounds(rounds, variant)
    if rounds > 1:  # of one round it would be the round itself; it has as many training steps as all rounds together
        parameters = {"round": rounds, "variant": "no_self_distill"}
        stages.append(Stage(f"{last}-no_self_distill", (last,), WRITES, 10, parameters))
    return stages


def list_students(params: Params, ablations: bool | None = None) -> list[str]:
    """Return the students that a study trains, in the order of table 2 (`ablations` as in `list_stages`)."""
    trained = []
    for stage in list_stages(params, ablations):
        number, _, variant = stage.name.partition("-")
        if number == "04_distill_base":
            trained.append("-".join(filter(None, ["distill_base", variant])))
        elif number == "05_self_distill":
            trained.append(f"self_distill_{variant}")
    return in_order([*trained, "distill_final"])


def list_training_sets(params: Params) -> list[str]:
    """Return the names of what the students were trained on before the final one: ``d0``, ``d1`` and so on."""
    return [f"d{number}" for number in range(len(params.corpus.round_actions) + 1)]


@dataclass(frozen=True)
class Stamp:
    """What a stage's results are known by.

    Attributes
    ----------
    value : str
        A hash of all that decides its numbers: the code its notebook reaches (no comments, no docstrings, nothing that only
        draws), its sections of the parameters, its data, and the stamps of the stages it needs.
    look : str
        A hash of that and of what it draws; part of its record's name.
    inputs : dict
        What they were made of: ``code look parameters data needs``, each by name.
    """

    value: str
    look: str
    inputs: dict[str, dict[str, Any]]


def stamp_stages(stages: list[Stage], params: Params) -> dict[str, Stamp]:
    """Return the stamps of stages that are in the order in which they can run."""
    values = params.model_dump(mode="json")
    del values["compute"]["executor"]  # who does the shards changes no number
    hashed, digest = cache(hash_notebook), cache(sha256)  # a folder of weights is gigabytes, and many stages need it
    stamps: dict[str, Stamp] = {}
    for stage in stages:
        computing, everything = hashed(stage.notebook)
        parameters = {name: _look_up(values, name) for name in stage.sections} | {"stage": stage.parameters}
        inputs = {
            "code": computing,
            "parameters": parameters,
            "data": _hash_data(parameters, digest),
            "needs": {name: stamps[name].value for name in stage.needs},
        }
        value = _digest(inputs)
        looks = {name: digest for name, digest in everything.items() if computing.get(name) != digest}
        stamps[stage.name] = Stamp(value, _digest([value, looks]), {**inputs, "look": looks})
    return stamps


def _look_up(values: dict[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    return values[section][key] if key else values[section]


def _hash_data(parameters: dict[str, Any], digest: Callable[[Path], str] = sha256) -> dict[str, str]:
    # Files and folders by the names that the parameters give them, so that the checkout may lie anywhere.
    hashes = {}
    for text in set(_paths(parameters)):
        path = resolve(text)
        for file in files_below(path) if path.is_dir() else [path]:
            if file.is_file():
                hashes[text if file == path else f"{text}/{file.relative_to(path).as_posix()}"] = digest(file)
    return dict(sorted(hashes.items()))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def refuse_braces(folder: Path) -> None:
    """Raise a `DrotError` where the checkout or a run's folder holds a brace: Snakemake reads ``{name}`` as a placeholder."""
    for path in (ROOT, folder):
        if set("{}") & set(str(path)):
            raise DrotError(
                "a path with a brace, which the runner (Snakemake) takes for a placeholder",
                where=str(path),
                todo="give the folder or the file another name",
            )


def _paths(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _paths(item, "folder" if name == "name" and value.get("source") == "folder" else name)
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item, key)
    elif value and key.rpartition(".")[2] in PATHS:
        yield value
