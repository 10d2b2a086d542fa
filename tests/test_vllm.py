"""vLLM needs a GPU: what is asked of it is tested on a stand-in with its names, not what it answers."""

import sys
from types import SimpleNamespace

import pytest
import torch

from drot_utils.engine.load import build_tiny, save_model
from drot_utils.engine.writer import VllmWriter, Written
from drot_utils.method import student
from drot_utils.study.errors import DrotError, ModelError

SIZES = (torch.float32, 16, 8, 4)
ENDS = ("stop", "length", "stop")


class FakeEngine:
    """Continues a prompt with its last token, once more for each candidate."""

    def __init__(self, **options):
        self.options = options

    def generate(self, prompts, settings, use_tqdm):
        self.settings = settings
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(token_ids=tuple(prompt["prompt_token_ids"][-1:] * (k + 1)), finish_reason=ENDS[k])
                    for k in range(asked.n)
                ]
            )
            for prompt, asked in zip(prompts, settings, strict=True)
        ]

    def beam_search(self, prompts, settings):
        return [
            SimpleNamespace(
                sequences=[
                    SimpleNamespace(tokens=prompt["prompt_token_ids"] * 2, finish_reason="stop")
                    for _ in range(settings.beam_width)
                ]
            )
            for prompt in prompts
        ]


@pytest.fixture
def fake(monkeypatch):
    module = SimpleNamespace(
        LLM=FakeEngine,
        SamplingParams=SimpleNamespace,
        sampling_params=SimpleNamespace(BeamSearchParams=SimpleNamespace),
    )
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.fixture
def folder(tmp_path):
    save_model(*build_tiny("tiny-llama"), tmp_path / "student", torch.float32)
    return tmp_path / "student"


def test_results_are_those_of_the_other_writer_in_kind(fake, folder):
    writer = VllmWriter(folder, *SIZES)
    written = writer.write(["Action: a fire", "Action: a lie"], 3, "nucleus", top_p=0.9, temperature=0.7, seed=1)
    assert [len(group) for group in written] == [3, 3] and isinstance(written[0][0], Written)
    assert [(candidate.tokens, candidate.whole) for candidate in written[0]] == [(1, True), (2, False), (3, True)]
    one, other = writer.engine.settings
    assert (one.top_p, one.temperature, one.max_tokens, one.n) == (0.9, 0.7, 8, 3) and one.seed != other.seed
    assert writer.engine.options["dtype"] == "float32" and writer.engine.options["max_model_len"] == 24
    writer.write(["Action: a fire"], 1, "greedy", top_p=0.9, temperature=0.7)
    assert (writer.engine.settings[0].temperature, writer.engine.settings[0].top_p) == (0.0, 1.0)
    beams = writer.write(["Action: a fire"], 1, "beam")
    assert len(beams[0]) == 1 and beams[0][0].text
    with pytest.raises(ValueError, match="one candidate"):
        writer.write(["a"], 2, "greedy")


def test_without_vllm_the_install_line(folder, monkeypatch, study):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(DrotError, match="pip install vllm"):
        VllmWriter(folder, *SIZES)
    save_model(*build_tiny("tiny-llama"), study.run.model("distill_base"), torch.float32)
    generation = study.params.generation.model_copy(update={"engine": "vllm"})
    study.params = study.params.model_copy(update={"generation": generation})
    with pytest.raises(DrotError, match=r"generation\.engine"):
        student.open_author(study, "distill_base")


def test_seq2seq_students_are_refused(fake, tmp_path):
    save_model(*build_tiny("tiny-t5"), tmp_path / "t5", torch.float32)
    with pytest.raises(ModelError, match="does not serve seq2seq"):
        VllmWriter(tmp_path / "t5", *SIZES)
