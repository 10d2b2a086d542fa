"""Students at work: a student, or the base model, writes contexts for actions, in shards (GENERATE in appendix C)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
from transformers import PreTrainedTokenizerBase

from drot_utils import models
from drot_utils.executors import Work
from drot_utils.generation import Prompt, Writer, Written
from drot_utils.memory import release_memory
from drot_utils.params import Generation
from drot_utils.parsing import Parsed, parse_teacher
from drot_utils.paths import require, sha256
from drot_utils.prompts import encode_question, parse_student, student_source, teacher_prompt
from drot_utils.schema import CANDIDATES, empty_columns
from drot_utils.settings import ModelRef
from drot_utils.shards import fingerprint, map_shards, source_hash
from drot_utils.study import Study
from drot_utils.vllm_writer import VllmWriter

MADE_BY = {"distill_base": "04_distill_base", "distill_final": "06_final_dataset"}


@dataclass(frozen=True)
class Author:
    """Somebody who writes contexts: a writer, how it is asked, and how its answer is read."""

    name: str
    writer: Writer | VllmWriter
    ask: Callable[[str, int], Prompt]
    parse: Callable[[str], Parsed | None]


def open_author(study: Study, name: str, zero_shot: ModelRef | None = None) -> Author:
    """Load one of the run's students, or a model that answers the teacher's prompt zero-shot (section 5.1).

    Parameters
    ----------
    name : str
        The student; ``base`` is the student's base model, zero-shot.
    zero_shot : ModelRef, optional
        Another model to be asked zero-shot, under that name.
    """
    params, generation = study.params, study.params.generation
    release_memory()
    place = (study.device, study.dtype)
    zero_shot = zero_shot or (params.student.base if name == "base" else None)
    if zero_shot:
        model, tokenizer = models.load(zero_shot, "student", study.run)
        longest = params.teacher.max_tokens or generation.max_new_tokens
        writer = Writer(model, tokenizer, *place, 512, longest, generation.batch_size)
        return Author(name, writer, partial(_ask_zero_shot, tokenizer), parse_teacher)
    folder = require(study.run.model(name) / "model.safetensors", MADE_BY.get(name, "05_self_distill")).parent
    sizes = (params.student.max_prompt_length, generation.max_new_tokens, generation.batch_size)
    if generation.engine == "vllm":
        writer = VllmWriter(folder, study.dtype, *sizes)
    else:
        writer = Writer(*models.load_folder(folder, "student"), *place, *sizes)
    return Author(name, writer, partial(student_source, seq2seq=writer.seq2seq), parse_student)


def _ask_zero_shot(tokenizer: PreTrainedTokenizerBase, action: str, moral_variance: int) -> list[int]:
    return encode_question(tokenizer, teacher_prompt(action, moral_variance))


def write_contexts(
    study: Study,
    name: str,
    actions: pd.DataFrame,
    stage: str,
    n: int,
    method: str,
    zero_shot: ModelRef | None = None,
) -> pd.DataFrame:
    """Let a student write `n` candidates for each action and moral variance, in shards.

    Parameters
    ----------
    name : str
        The student, such as ``distill_base``, or ``base``; becomes the rows' ``source``.
    actions : DataFrame
        ``action_id`` and ``action``.
    stage : str
        Names the draws: the same stage, student and actions give the same candidates.
    method : {"greedy", "nucleus", "beam"}
    zero_shot : ModelRef, optional
        See `open_author`.

    Returns
    -------
    DataFrame
        Columns of `schema.CANDIDATES`, ``len(actions) * 2 * n`` rows, flags and scores null.
    """
    settings = study.params.generation
    model = zero_shot or (study.params.student.base if name == "base" else None)
    origin = study.run.model(name) / "model.safetensors"
    prompts = list_prompts(actions)
    key = fingerprint(
        prompts, n, method, settings.model_dump(), study.params.seed, stage, str(study.dtype),
        models.describe(model) if model else sha256(require(origin, MADE_BY.get(name, "05_self_distill"))),
        source_hash("generation", "nucleus", "slots", "precision", "vllm_writer", "prompts", "parsing", "markup"),
    )  # fmt: skip
    rows = map_shards(
        prompts, settings.shard_size, partial(_open_writing, study, name, n, method, zero_shot),
        study.run.work("shards") / f"{stage}-{name}-{key}", seed=study.params.seed, stage=f"{stage}: {name} writes",
        per_row=n, unit="candidates", executor=study.params.compute.executor,
    )  # fmt: skip
    return empty_columns(rows)


def list_prompts(actions: pd.DataFrame) -> pd.DataFrame:
    """Return ``action_id action moral_variance``, each action in both directions."""
    return actions[["action_id", "action"]].merge(pd.DataFrame({"moral_variance": [1, -1]}), how="cross")


def _open_writing(study: Study, name: str, n: int, method: str, zero_shot: ModelRef | None) -> Work:
    return partial(_write_shard, open_author(study, name, zero_shot), study.params.generation, n, method)


def _write_shard(
    author: Author, settings: Generation, n: int, method: str, part: pd.DataFrame, seed: int
) -> pd.DataFrame:
    texts = [author.ask(row.action, row.moral_variance) for row in part.itertuples()]
    written = author.writer.write(
        texts, n, method, top_p=settings.top_p, temperature=settings.temperature, seed=seed
    )
    return to_rows(part, written, author.name, author.parse)


def to_rows(
    prompts: pd.DataFrame, written: list[list[Written]], source: str, parse: Callable[[str], Parsed | None]
) -> pd.DataFrame:
    """Put written texts into the table of the study; a text that does not parse keeps its raw form only."""
    rows = []
    for prompt, group in zip(prompts.itertuples(), written, strict=True):
        for candidate, text in enumerate(group):
            parsed = parse(text.text)
            rows.append({
                "action_id": prompt.action_id,
                "action": prompt.action,
                "moral_variance": prompt.moral_variance,
                "candidate": candidate,
                "source": source,
                "context": parsed.context if parsed else None,
                "rationale": parsed.rationale if parsed else None,
                "raw": text.text,
                "tokens": text.tokens,
            })  # fmt: skip
    return pd.DataFrame(rows, columns=CANDIDATES.names[:9])
