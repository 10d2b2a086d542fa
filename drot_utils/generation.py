"""How a student writes: greedy, nucleus samples or beams, one call for causal and seq2seq models (sections 3.2 and 4.1)."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from drot_utils.nucleus import nucleus_sample
from drot_utils.progress import Progress

COMPACT_BELOW = 0.75  # finished sequences leave the batch when fewer than this share are still being written


@dataclass(frozen=True)
class Written:
    """One candidate: its text and the number of tokens it took (the end token counted)."""

    text: str
    tokens: int


@dataclass
class Writer:
    """A student ready to write.

    Parameters
    ----------
    model, tokenizer
        As `models.load` returns them; the model is moved to `device` and `dtype`.
    max_new_tokens : int
        Where a text is cut.
    batch_size : int
        Sequences written at once.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    max_prompt_length: int
    max_new_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        self.model.to(device=self.device, dtype=self.dtype).eval()
        self.seq2seq = self.model.config.is_encoder_decoder
        ends = self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        self.ends = torch.tensor(ends if isinstance(ends, list) else [ends], device=self.device)

    def write(
        self,
        prompts: list[str],
        n: int,
        method: str,
        *,
        top_p: float = 1.0,
        temperature: float = 1.0,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[list[Written]]:
        """Write `n` candidates for each prompt.

        Parameters
        ----------
        prompts : list of str
        n : int
            Candidates a prompt; greedy decoding allows one.
        method : {"greedy", "nucleus", "beam"}
            Beams are the `n` best of `n` beams.
        seed : int
            Fixes every draw of nucleus sampling, whatever the batches.

        Returns
        -------
        list of list of Written
            In the order of `prompts`, `n` each.
        """
        if method == "greedy" and n != 1:
            raise ValueError(f"greedy decoding writes one candidate a prompt, not {n}")
        # Fixed numbers for (candidate, position): a draw does not depend on who shares its batch.
        rng = np.random.default_rng(seed)
        uniform = (
            torch.from_numpy(rng.random((len(prompts), n, self.max_new_tokens)))
            if method == "nucleus"
            else None
        )
        encoded = [self._encode(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        results: list[list[Written]] = [[] for _ in prompts]
        together = max(1, self.batch_size // n)
        for start in range(0, len(order), together):
            index = order[start : start + together]
            batch = self.tokenizer.pad(
                {"input_ids": [encoded[i] for i in index]}, padding_side="left", return_tensors="pt"
            ).to(self.device)
            if method == "beam":
                rows = self._beams(batch, n)
            else:
                draws = uniform[index].flatten(0, 1).to(self.device) if uniform is not None else None
                rows = self._sample(batch, n, draws, top_p, temperature)
            texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
            for k, i in enumerate(index):
                parts = range(k * n, (k + 1) * n)
                results[i] = [Written(texts[j].strip(), len(rows[j])) for j in parts]
            if progress:
                progress.update(len(index) * n)
        return results

    def _encode(self, prompt: str) -> list[int]:
        return self.tokenizer(prompt, truncation=True, max_length=self.max_prompt_length)["input_ids"]

    @torch.inference_mode()
    def _sample(
        self, batch: dict, n: int, draws: torch.Tensor | None, top_p: float, temperature: float
    ) -> list[list[int]]:
        # The prompt is read once (prefill) and shared by its n candidates; finished ones leave the batch.
        mask = batch["attention_mask"]
        inputs, extra = self._prefill_inputs(batch)
        output = self.model(**inputs, use_cache=True)
        cache, logits = output.past_key_values, output.logits[:, -1]
        cache.batch_repeat_interleave(n)
        logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
        if extra is not None:
            extra = extra.repeat_interleave(n, 0)
        written = torch.full((len(logits), self.max_new_tokens), -1, dtype=torch.int64, device=self.device)
        alive = torch.arange(len(logits), device=self.device)  # rows of `written` that the batch holds
        open_ = torch.ones(len(logits), dtype=torch.bool, device=self.device)
        for step in range(self.max_new_tokens):
            if draws is None:
                token = logits.argmax(-1)
            else:
                token = nucleus_sample(logits, draws[alive, step], top_p, temperature)
            written[alive[open_], step] = token[open_]
            open_ = open_ & ~torch.isin(token, self.ends)
            left = int(open_.sum())
            if not left or step + 1 == self.max_new_tokens:
                break
            if left < COMPACT_BELOW * len(open_):
                rows = open_.nonzero().squeeze(1)
                cache.batch_select_indices(rows)
                alive, mask, token, open_ = alive[rows], mask[rows], token[rows], open_[rows]
                extra = extra[rows] if extra is not None else None
            mask, step_inputs = self._step_inputs(token, mask, extra)
            output = self.model(**step_inputs, cache=cache, use_cache=True)
            cache, logits = output.past_key_values, output.logits[:, -1]
        return [row[row >= 0].tolist() for row in written.cpu()]

    def _prefill_inputs(self, batch: dict) -> tuple[dict, torch.Tensor | None]:
        mask = batch["attention_mask"]
        if not self.seq2seq:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            cache = DynamicCache()
            inputs = {**batch, "position_ids": positions, "cache": cache, "logits_to_keep": 1}
            return inputs, None
        states = self.model.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        start = torch.full((len(mask), 1), self.model.config.decoder_start_token_id, device=self.device)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return {**self._decoder_inputs(start, mask, states), "cache": cache}, states

    def _step_inputs(
        self, token: torch.Tensor, mask: torch.Tensor, extra: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict]:
        if self.seq2seq:
            return mask, self._decoder_inputs(token.unsqueeze(1), mask, extra)
        positions = mask.sum(-1, keepdim=True)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return mask, {"input_ids": token.unsqueeze(1), "attention_mask": mask, "position_ids": positions}

    @staticmethod
    def _decoder_inputs(token: torch.Tensor, mask: torch.Tensor, states: torch.Tensor) -> dict:
        return {
            "decoder_input_ids": token,
            "attention_mask": mask,
            "encoder_outputs": BaseModelOutput(last_hidden_state=states),
        }

    @torch.inference_mode()
    def _beams(self, batch: dict, n: int) -> list[list[int]]:
        output = self.model.generate(
            **batch, num_beams=max(2, n), num_return_sequences=n, do_sample=False, max_new_tokens=self.max_new_tokens,
            eos_token_id=self.ends.tolist(), pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        rows = output[:, 1:] if self.seq2seq else output[:, batch["input_ids"].shape[1] :]
        return [self._until_end(row.tolist()) for row in rows]

    def _until_end(self, row: list[int]) -> list[int]:
        ends = set(self.ends.tolist())
        for i, token in enumerate(row):
            if token in ends:
                return row[: i + 1]
        return row
