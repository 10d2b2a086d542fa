"""Fine-tuning a pair classifier: what the critic's training and the entailment model's have in common."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from drot_utils import encoder
from drot_utils.progress import Progress
from drot_utils.settings import Encoder


@dataclass
class Fit:
    """What a training left behind besides the weights."""

    curve: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    steps: int = 0


def fit(
    model: encoder.PairClassifier,
    tokenizer: PreTrainedTokenizerBase,
    train: encoder.Texts,
    labels: np.ndarray,
    dev: encoder.Texts,
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
    rows, dev_rows = (
        encoder.encode(tokenizer, train, settings.max_length),
        encoder.encode(tokenizer, dev, settings.max_length),
    )
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
            scores = encoder.predict(encoder.in_dtype(model, dtype), tokenizer, dev_rows, device)
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
