"""Tests of `cards`: what they say is so, and their snippets run."""

import os
import re

import pytest
from huggingface_hub import ModelCard
from test_distill import keyboard  # noqa: F401  (a fixture)

from drot_utils.engine import load
from drot_utils.method import cards
from drot_utils.method.prompts import student_source
from drot_utils.study.outputs import BY_HAND, finish
from drot_utils.study.params import load_params

ACTION, CONTEXT, PARAPHRASE = cards.EXAMPLE.values()


def run_snippet(card, folder, monkeypatch, capsys):
    """Run the Python of a card in its folder and return what it prints."""
    monkeypatch.chdir(folder)
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(snippet, {})
    return capsys.readouterr().out


def test_a_student_says_what_it_is_not_for(smoke):
    card = cards.student_card("distill_final", "self_distill_2", 1234, 50, False, smoke)
    for words in (
        "never advice",
        "from self_distill_2 on 1,234",
        "written and labelled by language models",
        "not by people",
    ):
        assert words in " ".join(card.split())
    header = ModelCard(card).data
    assert (
        header.pipeline_tag == "text-generation"
        and header.license == "apache-2.0"
        and header.library_name == "transformers"
    )


def test_cards_of_other_corpora_do_not_claim_the_demos_licence():
    params = load_params("params/paper.yaml")
    card = cards.student_card("x", None, 1, 1, True, params)
    header = ModelCard(card).data
    assert header.license == "other" and header.pipeline_tag == "text2text-generation"
    assert header.base_model == params.student.base.name and "language models" not in card.partition("by whom")[2]


def test_a_students_prompts_are_to_the_letter_and_its_snippet_runs(tiny_student, smoke, tmp_path, monkeypatch, capsys):
    model, tokenizer = tiny_student
    seq2seq = model.config.is_encoder_decoder
    card = cards.student_card("distill_base", None, 5, 5, seq2seq, smoke)
    load.save_model(model, tokenizer, tmp_path / "m", model.dtype, {"README.md": card})
    for way in (1, -1):
        assert f"```text\n{student_source(ACTION, way, seq2seq).rstrip()}\n```" in card
    assert repr(student_source(ACTION, -1, seq2seq)) in card
    assert run_snippet(card, tmp_path / "m", monkeypatch, capsys)


@pytest.mark.parametrize("name", ["critic", "nli"])
def test_critic_and_entailment_model_have_cards_whose_snippets_run(keyboard, name, monkeypatch, capsys):  # noqa: F811
    record = {"files": {}, "parameters": keyboard.params.model_dump(mode="json")}
    finish(keyboard.run, "03_nli_filter", BY_HAND, record)
    write = {
        "critic": lambda: cards.write_critic_card(keyboard, "critic"),
        "nli": lambda: cards.write_entailment_card(keyboard),
    }
    path = write[name]()
    card = path.read_text()
    assert path.parent == keyboard.run.model(name) and ModelCard(card).data.pipeline_tag == "text-classification"
    assert f"{ACTION}\n{CONTEXT}" in card if name == "critic" else f"{PARAPHRASE}\n{CONTEXT}" in card
    monkeypatch.setenv("DROT_OUTPUT", os.environ["DROT_OUTPUT"])
    said = run_snippet(card, path.parent, monkeypatch, capsys)
    assert 0 <= float(said.strip("[]\n ")) <= 1


def test_a_binary_critic_reads_the_direction(smoke, study):
    study.params = smoke.model_copy(update={"critic": smoke.critic.model_copy(update={"head": "binary"})})
    card = cards.write_critic_card(study, "critic").read_text()
    assert f"[ACTION] {ACTION} [POS] {CONTEXT}" in card and f"[NEG] {CONTEXT}" in card
