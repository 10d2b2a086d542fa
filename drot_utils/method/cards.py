"""The cards of models: what each reads and answers, how to use it, and who says how good it is (``data/cards/model.md``)."""

from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from drot_utils.data.corpora import is_all_builtin, is_builtin
from drot_utils.method.critic import HEADS
from drot_utils.method.prompts import student_source
from drot_utils.study.params import ModelRef, Params
from drot_utils.study.paths import resolve, write_text
from drot_utils.study.record import Study

EXAMPLE = {"action": "Setting a fire", "context": "In a dry field", "paraphrase": "In a field where it has not rained"}


def say_labels(params: Params) -> str:
    """Say who labelled what the critic learnt from."""
    if is_builtin(*params.critic.gold):
        return "The critic's labels were written by language models that followed written instructions, not by people."
    return f"The critic's labels are those of {', '.join(params.critic.gold)}."


def student_card(name: str, start: str | None, rows: int, steps: int, seq2seq: bool, params: Params) -> str:
    """Return the card of a student: its name, what it was fine-tuned from, and on how much."""
    base, adapter = params.student.base, params.student.adapter
    more, less = (student_source(EXAMPLE["action"], way, seq2seq) for way in (1, -1))
    return _fill(
        "student", name, params, is_all_builtin(params), base, more.strip(), less.strip(), labels=say_labels(params),
        start=start or base.name, rows=f"{rows:,}", steps=f"{steps:,}",
        rank=adapter and adapter.rank, seq2seq=seq2seq, prompt=repr(less), generation=params.generation,
        auto="AutoModelForSeq2SeqLM" if seq2seq else "AutoModelForCausalLM",
    )  # fmt: skip


def write_critic_card(study: Study, name: str) -> Path:
    """Write the card of ``critic`` or ``critic_independent`` beside its weights."""
    settings = study.params.critic
    asked, head = pd.DataFrame([{**EXAMPLE, "moral_variance": way} for way in (1, -1)]), HEADS[settings.head]
    first, second = head.texts(asked)
    texts = ["\n".join(pair) for pair in zip(first, second, strict=True)] if second else first
    card = _fill(
        "critic", name, study.params, is_all_builtin(study.params), settings.base, *texts, labels=say_labels(study.params),
        head=settings.head, classes=head.classes,
    )  # fmt: skip
    return write_text(study.run.model(name) / "README.md", card)


def write_entailment_card(study: Study) -> Path:
    """Write the card of the entailment model beside its weights."""
    settings, pair = study.params.nli, [EXAMPLE["context"], EXAMPLE["paraphrase"]]
    texts = ["\n".join(pair), "\n".join(reversed(pair))]
    builtin = is_builtin(settings.groups)
    card = _fill("entailment", "nli", study.params, builtin, settings.base, *texts, threshold=settings.threshold)
    return write_text(study.run.model("nli") / "README.md", card)


def _fill(
    kind: str, name: str, params: Params, builtin: bool, base: ModelRef, more: str, less: str, **texts: Any
) -> str:
    tasks = {"student": "text2text-generation" if texts.get("seq2seq") else "text-generation"}
    free = builtin and base.source in ("package", "random")
    header = ModelCardData(
        language="en", license="apache-2.0" if free else "other", license_name=None if free else "of-base-and-data",
        pipeline_tag=tasks.get(kind, "text-classification"), library_name="transformers" if kind == "student" else None,
        base_model=base.name if base.source == "hub" else None,
        tags=["defeasible-reasoning", "moral-reasoning", "self-distillation"],
    )  # fmt: skip
    texts |= {"kind": kind, "name": name, "profile": params.profile, "builtin": builtin}
    template = str(resolve("data/cards/model.md"))
    return str(ModelCard.from_template(header, template_path=template, more=more, less=less, **EXAMPLE, **texts))
