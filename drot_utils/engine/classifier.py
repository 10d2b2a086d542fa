"""A pair classifier on a pretrained encoder, and its fine-tuning: what the critic and the NLI model have in common."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.special import softmax
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from drot_utils.engine.load import describe_model, fit_embeddings, load_model, round_weights
from drot_utils.engine.shards import fingerprint
from drot_utils.study.code import hash_code
from drot_utils.study.errors import DataError, ModelError, wrap_damage
from drot_utils.study.outputs import borrow_whole
from drot_utils.study.params import Encoder
from drot_utils.study.paths import replace_folder, require, to_json
from drot_utils.study.progress import Progress
from drot_utils.study.record import Study

#: Of a batch that is scored, by kind of device. What a processor's caches do not hold costs it a third of the speed (docs/speed).
BATCH_TOKENS = {"cpu": 1024, "cuda": 4096}

#: First and second texts of rows, and these with the rows' classes.
Texts = tuple[list[str], list[str] | None]
Labelled = tuple[Texts, np.ndarray]


class PairClassifier(nn.Module):
    """An encoder with a two-layer GELU head and dropout before both layers (appendix D.1).

    Parameters
    ----------
    pooling : {"first", "mean"}
        The first token's vector (BERT, DeBERTa), or the mean over tokens (sentence encoders).
    hidden : int
        Width of the head's middle layer (512 in the paper).
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
    rows: list[dict],
    device: torch.device,
    what: str = "",
) -> np.ndarray:
    """Return logits for tokenized rows (`encode`) or their states (`Halves`), in their order: float32, shape (rows, classes).

    Rows of like length share a batch of at most `BATCH_TOKENS` tokens, so that little is spent on padding. `model` is as
    `in_dtype` returns it, a `PairClassifier` or a transformers classifier. Progress is shown under the title `what`, if there is one.

    Raises
    ------
    ModelError
        When a logit is not finite.
    """
    if not rows:  # the width of nothing is that of anything
        return predict(model, tokenizer, encode(tokenizer, ([""], None), 8), device)[:0]
    out: list[np.ndarray | None] = [None] * len(rows)
    with Progress(what, len(rows), quiet=not what) as progress:
        for index in _by_tokens(rows, device):
            logits = model(**_pad(tokenizer, [rows[i] for i in index], device))
            logits = getattr(logits, "logits", logits).float().cpu().numpy()
            if not np.isfinite(logits).all():
                todo = "train it again; or, where it scores in float16, set `compute.dtype: float32`"
                raise ModelError("the model answers with NaN or infinity: its weights are broken", todo=todo)
            for i, row in zip(index, logits, strict=True):
                out[i] = row
            progress.update(len(index))
    return np.stack(out)


@dataclass
class Classifier:
    """A classifier ready to score: what the critic and the entailment model have in common."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    device: torch.device
    dtype: torch.dtype

    def classify(self, texts: Texts, what: str = "") -> np.ndarray:
        """Return the probabilities of all classes, float64 of shape (rows, classes); `what` as in `predict`."""
        rows = encode(self.tokenizer, texts, self.max_length)
        return softmax(predict(self._fast, self.tokenizer, rows, self.device, what).astype(np.float64), axis=-1)

    @cached_property
    def _fast(self) -> nn.Module:
        return in_dtype(self.model, self.dtype)

    def save(self, folder: Path, settings: dict) -> None:
        """Write weights, tokenizer and a JSON of settings to `folder`, whole or not at all."""

        def fill(place: Path) -> None:
            save_module(self.model, settings, place)
            self.tokenizer.save_pretrained(place)

        replace_folder(folder, fill)


def save_module(module: nn.Module, settings: dict, folder: Path) -> None:
    """Write a module's tensors and a JSON of its settings into `folder`."""
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "settings.json").write_text(to_json(settings, indent=2, sort_keys=True), encoding="utf-8")


def load_classifier(study: Study, folder: Path, settings: Encoder, made_by: str, **head: Any) -> Classifier:
    """Load the pair classifier in `folder`, which notebook `made_by` trained; `head` are a `PairClassifier`'s arguments."""
    weights = require(folder / "model.safetensors", made_by)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder, _ = load_model(settings.base, "encoder", study.run)
    fit_embeddings(encoder, tokenizer)
    model = PairClassifier(encoder, **head)
    try:
        model.load_state_dict(load_file(weights), assign=True)  # read when used, and the base's not at all
    except SafetensorError as error:
        raise wrap_damage(error, folder) from error
    return Classifier(model.to(study.device).eval(), tokenizer, settings.max_length, study.device, study.scoring_dtype)


def _mean(states: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    mask = batch["attention_mask"].unsqueeze(-1)
    return (states.float() * mask).sum(1) / mask.sum(1)


def _by_tokens(rows: list[dict], device: torch.device) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i]["attention_mask"])):
        if batch and (len(batch) + 1) * len(rows[i]["attention_mask"]) > BATCH_TOKENS[device.type]:
            yield batch
            batch = []
        batch.append(i)
    yield batch


def _pad(tokenizer: PreTrainedTokenizerBase, rows: list[dict], device: torch.device) -> dict[str, torch.Tensor]:
    if "input_ids" in rows[0]:
        return tokenizer.pad(rows, return_tensors="pt").to(device)
    return {key: pad_sequence([row[key] for row in rows], batch_first=True).to(device) for key in rows[0]}


class Halves:
    """An encoder cut above layers that are not trained, so that these and the embeddings run once for each row.

    Until `join` puts it together again, the encoder takes their states in a row's place. It is changed in place.

    Parameters
    ----------
    encoder : PreTrainedModel
        Of the BERT kind: ``embeddings``, and layers in ``encoder.layer``. What the layers share is not trained either.
    frozen : int
        How many layers the lower half has.

    Raises
    ------
    ModelError
        When the encoder has fewer layers, or is of a kind that cannot be cut.
    """

    def __init__(
        self, encoder: PreTrainedModel, frozen: int, tokenizer: PreTrainedTokenizerBase, device: torch.device
    ) -> None:
        self.encoder, self.frozen, self.tokenizer, self.device = encoder, frozen, tokenizer, device
        try:
            self.embeddings, self.layers = encoder.embeddings, encoder.encoder.layer
        except AttributeError as error:
            raise self._refuse("it has no `embeddings` and `encoder.layer`") from error
        if frozen > len(self.layers):
            raise self._refuse(f"it has {len(self.layers)} layers, and {frozen} are to be frozen")
        encoder.requires_grad_(False)
        self.layers[frozen:].requires_grad_(True)

    def compute_states(self, rows: list[dict], dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
        """Return what stands for tokenized rows (`encode`) from here on: the lower half's states, in `dtype`, without padding.

        16,600 rows of 22 tokens and 768 values take 1.1 GB in float32, half of that in bfloat16.
        """
        self._take(self.embeddings, self.layers[: self.frozen])
        with Progress("frozen layers", len(rows), "rows") as progress:
            states = self._run(in_dtype(self.encoder, dtype), rows, progress)
        self._take(_Given(), self.layers[self.frozen :])
        return states

    def check(self, rows: list[dict]) -> None:
        """Raise a `ModelError` unless both halves, one after the other, do to rows what the whole encoder does."""
        whole = self._run(self.encoder, rows)
        lower = self.compute_states(rows, torch.float32)
        try:
            both = self._run(self.encoder, lower)
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise self._refuse(str(error)) from error
        apart = max(
            float((a["inputs_embeds"] - b["inputs_embeds"]).abs().max()) for a, b in zip(whole, both, strict=True)
        )
        if not apart < 1e-3:
            raise self._refuse(f"its halves, one after the other, give states up to {apart:.2g} away from its own")

    def join(self) -> None:
        """Put the encoder together again."""
        self._take(self.embeddings, self.layers)

    def _take(self, embeddings: nn.Module, layers: nn.ModuleList) -> None:
        self.encoder.embeddings, self.encoder.encoder.layer = embeddings, layers

    @torch.no_grad()  # not `inference_mode`: the upper half learns from these
    def _run(self, encoder: PreTrainedModel, rows: list[dict], progress: Progress | None = None) -> list[dict]:
        out: list[dict] = [{} for _ in rows]
        for index in _by_tokens(rows, self.device):
            batch = _pad(self.tokenizer, [rows[i] for i in index], self.device)
            states, masks = encoder(**batch).last_hidden_state.cpu(), batch["attention_mask"].cpu()
            for i, row, mask in zip(index, states, masks, strict=True):
                out[i] = {"inputs_embeds": row[mask.bool()], "attention_mask": mask[mask.bool()]}
            if progress:
                progress.update(len(index))
        return out

    def _refuse(self, why: str) -> ModelError:
        return ModelError(
            f"this encoder cannot be cut above {self.frozen} frozen layers: {why}", where=type(self.encoder).__name__,
            todo="set `frozen_layers` to 0 (or to fewer layers than it has), or take an encoder such as BERT, RoBERTa or MPNet",
        )  # fmt: skip


class _Given(nn.Module):
    """Stands in the embeddings' place where states are given."""

    def forward(self, inputs_embeds: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return what is given."""
        return inputs_embeds


@dataclass
class Fit:
    """A training's curve (step, train loss since the last evaluation, dev loss) and the step whose weights are kept."""

    curve: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0


def train_classifier(
    study: Study, settings: Encoder, train: Labelled, dev: Labelled, *, tokens: tuple[str, ...] = (),
    class_weights: list[float] | None = None, what: str = "training", **head: Any,
) -> tuple[Classifier, Fit]:  # fmt: skip
    """Fine-tune with AdamW and a linear schedule, and keep the weights of the lowest dev loss (early stopping).

    What was trained before on the same texts and labels, from the same weights with the same settings, is loaded. Without rows
    in `train` or `dev` it raises a `DataError`.

    Parameters
    ----------
    tokens : tuple of str
        Special tokens of these texts.
    class_weights : list of float, optional
        Weight of each class in the training loss.
    head
        Arguments of `PairClassifier`.
    """
    for part, (_, labels) in {"to learn from": train, "to choose the checkpoint by": dev}.items():
        if not len(labels):
            raise DataError(f"there is no row {part}", where=what, todo="label more, or split otherwise")
    device, dtype = study.device, study.dtype
    key = fingerprint(
        [(texts, labels.tolist()) for texts, labels in (train, dev)], settings.model_dump(include=set(Encoder.model_fields)),
        describe_model(settings.base), tokens, class_weights, head, study.params.seed, str(dtype),
        hash_code("engine.classifier.train_classifier"),
    )  # fmt: skip
    kept = borrow_whole(study.run, f"trained/{key}")
    if (kept / "settings.json").is_file():
        done = json.loads((kept / "settings.json").read_text(encoding="utf-8"))
        return load_classifier(study, kept, settings, "", **head), Fit(done["curve"], done["best_step"])
    encoder, tokenizer = load_model(settings.base, "encoder", study.run)
    if tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": [*tokens]})
        fit_embeddings(encoder, tokenizer)
    torch.manual_seed(study.params.seed)  # the head's first weights
    model = PairClassifier(encoder, **head).to(device).train()
    generator = torch.Generator().manual_seed(study.params.seed)
    torch.manual_seed(study.params.seed)
    rows, dev_rows = (encode(tokenizer, texts, settings.max_length) for texts, _ in (train, dev))
    labels, dev_labels = (torch.tensor(numbers) for _, numbers in (train, dev))
    halves = None
    if settings.frozen_layers:
        halves = Halves(encoder.eval(), settings.frozen_layers, tokenizer, device)
        halves.check(rows[:8])
        rows, dev_rows = (halves.compute_states(part, dtype) for part in (rows, dev_rows))
        model.train()
    steps = settings.max_steps or settings.epochs * math.ceil(len(rows) / settings.batch_size)
    every = max(1, steps // settings.evaluations)
    weights = torch.tensor(class_weights, device=device) if class_weights else None
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=settings.learning_rate, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    result, losses, best, lowest, waited = Fit(), [], {}, math.inf, 0
    batches = _endless_batches(rows, settings.batch_size, generator)
    with Progress(what, steps, "steps") as progress:
        for step, index in zip(range(1, steps + 1), batches, strict=False):
            batch = _pad(tokenizer, [rows[i] for i in index], device)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = model(**batch)
            loss = nn.functional.cross_entropy(logits, labels[index].to(device), weight=weights)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            progress.update()
            if step % every and step != steps:
                continue
            scores = torch.tensor(predict(in_dtype(model, dtype), tokenizer, dev_rows, device))
            dev_loss = float(nn.functional.cross_entropy(scores, dev_labels))
            result.curve.append({"step": step, "train_loss": float(np.mean(losses)), "dev_loss": dev_loss})
            losses, waited = [], waited + 1
            if dev_loss < lowest:
                best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
                result.best_step, lowest, waited = step, dev_loss, 0
            if waited == settings.patience:
                break
            model.train()
    model.load_state_dict(best)
    if halves:
        halves.join()
    trained = Classifier(model.eval(), tokenizer, settings.max_length, device, study.scoring_dtype)
    trained.save(kept, vars(result))
    return trained, result


def _endless_batches(rows: list[dict], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    # Shuffled anew each epoch; within a stretch of 20 batches rows of like length go together.
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(order), size * 20):
            stretch = sorted(order[start : start + size * 20], key=lambda i: len(rows[i]["attention_mask"]))
            batches = [stretch[i : i + size] for i in range(0, len(stretch), size)]
            for k in torch.randperm(len(batches), generator=generator).tolist():
                yield batches[k]
