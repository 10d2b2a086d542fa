"""A pair classifier on a pretrained encoder: what the critic and the entailment model have in common."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from drot_utils.errors import ModelError
from drot_utils.precision import round_weights
from drot_utils.progress import Progress

Texts = tuple[list[str], list[str] | None]


class PairClassifier(nn.Module):
    """An encoder with a two-layer GELU head (appendix D.1).

    Parameters
    ----------
    encoder : PreTrainedModel
    classes : int
        Number of logits.
    pooling : {"first", "mean"}
        The first token's vector (BERT, DeBERTa), or the mean over tokens (sentence encoders).
    hidden : int
        Width of the head's middle layer (512 in the paper).
    dropout : float
        Before both layers of the head.
    """

    def __init__(
        self, encoder: PreTrainedModel, classes: int, pooling: str, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        width = encoder.config.hidden_size
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (rows, classes), float32."""
        states = self.encoder(**batch).last_hidden_state
        pooled = _mean(states, batch) if self.pooling == "mean" else states[:, 0]
        return self.head(pooled.to(self.head[1].weight.dtype)).float()


class SentenceEncoder(nn.Module):
    """The mean over an encoder's tokens, of unit length."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        """Return vectors of shape (rows, width), float32."""
        return nn.functional.normalize(_mean(self.encoder(**batch).last_hidden_state, batch), dim=-1)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Texts, max_length: int) -> list[dict[str, list[int]]]:
    """Tokenize texts or text pairs, without padding, longest part cut first at `max_length` tokens."""
    first, second = texts
    if not first:
        return []
    encoded = tokenizer(first, second, truncation=True, max_length=max_length)
    return [{key: encoded[key][i] for key in encoded} for i in range(len(first))]


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of `model` for scoring with its weights in `dtype`, or itself where that is float32.

    Half as fast again as autocast, which casts every weight and activation at every batch.
    """
    return (model if dtype == torch.float32 else round_weights(copy.deepcopy(model), dtype)).eval()


@torch.inference_mode()
def predict(
    model: Callable[..., torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, list[int]]],
    device: torch.device,
    *,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return logits for tokenized rows, in their order.

    Rows of like length share a batch of at most `batch_tokens` tokens, so that little is spent on padding.

    Parameters
    ----------
    model : PairClassifier or a transformers classifier
        As `in_dtype` returns it.
    rows : list of dict
        As `encode` returns them.

    Returns
    -------
    ndarray of float32, shape (rows, classes)

    Raises
    ------
    ModelError
        When a logit is not finite.
    """
    if not rows:  # the width of nothing is that of anything
        return predict(model, tokenizer, encode(tokenizer, ([""], None), 8), device)[:0]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    out: list[np.ndarray | None] = [None] * len(rows)
    for index in _by_tokens(order, rows, batch_tokens):
        logits = model(**tokenizer.pad([rows[i] for i in index], return_tensors="pt").to(device))
        logits = getattr(logits, "logits", logits).float().cpu().numpy()
        if not np.isfinite(logits).all():
            raise ModelError(
                "the model answers with NaN or infinity: its weights are broken", todo="train it again"
            )
        for i, row in zip(index, logits, strict=True):
            out[i] = row
        if progress:
            progress.update(len(index))
    return np.stack(out)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _mean(states: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    mask = batch["attention_mask"].unsqueeze(-1)
    return (states.float() * mask).sum(1) / mask.sum(1)


def _by_tokens(order: list[int], rows: list[dict], batch_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(rows[i]["input_ids"]) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    yield batch
