"""A pair classifier on a pretrained encoder, and its fine-tuning: what the critic and the NLI model have in common."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from drot_utils.engine.load import round_weights
from drot_utils.study.errors import ModelError
from drot_utils.study.params import Encoder
from drot_utils.study.progress import Progress

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

    def __init__(self, encoder: PreTrainedModel, classes: int, pooling: str, hidden: int, dropout: float) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        width = encoder.config.hidden_size
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, classes)
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
            raise ModelError("the model answers with NaN or infinity: its weights are broken", todo="train it again")
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


@dataclass
class Fit:
    """What a training left behind besides the weights."""

    curve: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    steps: int = 0


def fit(
    model: PairClassifier,
    tokenizer: PreTrainedTokenizerBase,
    train: Texts,
    labels: np.ndarray,
    dev: Texts,
    dev_labels: np.ndarray,
    settings: Encoder,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    class_weights: list[float] | None = None,
    what: str = "training",
) -> Fit:
    """Fine-tune with AdamW and a linear schedule, and keep the weights of the lowest dev loss (early stopping).

    Parameters
    ----------
    model : PairClassifier
        Changed in place; holds the best weights afterwards.
    train, dev : (list of str, list of str or None)
        First and second texts of each row.
    labels, dev_labels : ndarray of int, shape (rows,)
    settings : Encoder
        Learning rate, batch size, epochs or `max_steps`, number of `evaluations`, `patience` in evaluations.
    class_weights : list of float, optional
        Weight of each class in the training loss.

    Returns
    -------
    Fit
        The curve (step, train loss since the last evaluation, dev loss) and the step whose weights are kept.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    rows, dev_rows = (encode(tokenizer, train, settings.max_length), encode(tokenizer, dev, settings.max_length))
    steps = settings.max_steps or settings.epochs * math.ceil(len(rows) / settings.batch_size)
    every = max(1, steps // settings.evaluations)
    weights = torch.tensor(class_weights, device=device) if class_weights else None
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    result, losses, best, waited = Fit(), [], None, 0
    batches = _endless_batches(rows, settings.batch_size, generator)
    with Progress(what, steps, "steps") as progress:
        for step in range(1, steps + 1):
            index = next(batches)
            batch = tokenizer.pad([rows[i] for i in index], return_tensors="pt").to(device)
            target = torch.tensor(labels[index], device=device)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = model(**batch)
            loss = nn.functional.cross_entropy(logits, target, weight=weights)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            progress.update()
            if step % every and step != steps:
                continue
            scores = predict(in_dtype(model, dtype), tokenizer, dev_rows, device)
            dev_loss = float(nn.functional.cross_entropy(torch.tensor(scores), torch.tensor(dev_labels)))
            result.curve.append({"step": step, "train_loss": float(np.mean(losses)), "dev_loss": dev_loss})
            losses, result.steps = [], step
            if best is None or dev_loss < best[0]:
                best, waited = (dev_loss, {k: v.detach().clone() for k, v in model.state_dict().items()}), 0
                result.best_step = step
            else:
                waited += 1
                if waited >= settings.patience:
                    break
            model.train()
    model.load_state_dict(best[1])
    model.eval()
    return result


def _endless_batches(rows: list[dict], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    # Shuffled anew each epoch; within a stretch of 20 batches rows of like length go together.
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(order), size * 20):
            stretch = sorted(order[start : start + size * 20], key=lambda i: len(rows[i]["input_ids"]))
            batches = [stretch[i : i + size] for i in range(0, len(stretch), size)]
            for k in torch.randperm(len(batches), generator=generator).tolist():
                yield batches[k]
