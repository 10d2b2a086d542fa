"""What a student learns from, in batches, and its loss: one code path for causal and seq2seq models (appendix D.2).

The contexts that share a prompt (same action and moral variance) are learnt behind one copy of it. A causal model sees
``prompt, target 1, target 2 ...`` in one sequence in which a target attends to the prompt and itself only and counts its
positions from the end of the prompt; a seq2seq model encodes the prompt once. The losses are those of separate rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

# Behind one copy of a prompt: with more, what attention takes grows faster than what the prompt's copies save.
MOST_TARGETS = 4


@dataclass(frozen=True)
class Example:
    """A prompt with its targets, as token ids; every target ends with the end token."""

    prompt: list[int]
    targets: list[list[int]]

    @property
    def length(self) -> int:
        """Tokens the model has to read."""
        return len(self.prompt) + sum(map(len, self.targets))


def make_batches(examples: list[Example], size: int, seed: int, epoch: int) -> list[list[Example]]:
    """Shuffle an epoch's examples into batches of `size` targets (the last may have fewer), like lengths together.

    An example that does not fit is split, and its prompt learnt from twice: so each epoch has as many batches as separate
    rows would have.
    """
    generator = torch.Generator().manual_seed(seed * 1000 + epoch)
    order = [examples[i] for i in torch.randperm(len(examples), generator=generator).tolist()]
    batches: list[list[Example]] = [[]]
    room = size
    stretch = size * 8
    for start in range(0, len(order), stretch):
        # Up and down in turn: where two stretches meet, long examples share a batch with long ones.
        down = start // stretch % 2 == 1
        for example in sorted(order[start : start + stretch], key=lambda e: e.length, reverse=down):
            targets = example.targets
            while targets:
                if not room:
                    batches.append([])
                    room = size
                taken, targets = targets[:room], targets[room:]
                batches[-1].append(Example(example.prompt, taken))
                room -= len(taken)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over target tokens, from logits in any dtype (tokens, vocabulary)."""
    return nn.functional.cross_entropy(logits.float(), labels)


def batch_loss(
    model: PreTrainedModel,
    batch: list[Example],
    device: torch.device,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = token_loss,
) -> tuple[torch.Tensor, int]:
    """Return the mean loss over all target tokens of a batch, and how many they are."""
    predict = _seq2seq_logits if model.config.is_encoder_decoder else _causal_logits
    logits, labels = predict(model, batch, device)
    return loss(logits, labels), len(labels)


def _causal_logits(
    model: PreTrainedModel, batch: list[Example], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(e.length - len(e.targets) for e in batch)  # the end token is predicted but never read
    ids, positions, part = (torch.zeros(len(batch), width, dtype=torch.int64) for _ in range(3))
    predictors, labels = [], []
    for row, example in enumerate(batch):
        start = at = len(example.prompt)
        ids[row, :start] = torch.tensor(example.prompt)
        positions[row, :start] = torch.arange(start)
        for number, target in enumerate(example.targets, 1):
            end = at + len(target) - 1
            ids[row, at:end] = torch.tensor(target[:-1])
            positions[row, at:end] = torch.arange(start, start + end - at)
            part[row, at:end] = number
            predictors += [row * width + i for i in (start - 1, *range(at, end))]
            labels += target
            at = end
        part[row, at:] = -1  # padding: whatever it attends to, nothing attends to it
    same = part.unsqueeze(2) == part.unsqueeze(1)
    mask = (same | (part == 0).unsqueeze(1)).tril().unsqueeze(1).to(device)
    if model.config._attn_implementation == "eager":  # which adds the mask to the scores
        mask = torch.zeros(mask.shape, device=device).masked_fill_(~mask, torch.finfo(torch.bfloat16).min)
    states = model.base_model(
        input_ids=ids.to(device), attention_mask=mask, position_ids=positions.to(device), use_cache=False
    ).last_hidden_state
    # The vocabulary is by far the widest matrix: only the tokens to be learnt go through it.
    chosen = states.flatten(0, 1)[torch.tensor(predictors, device=device)]
    return model.get_output_embeddings()(chosen), torch.tensor(labels, device=device)


def _seq2seq_logits(
    model: PreTrainedModel, batch: list[Example], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    pad = model.config.pad_token_id
    ids = _padded([e.prompt for e in batch], pad).to(device)
    mask = _padded([[1] * len(e.prompt) for e in batch], 0).to(device)
    counts = torch.tensor([len(e.targets) for e in batch], device=device)
    states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    labels = _padded([t for e in batch for t in e.targets], -100)
    learnt = (labels != -100).flatten().nonzero().squeeze(1).to(device)  # sizes are known here: a GPU is not waited for
    rows, labels = len(labels), labels.to(device)
    output = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states.repeat_interleave(counts, 0, output_size=rows)),
        attention_mask=mask.repeat_interleave(counts, 0, output_size=rows),
        decoder_input_ids=model._shift_right(labels),
        use_cache=False,
    )
    return output.logits.flatten(0, 1)[learnt], labels.flatten()[learnt]


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=value)
