"""Continuous batching for causal students: a sequence that ends makes room for one that waits.

Each row of the batch is a *slot* with room for one sequence. A prompt is read once (prefill) and its keys and values are
copied into the slots of its candidates. A slot whose sequence has ended is taken by the next waiting prompt's; when none
waits, the batch is compacted. Keys and values stay where they are: a step writes one token a slot, in place.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import sdpa_mask

REFILL_AT = 0.25  # share of free slots at which waiting prompts are let in
COMPACT_BELOW = 0.75  # share of open slots below which the batch is compacted, when nothing waits

#: The name of `attend_grouped` among transformers' attention functions.
GROUPED = "grouped"

#: Chooses the next token of each row from logits of shape (rows, vocabulary), given which sequence and step a row is.
Choose = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def attend_grouped(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend with several queries to one key head where it is, which transformers copies for each of them.

    On a CPU a decoding step's attention takes a third of the time so.
    """
    causal = attention_mask is None and query.shape[2] > 1
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, attention_mask, dropout, causal, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, attend_grouped)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


def use_grouped(model: PreTrainedModel, device: torch.device) -> None:
    """Let a model attend by `attend_grouped` on a CPU; one that has its own attention only keeps that."""
    if device.type == "cpu" and model._supports_sdpa:
        model.set_attn_implementation(GROUPED)


def fit_mask(model: PreTrainedModel, mask: torch.Tensor) -> torch.Tensor:
    """Return a mask (true: attend) as a model's attention wants it: "eager" adds it to the scores."""
    if model.config._attn_implementation != "eager":
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.finfo(torch.bfloat16).min)


class _SlotCache:
    """Keys and values of all slots, layer by layer, each slot as long as its own sequence."""

    def __init__(self, slots: int, width: int) -> None:
        self.slots, self.width = slots, width
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.rows = self.at = torch.empty(0, dtype=torch.int64)
        self.top = 0

    def admit(self, prefill: DynamicCache, of: torch.Tensor, rows: torch.Tensor) -> None:
        """Copy the keys and values of prefilled prompts `of` into the slots `rows`."""
        for k, layer in enumerate(prefill.layers):
            length = layer.keys.shape[2]
            if k == len(self.layers):
                _, heads, _, size = layer.keys.shape
                shape = (self.slots, self.width, heads, size)
                self.layers.append((layer.keys.new_zeros(shape), layer.values.new_zeros(shape)))
            for kept, new in zip(self.layers[k], (layer.keys, layer.values), strict=True):
                kept[rows, :length] = new.transpose(1, 2).index_select(0, of)

    def step(self, at: torch.Tensor) -> None:
        """Say where in each slot the next token goes."""
        self.rows, self.at, self.top = torch.arange(len(at), device=at.device), at, int(at.max()) + 1

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, **_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token a slot and return all there is (what a transformers cache does)."""
        kept = self.layers[layer]
        for tensor, new in zip(kept, (key, value), strict=True):
            tensor[self.rows, self.at] = new.squeeze(2)
        return kept[0][:, : self.top].transpose(1, 2), kept[1][:, : self.top].transpose(1, 2)

    def compact(self, rows: torch.Tensor) -> None:
        """Keep the slots `rows` only."""
        for k, (keys, values) in enumerate(self.layers):  # one after the other: never all of them twice
            self.layers[k] = (keys[rows], values[rows])


@torch.inference_mode()
def write_sequences(
    model: PreTrainedModel,
    prompts: list[list[int]],
    n: int,
    choose: Choose,
    *,
    ends: torch.Tensor,
    pad: int,
    max_new_tokens: int,
    slots: int,
) -> list[list[int]]:
    """Continue each prompt `n` times, and return the token ids of all sequences, the end token included.

    Parameters
    ----------
    prompts : list of list of int
        Token ids; best in order of length, as neighbours are read together.
    choose : callable
        Gets logits, the numbers of the sequences (prompt * n + candidate) and their steps.
    ends : Tensor of int64
        Tokens that end a sequence.
    slots : int
        Sequences written at once; at least `n`.
    """
    device = ends.device
    slots = min(max(slots, n), len(prompts) * n)
    width = max(map(len, prompts)) + max_new_tokens
    cache = _SlotCache(slots, width)
    written = torch.full((len(prompts) * n, max_new_tokens), -1, dtype=torch.int64, device=device)
    sequence = torch.zeros(slots, dtype=torch.int64, device=device)  # which sequence a slot holds
    step, begin, at, token = (torch.zeros_like(sequence) for _ in range(4))
    open_ = torch.zeros(slots, dtype=torch.bool, device=device)
    waiting = 0
    positions = torch.arange(width, device=device)
    while True:
        left = int(open_.sum())
        free = len(open_) - left
        if waiting < len(prompts) and (free >= max(n, REFILL_AT * slots) or not left):
            take = range(waiting, min(len(prompts), waiting + max(1, free // n)))
            waiting = take.stop
            rows = (~open_).nonzero().squeeze(1)[: len(take) * n]
            of = torch.arange(len(take), device=device).repeat_interleave(n)
            prefill, logits, pads, length = _prefill(model, [prompts[i] for i in take], pad, device)
            cache.admit(prefill, of, rows)
            sequence[rows] = take.start * n + torch.arange(len(rows), device=device)
            step[rows], begin[rows], at[rows], open_[rows] = 0, pads[of], length, True
            new, logits = rows, logits[of]
        else:
            if waiting == len(prompts):
                if not left:
                    break
                if left < COMPACT_BELOW * len(open_):
                    rows = open_.nonzero().squeeze(1)
                    cache.compact(rows)
                    sequence, step, begin, at, token, open_ = (
                        tensor[rows] for tensor in (sequence, step, begin, at, token, open_)
                    )
            cache.step(at)
            seen = positions[: cache.top]
            mask = (seen <= at.unsqueeze(1)) & (seen >= begin.unsqueeze(1))
            states = model.base_model(
                input_ids=token.unsqueeze(1), attention_mask=fit_mask(model, mask[:, None, None]),
                position_ids=(at - begin).unsqueeze(1), cache=cache, use_cache=True,
            ).last_hidden_state[:, -1]  # fmt: skip
            at, step = at + open_, step + open_
            new = open_.nonzero().squeeze(1)
            # The vocabulary is by far the widest matrix: only open slots go through it.
            logits = model.get_output_embeddings()(states[new])
        chosen = choose(logits, sequence[new], step[new])
        written[sequence[new], step[new]] = chosen
        token[new] = chosen
        open_[new] = ~torch.isin(chosen, ends) & (step[new] + 1 < max_new_tokens)
    return [row[row >= 0].tolist() for row in written.cpu()]


def _prefill(
    model: PreTrainedModel, prompts: list[list[int]], pad: int, device: torch.device
) -> tuple[DynamicCache, torch.Tensor, torch.Tensor, int]:
    length = max(map(len, prompts))
    pads = torch.tensor([length - len(prompt) for prompt in prompts], device=device)
    ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts], device=device)
    positions = torch.arange(length, device=device) - pads.unsqueeze(1)
    cache = DynamicCache()
    logits = model(
        input_ids=ids, attention_mask=(positions >= 0).long(), position_ids=positions.clamp(min=0), cache=cache,
        use_cache=True, logits_to_keep=1,
    ).logits[:, -1]  # fmt: skip
    return cache, logits, pads, length
