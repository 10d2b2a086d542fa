"""Writing with vLLM instead of our own loop: causal students on GPUs, by ``generation.engine: vllm`` (an extra)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer

from drot_utils.engine.shards import derive_seed
from drot_utils.engine.writer import Prompt, Written, encode_prompts
from drot_utils.study.errors import DrotError, ModelError


@dataclass
class VllmWriter:
    """A causal student ready to write; takes and gives what `writer.Writer` does, though with other draws."""

    folder: Path
    dtype: torch.dtype
    max_prompt_length: int
    max_new_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        try:
            import vllm
        except ImportError as error:
            todo = "pip install vllm (it needs a GPU), or set `generation.engine: transformers`"
            raise DrotError("vLLM is not installed", where="generation.engine", todo=todo) from error
        self.seq2seq = AutoConfig.from_pretrained(self.folder).is_encoder_decoder
        if self.seq2seq:
            todo = "set `generation.engine: transformers`, or take a causal student.base"
            raise ModelError("vLLM does not serve seq2seq students", where=str(self.folder), todo=todo)
        self.vllm = vllm
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.engine = vllm.LLM(
            model=str(self.folder), dtype=str(self.dtype).removeprefix("torch."), max_num_seqs=self.batch_size,
            max_model_len=self.max_prompt_length + self.max_new_tokens, enable_prefix_caching=True,
        )  # fmt: skip

    def write(
        self, prompts: list[Prompt], n: int, method: str, *, top_p: float = 1.0, temperature: float = 1.0, seed: int = 0
    ) -> list[list[Written]]:
        """Write `n` candidates for each prompt (see `writer.Writer.write`)."""
        ids = encode_prompts(self.tokenizer, prompts, n, method, self.max_prompt_length)
        asked = [{"prompt_token_ids": row} for row in ids]
        if method == "beam":
            settings = self.vllm.sampling_params.BeamSearchParams(beam_width=max(2, n), max_tokens=self.max_new_tokens)
            found = zip(ids, self.engine.beam_search(asked, settings), strict=True)
            rows = [[beam.tokens[len(prompt) :] for beam in output.sequences[:n]] for prompt, output in found]
        else:
            if method == "greedy":
                temperature, top_p = 0.0, 1.0
            common = {"n": n, "max_tokens": self.max_new_tokens, "temperature": temperature, "top_p": top_p}
            settings = [self.vllm.SamplingParams(seed=derive_seed(seed, "vllm", i), **common) for i in range(len(ids))]
            found = self.engine.generate(asked, settings, use_tqdm=False)
            rows = [[list(choice.token_ids) for choice in output.outputs] for output in found]
        decode = partial(self.tokenizer.decode, skip_special_tokens=True)
        return [[Written(decode(row).strip(), len(row)) for row in group] for group in rows]
