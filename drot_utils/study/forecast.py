"""What a run will take on this machine: the matrix products that its parameters imply, at a rate that is measured.

Run as a module it measures, so that neither torch nor a GPU's memory is held by the process that asks.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from drot_utils.study.errors import DrotError
from drot_utils.study.graph import Stage
from drot_utils.study.kernels import THREADS, TUNED
from drot_utils.study.params import Encoder, ModelRef, Params
from drot_utils.study.paths import ROOT, resolve

#: Parameters of the models that profiles use (from their model cards); embeddings are not counted for encoders.
SIZES = {
    "google/flan-t5-xl": 2.85e9,
    "smollm2-135m-instruct": 1.35e8,
    "HuggingFaceTB/SmolLM3-3B": 3.08e9,
    "meta-llama/Llama-3.1-8B-Instruct": 8.03e9,
    "models/deberta-v3-large": 3.04e8,
    "models/roberta-large-wanli": 3.03e8,
    "all-minilm-l6-v2": 1.06e7,
    "all-mpnet-base-v2": 8.5e7,
}
#: Layers of the encoders among them, for `frozen_layers`.
LAYERS = {
    "all-minilm-l6-v2": 6, "all-mpnet-base-v2": 12, "models/deberta-v3-large": 24, "models/roberta-large-wanli": 24,
    "tiny-bert": 2,
}  # fmt: skip
TRAIN_ACTIONS, TEST_ACTIONS = 234_000, 6_000  # of the paper's corpus (section 4.1)
QUESTION = 97  # tokens of the teacher's prompt, and of the judges', in the demo
UNKNOWN = "How long it will take is not known"
PAIRS = 10  # labelled pairs that a line of entailment groups makes


@dataclass(frozen=True)
class Assumed:
    """What the parameters do not say: mean tokens, and the shares of rows that are kept (of `rounds`, the last for all later)."""

    prompt: int
    target: int
    pair: int
    seed: float
    rounds: tuple[float, ...]
    dataset: float


#: Counted in the demo: its data through its models' tokenizers, and the rows that its filters kept.
DEMO = Assumed(17, 23, 19, 956 / 960, (256 / 2000, 424 / 2000), 2028 / 4636)
#: What the paper reports, and what it leaves to be assumed.
PAPER = Assumed(20, 40, 60, 85 / 240, (434 / 800, 466 / 800), 578 / 2865)
#: Operations that take no machine a second worth speaking of: tiny models, whose time is that of starting notebooks.
NEGLIGIBLE = 1e12
#: Operations a second that are reached, as a share of the measured rate: of a student's training, an encoder's (`fit`), that of an
#: encoder's upper layers alone (`upper`: no embeddings to update), writing and scoring. bfloat16: benchmarks/results, and for `fit`
#: notebook 2 of the demo, on two AVX-512 cores. float32: notebooks 2 to 7 of the demo on two AVX2 cores (165 GFLOP/s). `upper`:
#: all-mpnet-base-v2 above 8 frozen layers on both.
EFFICIENCY = {
    "bfloat16": {"train": 0.38, "fit": 0.25, "upper": 0.27, "write": 0.31, "score": 0.68},
    "float32": {"train": 0.6, "fit": 0.32, "upper": 0.7, "write": 0.37, "score": 0.65},
}


@dataclass(frozen=True)
class Work:
    """Matrix products of a stage: so many of what, each with so many tokens through a model of `size` parameters."""

    stage: str
    what: str
    unit: str
    count: float
    length: float
    kind: str  # of EFFICIENCY
    size: float

    @property
    def tokens(self) -> float:
        """Tokens in all."""
        return self.count * self.length

    @property
    def operations(self) -> float:
        """Operations: two a parameter and token forward, six in training."""
        return self.tokens * self.size * (6 if self.kind in ("train", "fit", "upper") else 2)


def list_work(params: Params, stages: list[Stage], assumed: Assumed = DEMO) -> list[Work]:
    """Return the work of stages, in their order, without embeddings and toxicity scores, which are little.

    A model whose size is not known is a `DrotError`.
    """
    return [work for stage in stages for work in _work_of(stage, params, assumed)]


def _work_of(stage: Stage, params: Params, assumed: Assumed) -> Iterator[Work]:
    corpus, learns, n, tested = params.corpus, params.student, params.generation.candidates, params.evaluation
    critic, nli, gold = params.critic, params.nli, sum(map(_count_lines, params.critic.gold))
    student, panel = _size(learns.base), [(_size(one.model), QUESTION) for one in params.judges.panel if one.model]
    # Nobody asks for a frozen weight's gradient: four operations, not six.
    learnt = student * (2 / 3 if learns.adapter else 1)
    scorers = panel if params.judges.filter == "judges" else [(_size(critic.base), assumed.pair)]
    # A candidate's prompt is read once for all n.
    row, candidate = assumed.prompt + assumed.target, assumed.prompt / n + assumed.target
    longest = params.teacher.max_tokens or params.generation.max_new_tokens
    each, fresh = params.teacher.contexts_per_variance, [2 * n * actions for actions in corpus.round_actions]
    rest = 2 * n * (corpus.final_actions or max(0, TRAIN_ACTIONS - corpus.seed_actions - sum(corpus.round_actions)))
    shares = [*assumed.rounds, *assumed.rounds[-1:] * len(fresh)]
    kept = [corpus.seed_actions * 2 * each * assumed.seed, *(a * b for a, b in zip(fresh, shares, strict=False))]
    work = partial(Work, stage.name)

    def score(written: float, of: int, contexts: float) -> Iterator[Work]:
        yield work("NLI filter", "pairs (at most)", written * (of - 1) / 2, assumed.pair, "score", _size(nli.base))
        for size, length in scorers:
            yield work(params.judges.filter, "contexts", contexts, length, "score", size)

    def fit(what: str, settings: Encoder, rows: float) -> Iterator[Work]:
        frozen = _size(settings.base) * _share_frozen(settings)
        if frozen:  # these layers run once a row, and nobody asks for a gradient below them
            yield work(f"frozen layers of {what}", "rows", rows, assumed.pair, "score", frozen)
        seen = settings.max_steps * settings.batch_size if settings.max_steps else settings.epochs * rows
        kind = "upper" if frozen else "fit"
        yield work(f"fit {what}", "rows seen", seen, assumed.pair, kind, _size(settings.base) - frozen)

    match stage.name[:2]:
        case "02":
            teacher = _count_lines(critic.teacher_rows or "")
            yield from fit("critic", critic, critic.splits[0] * (gold + teacher * (1 + critic.mismatched)))
            if critic.max_steps and critic.independent_share:  # epochs are of rows that the two share out
                yield from fit("independent critic", critic, 0)
            judged = _count_lines(critic.threshold_rows or "") * (2 if critic.independent_share else 1)
            yield work("threshold rows", "contexts", judged, assumed.pair, "score", _size(critic.base))
        case "03" if nli.groups:
            yield from fit("NLI model", nli, PAIRS * _count_lines(nli.groups))
        case "04":
            yield from score(corpus.seed_actions * 2 * each, each, corpus.seed_actions * 2 * each)
            yield work("train Distill_base", "rows", kept[0], row * learns.epochs, "train", learnt)
        case "05":
            k = int(stage.parameters["round"])
            yield work(f"write: round {k}", "candidates", fresh[k - 1], candidate, "write", student)
            yield from score(fresh[k - 1], n, fresh[k - 1])
            yield work(f"train SelfDistill_{k}", "rows", kept[k], row * learns.round_epochs, "train", learnt)
        case "06":
            yield work("write: data set", "candidates", rest, candidate, "write", student)
            yield from score(rest, n, rest)
            rows = (sum(kept) + rest) * assumed.dataset
            yield work("train Distill_final", "rows", rows, row * learns.final_epochs, "train", learnt)
        case "07":
            tests = corpus.test_actions or TEST_ACTIONS
            samples = 2 * tested.candidates * (tested.sampled_actions or tests)
            students = len(fresh) + 2 + sum(need[:2] in ("04", "05") for need in stage.needs)
            asked, models = 2 * tests + samples, [one.model for one in tested.baselines if one.model]
            what = f"write: evaluation, {students} students"
            yield work(what, "candidates", students * asked, candidate, "write", student)
            prompts = 2 * (tested.baseline_actions or tests)
            for count, size in [(asked, student), *((prompts, _size(model)) for model in models)]:
                yield work("write: evaluation, zero-shot", "candidates", count, longest, "write", size)
            yield from score((students + 1) * samples, tested.candidates, (students + 1) * asked)
        case "10":
            count = len(params.bias.countries) * 2 * (params.bias.samples + 1)
            yield work("write: bias", "candidates", count, candidate, "write", student)
        case "12":
            shown = params.judges.sample or gold * critic.splits[2]
            for size, length in panel:
                yield work("judges of gold", "contexts", shown, length, "score", size)


def _count_lines(path: str) -> int:
    place = resolve(path)
    return place.read_bytes().count(b"\n") if place.is_file() else 0  # not there yet


def _size(ref: ModelRef) -> float:
    if ref.source == "random":
        return 1e5
    if ref.name not in SIZES:
        raise DrotError(f"the size of {ref.name} is not known", todo="add it to SIZES in drot_utils/study/forecast.py")
    return SIZES[ref.name]


def _share_frozen(settings: Encoder) -> float:
    if not settings.frozen_layers:
        return 0.0
    if settings.base.name not in LAYERS:
        todo = "add them to LAYERS in drot_utils/study/forecast.py"
        raise DrotError(f"the layers of {settings.base.name} are not known", todo=todo)
    return min(1.0, settings.frozen_layers / LAYERS[settings.base.name])


@dataclass(frozen=True)
class Machine:
    """What was measured: a processor with the threads of a run, or a GPU with how many there are, and operations a second.

    `warning` is empty where nothing is odd; `load` is 0 where no other processes use the cores.
    """

    name: str
    cores: int
    gpu: bool
    dtype: str
    why: str
    rate: float
    warning: str = ""
    load: float = 0.0


def foresee(params_file: str | Path, params: Params, stages: list[Stage], cores: int = 1) -> tuple[list[Stage], str]:
    """Measure this machine, which takes some seconds and is kept nowhere, and say what stages will take on it.

    With tiny models nothing is measured.

    Returns
    -------
    stages : list of Stage
        With the seconds that they will take; as they are where that is not known.
    line : str
        See `say`.
    """
    try:
        if sum(work.operations for work in list_work(params, stages)) < NEGLIGIBLE:
            return stages, f"Tiny models: {_say_times(stages, cores)}"
        machine = _measure(params_file)
        stages = expect(stages, params, machine)
    except DrotError as error:
        return stages, f"{UNKNOWN}: {' '.join(str(error).split())}"
    return stages, say(stages, machine, cores)


def _measure(params_file: str | Path) -> Machine:
    # As kernels have it.
    environment = TUNED | {name: value for name, value in os.environ.items() if name not in THREADS}
    command = [sys.executable, "-m", "drot_utils.study.record", str(params_file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise DrotError((done.stderr.strip().splitlines() or ["its measurement was killed"])[-1])
    return Machine(**json.loads(done.stdout.splitlines()[-1]))


def expect(stages: list[Stage], params: Params, machine: Machine) -> list[Stage]:
    """Return stages with the seconds that they will take on a machine: theirs, and those of their products."""
    seconds = {stage.name: stage.seconds for stage in stages}
    reached = EFFICIENCY["bfloat16" if machine.gpu else machine.dtype]
    shared = {"train": params.compute.parallel.processes, "fit": 1, "upper": 1}
    for work in list_work(params, stages):
        devices = min(machine.cores, shared.get(work.kind, params.compute.executor.workers)) if machine.gpu else 1
        seconds[work.stage] += work.operations / (machine.rate * reached[work.kind] * devices)
    return [replace(stage, seconds=seconds[stage.name]) for stage in stages]


def say(stages: list[Stage], machine: Machine, cores: int = 1) -> str:
    """Return one line: the machine, and how long stages will take, with the three longest; before it a warning, if there is one."""
    many = f"{machine.cores} {'GPU' if machine.gpu else 'core'}{'s' * (machine.cores > 1)}"
    # What is reached was measured on processors; with small models a GPU reaches less.
    line = (
        f"{machine.name}, {many}, {machine.dtype} ({machine.why}), {machine.rate / 1e9:,.0f} GFLOP/s measured: "
        f"{_say_times(stages, cores, 'at least' if machine.gpu else 'about')}"
    )
    if machine.load:
        line += f" (load {machine.load:.1f}: other processes use the cores, and beside them it takes longer)"
    return "\n".join(filter(None, [machine.warning, line]))


def _say_times(stages: list[Stage], cores: int, about: str = "about") -> str:
    took = {stage.name: stage.seconds for stage in stages}
    total = finish_time(stages, took, cores)
    unit, name = (3600, "hours") if total > 36_000 else (60, "minutes")
    each = ", ".join(f"{stage} {took[stage] / unit:,.0f}" for stage in sorted(took, key=took.get, reverse=True)[:3])
    return f"{about} {max(total / unit, 1):,.0f} {name}; longest: {each}"


def finish_time(stages: list[Stage], left: dict[str, float], cores: int) -> float:
    """Return the seconds until stages are done that have these left: the longest chain's, or all of them shared by the cores."""
    ends: dict[str, float] = {}
    for stage in stages:
        if stage.name in left:
            ends[stage.name] = left[stage.name] + max((ends.get(name, 0) for name in stage.needs), default=0)
    return max([sum(left.values()) / cores, *ends.values()])
