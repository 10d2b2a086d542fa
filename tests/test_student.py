"""Tests of `student`."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from tokenizers import processors

from drot_utils.engine import load, writer
from drot_utils.engine.load import build_tiny
from drot_utils.engine.writer import Written
from drot_utils.method import judges, student
from drot_utils.method.prompts import parse_student
from drot_utils.study import outputs
from drot_utils.study.errors import MissingInputError
from drot_utils.study.paths import WRITTEN, Run


def test_raw_text_is_kept_when_it_does_not_parse():
    prompts = pd.DataFrame({"action_id": ["a"], "action": ["Lying"], "moral_variance": [1]})
    rows = student.to_rows(
        prompts,
        [[Written("nonsense", 2), Written("Update: x. Explanation: y.", 7)]],
        "s",
        lambda text: parse_student(text.text),
    )
    assert rows["context"].fillna("null").tolist() == ["null", "x"] and rows["raw"].tolist() == [
        "nonsense",
        "Update: x. Explanation: y.",
    ]


@pytest.fixture
def student_on_disk(study):
    model, tokenizer = build_tiny("tiny-llama")
    load.save_model(model, tokenizer, study.run.model("distill_base"), study.dtype)
    return study


def test_writing_is_resumable_and_counted(student_on_disk, actions):
    study, some = student_on_disk, actions.head(7)
    rows = student.write_contexts(study, "distill_base", some, "round_1", 3, "nucleus")
    assert len(rows) == 7 * 2 * 3 and rows["kept"].isna().all() and set(rows["source"]) == {"distill_base"}
    shards = sorted(study.run.work("shards").rglob("*.parquet"))
    assert len(shards) == 2  # 14 prompts, ten a shard
    shards[1].unlink()
    pd.testing.assert_frame_equal(student.write_contexts(study, "distill_base", some, "round_1", 3, "nucleus"), rows)
    other = student.write_contexts(study, "distill_base", some, "round_2", 3, "nucleus")
    assert not other["raw"].equals(rows["raw"])


def test_what_a_student_did_not_end_does_not_parse(student_on_disk):
    _, _, read = student.open_author(student_on_disk, "distill_base")
    text = "Update: at night. Explanation: others are as"
    assert read(Written(text, 9)).context == "at night" and read(Written(text, 9, whole=False)) is None


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
@pytest.mark.parametrize("method", ["greedy", "nucleus", "beam"])
def test_a_text_is_whole_where_its_writer_ended_it(name, method):
    model, tokenizer = build_tiny(name)
    author = writer.Writer(model, tokenizer, torch.device("cpu"), torch.float32, 32, 6, 8)
    prompts = [f"Action: {word}" for word in ("a", "fire at", "the door of", "my own house")]
    for texts in author.write(prompts, 1 if method == "greedy" else 4, method, seed=3):
        for text in texts:
            assert text.whole or text.tokens == 6
    author.ends = torch.arange(model.config.vocab_size)
    if method != "beam":
        assert all(t.whole and t.tokens == 1 for t in author.write(prompts, 1, method)[0])
    author.ends = torch.tensor([model.config.vocab_size])
    assert not any(t.whole for texts in author.write(prompts, 1, method) for t in texts)


def test_a_target_that_is_cut_has_no_end(smoke, student_rows):
    _, tokenizer = build_tiny("tiny-llama")
    for limit in (8, 512):
        settings = smoke.student.model_copy(update={"max_target_length": limit})
        for example in student.make_examples(student_rows, tokenizer, settings, seq2seq=False):
            for target in example.targets:
                assert len(target) <= limit and (target[-1] == tokenizer.eos_token_id) == (limit == 512)


def test_base_model_is_asked_the_teachers_prompt(study):
    author, ask, _ = student.open_author(study, "base", study.params.student.base)
    assert author.tokenizer.decode(ask("Lying", -1)).startswith("Given an action")


def test_a_model_with_a_short_window_is_asked_the_teachers_prompt_too(study, monkeypatch):
    model, tokenizer = build_tiny("tiny-llama")
    monkeypatch.setattr(load, "load_model", lambda *a: (model, tokenizer))
    room = {512: 512, 2048: 512 + study.params.teacher.max_tokens}  # Gemma 3's, and a longer one
    for model.config.sliding_window, expected in room.items():
        author, _, _ = student.open_author(study, "base", study.params.student.base)
        assert author.max_prompt_length + author.max_new_tokens == expected


def test_a_zero_shot_base_keeps_no_more_keys_and_values_than_a_student(study):
    params, (author, _, _) = study.params, student.open_author(study, "base", study.params.student.base)
    most = params.student.max_prompt_length + params.generation.max_new_tokens
    took = student.TEACHER_PROMPT + author.max_new_tokens
    assert 0 < author.batch_size * took <= params.generation.batch_size * most < (author.batch_size + 1) * took


BOS = "<unk>"  # the tiny tokenizer has no other to spare


@pytest.mark.parametrize("writes_bos", [True, False])
def test_a_chat_prompt_has_the_special_tokens_of_its_template_only(study, monkeypatch, writes_bos):
    model, tokenizer = build_tiny("tiny-llama")
    tokenizer.bos_token = BOS
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
    )
    assert tokenizer("Lying")["input_ids"][0] == tokenizer.bos_token_id
    tokenizer.chat_template = "{{ bos_token }}" * writes_bos + "{{ messages[0]['content'] }}!"
    monkeypatch.setattr(load, "load_model", lambda *a: (model, tokenizer))
    (author, ask, _), read = student.open_author(study, "base", study.params.student.base), []
    monkeypatch.setattr(writer, "write_sequences", lambda model, prompts, *a, **k: read.extend(prompts) or [[1]])
    author.write([ask("Lying", -1)], 1, "greedy")
    monkeypatch.setattr(
        judges, "_next_logits", lambda model, tokenizer, prompts: read.extend(prompts) or torch.zeros(1, 600)
    )
    judges.yes_and_no(model, tokenizer, ["Lying"])
    assert [ids.count(tokenizer.bos_token_id) for ids in read] == [int(writes_bos)] * 2
    tokenizer.chat_template = None
    assert ask("Lying", -1).count(tokenizer.bos_token_id) == 1


def test_a_student_that_does_not_exist_names_its_notebook(study, actions):
    with pytest.raises(MissingInputError, match="05_self_distill"):
        student.write_contexts(study, "self_distill_1", actions.head(1), "x", 1, "greedy")


def test_a_student_of_another_run_is_linked_where_it_learnt_the_same(study, candidates, monkeypatch):
    rows = candidates[candidates["context"].notna()]
    pace = {"start": None, "learning_rate": 0.01, "epochs": 1}
    record = student.fine_tune(study, rows, "distill_base", **pace)
    outputs.finish(study.run, "04_distill_base", "a1", {"files": {}})
    monkeypatch.setattr(student, "learn", lambda *_, **__: pytest.fail("it was trained again"))
    monkeypatch.setattr(outputs, "SMALL", 0)  # small files are copied
    other = replace(study, run=Run("other"))
    assert student.fine_tune(other, rows, "distill_base", **pace) == record
    weights = [run.model("distill_base") / "model.safetensors" for run in (study.run, other.run)]
    assert weights[0].samefile(weights[1])
    assert "run/models/distill_base/model.safetensors" in outputs.list_files(
        other.run, WRITTEN
    )  # it is this stage's, too
    written = [student.write_contexts(s, "distill_base", rows.head(1), "round_1", 2, "nucleus") for s in (study, other)]
    pd.testing.assert_frame_equal(*written)
    shards = [next(run.work("shards").rglob("*.parquet")) for run in (study.run, other.run)]
    assert shards[0].samefile(shards[1])
