"""The student: how it learns (`fine_tune`) and how it writes (`write_contexts`), sections 3.1 to 3.3 and appendix D.2.

Run as a module, it is one of the processes that share a training (see `launch`).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from drot_utils.data.parsing import Parsed, parse_teacher
from drot_utils.data.table import CANDIDATES, PROMPT, empty_columns, read_table, write_frame
from drot_utils.engine import load, trainer
from drot_utils.engine.batches import MOST_TARGETS, Example, check_base
from drot_utils.engine.load import cut_prompt, encode_question
from drot_utils.engine.shards import Work, fingerprint, hash_work, map_shards
from drot_utils.engine.writer import Prompt, VllmWriter, Writer, Written
from drot_utils.method.cards import student_card
from drot_utils.method.prompts import parse_student, student_source, student_target, teacher_prompt
from drot_utils.study.code import hash_code, refuse_edited
from drot_utils.study.errors import DataError, DrotError, MissingInputError
from drot_utils.study.graph import in_order
from drot_utils.study.outputs import borrow, take_model
from drot_utils.study.params import ModelRef, Params
from drot_utils.study.params import Student as Settings
from drot_utils.study.paths import WRITTEN, Run, require, sha256, to_json, write_text
from drot_utils.study.record import Study, release_memory

TEACHER_PROMPT = 128  # tokens, of what a zero-shot model is asked: the demo has 93 to 104
MADE_BY = {"distill_base": "04_distill_base", "distill_final": "06_final_dataset"}
#: Settings that `fine_tune` is given one by one, or that change no weight: a change to another student's trains none again.
PACE = {
    "learning_rate", "round_learning_rate", "epochs", "round_epochs", "final_epochs", "final_from", "checkpoint_minutes",
}  # fmt: skip


def fine_tune(
    study: Study, rows: pd.DataFrame, name: str, *, start: str | None, learning_rate: float, epochs: int,
    steps: int | None = None,
) -> dict:  # fmt: skip
    """Fine-tune a student on kept rows and keep it as ``models/<name>``, unless it was trained on just the same before.

    Parameters
    ----------
    rows : DataFrame
        The training data; every row has a context and a rationale.
    start : str or None
        The student to start from; None for the base model of the parameters.
    steps : int, optional
        Optimizer steps instead of epochs.

    Returns
    -------
    dict
        ``rows steps target_tokens losses seconds fingerprint``, also kept as ``training.json`` beside the weights.
    """
    if rows.empty:
        todo = (
            "see how many rows each filter dropped: lower the critic's threshold or, where little parses, train longer"
        )
        raise DataError("no row to learn from: the filters kept none", where=name, todo=todo)
    params = study.params
    origin = sha256(study.run.model(start) / "model.safetensors") if start else load.describe_model(params.student.base)
    key = fingerprint(
        rows[[*PROMPT, "context", "rationale"]], origin, params.student.model_dump(exclude=PACE), learning_rate, epochs,
        steps, params.seed, str(study.dtype), params.compute.compile,
        hash_code("engine.trainer.train", "engine.load.load_model", "method.student.make_examples"),
    )  # fmt: skip
    if not take_model(study.run, name, "training.json", key):
        job = {"key": key, "start": start, "learning_rate": learning_rate, "epochs": epochs, "steps": steps}
        release_memory()
        if params.compute.parallel.processes > 1:
            launch(study, rows, {"name": name, **job}, study.run.work("parallel") / key)
        else:
            learn(study, rows, name, **job)
    WRITTEN.append(study.run.model(name))
    return read_training(study, name)


def read_training(study: Study, name: str) -> dict | None:
    """Return what `fine_tune` recorded of a student, or None when it does not exist."""
    path = study.run.model(name) / "training.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def learn(study: Study, rows: pd.DataFrame, name: str, *, key: str, start: str | None, **pace: float | None) -> None:
    """Train a student and keep it with its record; of several processes, the first keeps it (see `fine_tune`).

    `pace` is ``learning_rate epochs steps``.
    """
    params, run = study.params, study.run
    if start:
        model, tokenizer = load.load_folder(run.model(start), "student")
    else:
        model, tokenizer = load.load_model(params.student.base, "student", run)
        check_base(model, study.device)
    seq2seq = model.config.is_encoder_decoder
    work, examples = run.work("checkpoints") / key, make_examples(rows, tokenizer, params.student, seq2seq)
    done = trainer.train(study, model, examples, work, **pace, what=f"training {name}")
    notes = {
        "training.json": to_json({**vars(done), "start": start, "fingerprint": key}),
        "README.md": student_card(name, start, len(rows), done.steps, seq2seq, params),
    }
    first = PartialState().is_main_process
    load.save_model(model, tokenizer, run.model(name), study.dtype, notes, write=first)
    if first:  # not before: what cannot be saved, as on a full disk, need not be trained again
        shutil.rmtree(work, ignore_errors=True)


def make_examples(
    rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, settings: Settings, seq2seq: bool
) -> list[Example]:
    """Tokenize kept rows, up to `MOST_TARGETS` contexts of one prompt together."""
    examples = []
    for _, group in rows.groupby(PROMPT, sort=True):
        first = group.iloc[0]
        source = student_source(first["action"], int(first["moral_variance"]), seq2seq)
        prompt = cut_prompt(tokenizer(source)["input_ids"], settings.max_prompt_length)
        targets = []
        for context, rationale in zip(group["context"], group["rationale"], strict=True):
            ids = tokenizer(student_target(context, rationale), add_special_tokens=False)["input_ids"]
            targets.append(
                [*ids, tokenizer.eos_token_id][: settings.max_target_length]
            )  # a text that is cut has no end
        examples += [Example(prompt, targets[i : i + MOST_TARGETS]) for i in range(0, len(targets), MOST_TARGETS)]
    return examples


def launch(study: Study, rows: pd.DataFrame, job: dict, work: Path) -> None:
    """Train a student in ``compute.parallel.processes`` processes; `job` holds the arguments of `learn` after `rows`.

    The folder `work` gets the job, the rows and what the processes say (``log.txt``); an error of theirs is quoted.
    """
    refuse_edited("method.student.learn")
    write_frame(rows, work / "rows.parquet")
    saved = {"params": study.params.model_dump(), "run": study.run.profile, "stage": study.stage, "job": job}
    write_text(work / "job.json", json.dumps(saved, allow_nan=False))
    processes = study.params.compute.parallel.processes
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        "-m", "drot_utils.method.student", str(work),
    ]  # fmt: skip
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **os.environ}
    log = work / "log.txt"
    with log.open("w", encoding="utf-8") as handle:
        done = subprocess.run(command, env=environment, stderr=handle, check=False)
    if done.returncode:
        text = re.sub(r"^\[rank\d+\]: ?", "", log.read_text(), flags=re.MULTILINE)
        if ours := re.search(rf"^{DrotError.__module__}\.\w+: (.*(?:\n  what to do: .*)?)", text, re.MULTILINE):
            raise DrotError(ours[1], where=str(log))
        said = re.findall(r"^(\w[\w.]*(?:Error|Exception)\b.*)$", text, re.MULTILINE)
        raise DrotError(
            f"one of {processes} training processes failed ({said[0] if said else f'exit code {done.returncode}'})",
            where=str(log),
            todo="most often memory ran out: fewer processes, or a smaller student.batch_size; then run again",
        )


def main(work: Path) -> None:
    """Do one process's part of the job in `work`."""
    saved = json.loads((work / "job.json").read_text(encoding="utf-8"))
    params = Params.model_validate(saved["params"])
    study = Study(params, Run(saved["run"]), saved["stage"])
    if study.device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    learn(study, read_table(work / "rows.parquet"), **saved["job"])


def write_contexts(
    study: Study, name: str, actions: pd.DataFrame, stage: str, n: int, method: str, zero_shot: ModelRef | None = None
) -> pd.DataFrame:
    """Let a student write `n` candidates for each action and moral variance, in shards.

    Parameters
    ----------
    name : str
        The student, such as ``distill_base``; becomes the rows' ``source``. ``base`` is the base model, zero-shot.
    stage : str
        Names the draws: the same stage, student and actions give the same candidates.
    method : {"greedy", "nucleus", "beam"}
    zero_shot : ModelRef, optional
        A model that is no student, under that name.

    Returns
    -------
    DataFrame
        Columns of `table.CANDIDATES`, ``len(actions) * 2 * n`` rows, flags and scores null.
    """
    params, settings = study.params, study.params.generation
    zero_shot = zero_shot or (params.student.base if name == "base" else None)
    weights = load.describe_model(zero_shot) if zero_shot else sha256(_weights(study, name))
    prompts = list_prompts(actions)
    open_work = partial(_open_writing, study, name, n, method, zero_shot)
    key = fingerprint(
        prompts, n, method, settings.model_dump(), params.student.max_prompt_length, params.teacher.max_tokens, params.seed,
        stage, str(study.scoring_dtype), weights, hash_work(open_work),
    )  # fmt: skip
    return empty_columns(map_shards(
        prompts, settings.shard_size, open_work, borrow(study.run, f"shards/{stage}-{name}-{key}"), seed=params.seed,
        stage=f"{stage}: {name} writes",
        per_row=n, unit="candidates", executor=params.compute.executor,
    ))  # fmt: skip


def list_prompts(actions: pd.DataFrame) -> pd.DataFrame:
    """Return ``action_id action moral_variance``, each action in both directions."""
    return actions[["action_id", "action"]].merge(pd.DataFrame({"moral_variance": [1, -1]}), how="cross")


def require_student(study: Study, name: str) -> None:
    """Raise a `MissingInputError` that names a run's students where `name` is none of them."""
    there = in_order(path.parent.name for path in study.run.model("").glob("*/training.json"))
    if name not in there:
        todo = f"choose among: {', '.join(there)}" if there else "finish the run"
        raise MissingInputError("the run has no such student", where=f"{study.run.profile}, {name}", todo=todo)


def find_cut(study: Study, name: str, actions: list[str]) -> list[str]:
    """Return the actions that a student would not read in full: their prompts exceed ``student.max_prompt_length``."""
    tokenizer = AutoTokenizer.from_pretrained(_weights(study, name).parent)
    limit = study.params.student.max_prompt_length
    prompts = [student_source(action, -1, seq2seq=False) for action in actions]  # -1 has the longer word
    return [a for a, prompt in zip(actions, prompts, strict=True) if len(tokenizer(prompt)["input_ids"]) > limit]


def open_author(
    study: Study, name: str, zero_shot: ModelRef | None = None
) -> tuple[Writer | VllmWriter, Callable[[str, int], Prompt], Callable[[Written], Parsed | None]]:
    """Load one of the run's students, or a model that answers the teacher's prompt zero-shot (section 5.1).

    Returns
    -------
    writer, ask, parse
        Who writes, how it is asked about an action and a moral variance, and how its answer is read.
    """
    params, generation = study.params, study.params.generation
    release_memory()
    place = (study.device, study.scoring_dtype)
    if zero_shot:
        model, tokenizer = load.load_model(zero_shot, "student", study.run)
        longest = params.teacher.max_tokens or generation.max_new_tokens
        limit = min(512, max(256, load.find_room(model)[0] - longest))
        # Fewer at once than of a student's shorter texts, so that keys and values take as much memory.
        room = generation.batch_size * (params.student.max_prompt_length + generation.max_new_tokens)
        writer = Writer(model, tokenizer, *place, limit, longest, max(1, room // (TEACHER_PROMPT + longest)))
        return (
            writer,
            lambda *prompt: encode_question(tokenizer, teacher_prompt(*prompt)),
            lambda text: parse_teacher(text.text),
        )
    folder = _weights(study, name).parent
    sizes = (params.student.max_prompt_length, generation.max_new_tokens, generation.batch_size)
    if generation.engine == "vllm":
        writer = VllmWriter(folder, study.scoring_dtype, *sizes)
    else:
        writer = Writer(*load.load_folder(folder, "student"), *place, *sizes)
    # A student has learnt where to end: what it did not end is cut off, in its rationale or before.
    ask = partial(student_source, seq2seq=writer.seq2seq)
    return writer, ask, lambda text: parse_student(text.text) if text.whole else None


def _weights(study: Study, name: str) -> Path:
    return require(study.run.model(name) / "model.safetensors", MADE_BY.get(name, "05_self_distill"))


def _open_writing(study: Study, name: str, n: int, method: str, zero_shot: ModelRef | None) -> Work:
    (writer, ask, parse), settings = open_author(study, name, zero_shot), study.params.generation
    options = {"top_p": settings.top_p, "temperature": settings.temperature}

    def work(part: pd.DataFrame, seed: int) -> pd.DataFrame:
        prompts = [ask(row.action, row.moral_variance) for row in part.itertuples()]
        return to_rows(part, writer.write(prompts, n, method, **options, seed=seed), name, parse)

    return work


def to_rows(
    prompts: pd.DataFrame, written: list[list[Written]], source: str, parse: Callable[[Written], Parsed | None]
) -> pd.DataFrame:
    """Put written texts into the table of the study; a text that does not parse keeps its raw form only."""
    rows = []
    for prompt, group in zip(prompts.itertuples(), written, strict=True):
        for candidate, text in enumerate(group):
            parsed = parse(text)
            read = (parsed.context, parsed.rationale) if parsed else (None, None)
            who = (prompt.action_id, prompt.action, prompt.moral_variance, candidate, source)
            rows.append((*who, *read, text.text, text.tokens))
    return pd.DataFrame(rows, columns=CANDIDATES.names[:9])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
