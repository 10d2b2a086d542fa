"""A student that writes: greedily, with beams, or by exact nucleus (top-p) sampling (Holtzman et al., 2020); or by vLLM."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from drot_utils.engine.load import check_length, cut_prompt, round_weights
from drot_utils.engine.shards import derive_seed
from drot_utils.engine.slots import COMPACT_BELOW, Choose, use_grouped, write_sequences
from drot_utils.study.errors import DrotError, ModelError

WIDTHS = (64, 1024)  # most nuclei fit into the first; the full sort is the last resort
CACHED = 1 << 19  # numbers that stay in a core's cache
TIE = 1e-6  # the whole mass is a float32 sum: this close to top_p counts as reaching it

#: A text, or the token ids of one whose special tokens are already in it.
Prompt = str | list[int]


@dataclass(frozen=True)
class Written:
    """One candidate: its text, the number of tokens it took (the end token counted), and whether its writer ended it."""

    text: str
    tokens: int
    whole: bool = True


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], n: int, method: str, max_length: int
) -> list[list[int]]:
    """Return the token ids of prompts, cut to `max_length`, for `n` candidates each (one by greedy decoding)."""
    if method == "greedy" and n != 1:
        raise ValueError(f"greedy decoding writes one candidate a prompt, not {n}")
    ids = [tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt for prompt in prompts]
    return [cut_prompt(row, max_length) for row in ids]


@dataclass
class Writer:
    """A student ready to write.

    Parameters
    ----------
    model : PreTrainedModel
        Moved to `device` and `dtype`.
    max_new_tokens : int
        Where a text is cut.
    batch_size : int
        Sequences written at once.

    Raises
    ------
    ModelError
        When prompt and text together are longer than the model has positions.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    max_prompt_length: int
    max_new_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        round_weights(self.model.to(self.device), self.dtype).eval()
        self.seq2seq = self.model.config.is_encoder_decoder
        if not self.seq2seq:
            use_grouped(self.model, self.device)
        check_length(self.model, self.max_prompt_length, self.max_new_tokens, "generation.max_new_tokens")
        # A student learns to end with its tokenizer's token, which not every model's configuration has among its own.
        ends = self.model.generation_config.eos_token_id
        ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}
        self.ends = torch.tensor(sorted(ends), device=self.device)

    @torch.inference_mode()
    def write(
        self, prompts: list[Prompt], n: int, method: str, *, top_p: float = 1.0, temperature: float = 1.0, seed: int = 0
    ) -> list[list[Written]]:
        """Write `n` candidates for each prompt, and return them in the order of `prompts`.

        Parameters
        ----------
        n : int
            Candidates a prompt; greedy decoding allows one.
        method : {"greedy", "nucleus", "beam"}
            Beams are the `n` best of `n` beams.
        seed : int
            Fixes every draw of nucleus sampling, whatever the batches.
        """
        encoded = encode_prompts(self.tokenizer, prompts, n, method, self.max_prompt_length)
        order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        ordered = [encoded[i] for i in order]
        if method == "nucleus":
            # Fixed numbers for (candidate, position): a draw does not depend on who shares its batch.
            uniform = np.random.default_rng(seed).random((len(prompts), n, self.max_new_tokens))
            draws = torch.from_numpy(uniform)[order].flatten(0, 1).to(self.device)

        def choose(logits: torch.Tensor, sequence: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
            if method == "nucleus":
                return nucleus_sample(logits, draws[sequence, step], top_p, temperature)
            check_logits(logits.amax(-1))
            return logits.argmax(-1)

        if method == "beam":
            rows = [row for _, batch in self._batches(ordered, n) for row in self._search(batch, n)]
        elif self.seq2seq:
            rows = [row for first, batch in self._batches(ordered, n) for row in self._decode(batch, n, choose, first)]
        else:
            rows = write_sequences(
                self.model, ordered, n, choose, ends=self.ends, pad=self.tokenizer.pad_token_id,
                max_new_tokens=self.max_new_tokens, slots=self.batch_size,
            )  # fmt: skip
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        ends = set(self.ends.tolist())
        written = [Written(t.strip(), len(row), row[-1] in ends) for t, row in zip(texts, rows, strict=True)]
        place = {i: k * n for k, i in enumerate(order)}
        return [written[place[i] : place[i] + n] for i in range(len(prompts))]

    def _batches(self, prompts: list[list[int]], n: int) -> Iterator[tuple[int, dict]]:
        """Yield batches of prompts, each with the number of its first sequence."""
        together = max(1, self.batch_size // n)
        side = "right" if self.seq2seq else "left"  # of a decoder, what is written follows the prompt at once
        for start in range(0, len(prompts), together):
            ids = {"input_ids": prompts[start : start + together]}
            yield start * n, self.tokenizer.pad(ids, padding_side=side, return_tensors="pt").to(self.device)

    def _decode(self, batch: dict, n: int, choose: Choose, first: int) -> list[list[int]]:
        # The encoder reads a prompt once for its n candidates; finished ones leave the batch. A relative position bias
        # wants all rows of a batch at the same step, so no other prompt takes their place as in `slots`.
        mask = batch["attention_mask"].repeat_interleave(n, 0)
        states = self.model.get_encoder()(**batch).last_hidden_state.repeat_interleave(n, 0)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        token = torch.full((len(mask),), self.model.config.decoder_start_token_id, device=self.device)
        written = torch.full((len(mask), self.max_new_tokens), -1, dtype=torch.int64, device=self.device)
        alive = torch.arange(len(mask), device=self.device)  # rows of `written` that the batch holds
        open_ = torch.ones_like(alive, dtype=torch.bool)
        for step in range(self.max_new_tokens):
            logits = self.model(
                decoder_input_ids=token.unsqueeze(1), attention_mask=mask,
                encoder_outputs=BaseModelOutput(last_hidden_state=states), cache=cache, use_cache=True,
            ).logits[:, -1]  # fmt: skip
            token = choose(logits, first + alive, torch.full_like(alive, step))
            written[alive[open_], step] = token[open_]
            open_ = open_ & ~torch.isin(token, self.ends)
            left = int(open_.sum())
            if not left:
                break
            if left < COMPACT_BELOW * len(open_):
                rows = open_.nonzero().squeeze(1)
                cache.batch_select_indices(rows)
                alive, mask, states, token, open_ = (t[rows] for t in (alive, mask, states, token, open_))
        return [row[row >= 0].tolist() for row in written.cpu()]

    def _search(self, batch: dict, n: int) -> Iterator[list[int]]:
        ends = self.ends.tolist()
        output = self.model.generate(
            **batch, num_beams=max(2, n), num_return_sequences=n, do_sample=False, max_new_tokens=self.max_new_tokens,
            eos_token_id=ends, pad_token_id=self.tokenizer.pad_token_id, logits_processor=[_check_scores],
        )  # fmt: skip
        for row in output[:, 1 if self.seq2seq else batch["input_ids"].shape[1] :].tolist():
            yield row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))]


def _check_scores(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    check_logits(scores.amax(-1))
    return scores


def nucleus_sample(logits: torch.Tensor, uniform: torch.Tensor, top_p: float, temperature: float = 1.0) -> torch.Tensor:
    """Draw one token a row from the nucleus: the smallest set of likeliest tokens whose probability reaches `top_p`.

    Among equal probabilities the order is that of ``torch.topk``. The draw is by inversion: the token in whose share of
    the nucleus `uniform` falls. So the result depends on the row's own logits and number only, not on its batch.

    Parameters
    ----------
    logits : Tensor of shape (rows, vocabulary)
    uniform : Tensor of shape (rows,)
        Numbers in [0, 1).
    top_p : float
        In (0, 1].

    Raises
    ------
    ValueError
        See `check_logits`.
    """
    vocabulary = logits.shape[1]
    widths = [*(w for w in WIDTHS if w < vocabulary), vocabulary]
    top, ids = logits.topk(widths[0], dim=-1)
    peak = top[:, :1]
    check_logits(peak)
    total = _total_mass(logits, peak, temperature)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    pending = torch.arange(len(logits), device=logits.device)
    for width in widths:
        if width > widths[0]:
            top, ids = logits[pending].topk(width, dim=-1)
        # Summed in float64: at the boundary a float32 sum of thousands of terms may err by a token.
        mass = ((top.double() - peak[pending].double()) / temperature).exp() / total[pending]
        cumulative = mass.cumsum(-1)
        inside = (cumulative[:, -1] >= top_p - TIE) | (width == vocabulary)
        reached = cumulative[inside]
        # The nucleus ends with the first token at which the mass reaches top_p.
        size = (reached < top_p - TIE).sum(-1).clamp(max=width - 1)
        kept_mass = reached.gather(1, size.unsqueeze(1))
        target = uniform[pending[inside]].double().unsqueeze(1) * kept_mass
        drawn = torch.searchsorted(reached.contiguous(), target, right=True).squeeze(1).minimum(size)
        tokens[pending[inside]] = ids[inside].gather(1, drawn.unsqueeze(1)).squeeze(1)
        pending = pending[~inside]
        if not len(pending):
            break
    return tokens


def check_logits(peak: torch.Tensor) -> None:
    """Raise a ValueError when the largest logit of a row is NaN or infinite."""
    if not torch.isfinite(peak).all():
        raise ValueError(
            "logits are not finite: the model's weights or its input are broken, or float16 is too narrow (`compute.dtype`)"
        )


def _total_mass(logits: torch.Tensor, peak: torch.Tensor, temperature: float) -> torch.Tensor:
    # A few rows at a time on a CPU, and in place, so that they stay in its cache from one operation to the next.
    together = max(1, CACHED // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    parts = zip(logits.split(together), peak.split(together), strict=True)
    return torch.cat(
        [x.to(torch.float32, copy=True).sub_(top).div_(temperature).exp_().sum(-1, keepdim=True) for x, top in parts]
    ).double()


@dataclass
class VllmWriter:
    """A causal student ready to write by vLLM on a GPU (``generation.engine: vllm``, an extra); takes and gives what `Writer` does, though with other draws."""

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
        """Write `n` candidates for each prompt (see `Writer.write`)."""
        ids = encode_prompts(self.tokenizer, prompts, n, method, self.max_prompt_length)
        asked = [{"prompt_token_ids": row} for row in ids]
        if method == "beam":
            settings = self.vllm.sampling_params.BeamSearchParams(beam_width=max(2, n), max_tokens=self.max_new_tokens)
            found = zip(ids, self.engine.beam_search(asked, settings), strict=True)
            rows = [[(beam.tokens[len(prompt) :], beam) for beam in output.sequences[:n]] for prompt, output in found]
        else:
            if method == "greedy":
                temperature, top_p = 0.0, 1.0
            common = {"n": n, "max_tokens": self.max_new_tokens, "temperature": temperature, "top_p": top_p}
            settings = [self.vllm.SamplingParams(seed=derive_seed(seed, "vllm", i), **common) for i in range(len(ids))]
            found = self.engine.generate(asked, settings, use_tqdm=False)
            rows = [[(list(choice.token_ids), choice) for choice in output.outputs] for output in found]
        decode = partial(self.tokenizer.decode, skip_special_tokens=True)
        return [[Written(decode(r).strip(), len(r), by.finish_reason == "stop") for r, by in group] for group in rows]
