"""The parameters of a run, section by section: their names, kinds and limits."""

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from drot_utils.settings import (
    Compute,
    Encoder,
    Endpoint,
    ModelRef,
    OpenShare,
    Rate,
    Requests,
    Respondents,
    Section,
    Share,
    Threshold,
)


class Corpus(Section):
    """The actions (Social-Chem-101 or the built-in ones) and how many go where; sampled without replacement."""

    actions: str
    seed_actions: PositiveInt
    round_actions: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
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
    parse_retries: Annotated[int, Field(ge=0)]


class Critic(Encoder):
    """The critic (section 3.1, appendix D.1) and its thresholds."""

    head: Literal["binary", "shift"]
    pooling: Literal["first", "mean"]
    hidden: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    gold: Annotated[list[str], Field(min_length=1)]
    teacher_rows: str | None
    splits: Annotated[list[OpenShare], Field(min_length=3, max_length=3)]
    independent_share: Share
    threshold_distill: Threshold
    threshold_dataset: Threshold

    @model_validator(mode="after")
    def _check(self) -> "Critic":
        if abs(sum(self.splits) - 1) > 1e-9:
            raise ValueError(f"`splits` (train, dev, test) must sum to 1, not {sum(self.splits):g}")
        if self.teacher_rows and self.head == "binary":
            raise ValueError(
                "`teacher_rows` are all valid; the binary head learns from judged rows only, so leave it null"
            )
        return self


class Judges(Section):
    """LLM judges of figure 6's question, how their scores are merged, and whether they filter in the critic's place."""

    panel: Respondents
    aggregate: Literal["majority", "mean", "reliability"]
    sample: PositiveInt | None
    filter: Literal["critic", "judges"]

    @model_validator(mode="after")
    def _check(self) -> "Judges":
        if self.filter == "judges" and not self.panel:
            raise ValueError("`filter: judges` needs at least one judge in `panel`")
        return self


class Nli(Encoder):
    """The entailment model (section 3.2): fine-tuned on `groups`, or used as it is when `groups` is null."""

    groups: str | None
    threshold: Rate


class Student(Section):
    """The student's base model and fine-tuning settings (appendix D.2)."""

    base: ModelRef
    learning_rate: Rate
    round_learning_rate: Rate
    epochs: PositiveInt
    round_epochs: PositiveInt
    final_epochs: PositiveInt
    final_from: Literal["base", "self_distill_2"]
    batch_size: PositiveInt
    accumulate: PositiveInt
    max_prompt_length: PositiveInt
    max_target_length: PositiveInt
    gradient_checkpointing: bool
    checkpoint_minutes: Annotated[float, Field(gt=0)]


class Generation(Section):
    """How a student writes its candidates (section 3.2 says nucleus, Algorithm 1 says beams)."""

    engine: Literal["transformers", "vllm"]
    method: Literal["nucleus", "beam"]
    candidates: PositiveInt
    top_p: OpenShare
    temperature: Annotated[float, Field(gt=0)]
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

    @model_validator(mode="after")
    def _check(self) -> "Evaluation":
        taken = [b.name for b in self.baselines if re.match(r"(teacher|base)$|(self_)?distill_", b.name)]
        if taken:
            raise ValueError(
                f"{taken[0]!r} in `baselines` is the name of a model of the study; choose another"
            )
        return self


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

    @model_validator(mode="after")
    def _check(self) -> "Toxicity":
        if self.scorer == "recorded" and self.recorded is None:
            raise ValueError("`scorer: recorded` needs the path of the scores in `recorded`")
        if self.scorer == "model" and self.model is None:
            raise ValueError("`scorer: model` needs a pinned `model`")
        return self


class Bias(Section):
    """The country probe (table 10), with a permutation test over sampled contexts."""

    action: str
    countries: Annotated[list[str], Field(min_length=2)]
    samples: Annotated[int, Field(ge=2)]
    permutations: PositiveInt

    @model_validator(mode="after")
    def _check(self) -> "Bias":
        if "{country}" not in self.action:
            raise ValueError("`action` must contain {country}")
        return self


class Annotation(Section):
    """The two human forms (figures 6 and 7): how many prompts to export, for which tools, and a folder of filled forms if any."""

    per_model: PositiveInt
    sampled_prompts: PositiveInt
    dataset_rows: PositiveInt
    exchange: Annotated[list[Literal["csv", "mturk", "labelstudio", "potato"]], Field(min_length=1)]
    filled: str | None


class Params(Section):
    """All parameters of a run."""

    profile: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    seed: Annotated[int, Field(ge=0)]
    ablations: bool
    compute: Compute
    corpus: Corpus
    requests: Requests
    teacher: Teacher
    critic: Critic
    judges: Judges
    nli: Nli
    student: Student
    generation: Generation
    evaluation: Evaluation
    topics: Topics
    toxicity: Toxicity
    bias: Bias
    annotation: Annotation

    @model_validator(mode="after")
    def _check(self) -> "Params":
        if self.evaluation.critic == "independent" and not self.critic.independent_share:
            raise ValueError("`evaluation.critic: independent` needs a `critic.independent_share` above 0")
        processes, batches = self.compute.parallel.processes, self.student.accumulate
        if batches % processes:
            raise ValueError(
                f"the {processes} processes of `compute.parallel` share a step's batches, so `student.accumulate` must be a "
                f"multiple of {processes}, not {batches}"
            )
        if self.evaluation.critic == "judges" and not self.judges.panel:
            raise ValueError("`evaluation.critic: judges` needs at least one judge in `judges.panel`")
        return self
