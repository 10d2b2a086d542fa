"""Critic scoring: ours against ``pipeline("text-classification", batch_size=32)``, same weights, dtype and rows."""

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, pipeline

from benchmarks.harness import compare, read_options
from drot_utils.data import corpora
from drot_utils.data.gold import read_gold
from drot_utils.engine import classifier
from drot_utils.engine.load import load_model, package_folder
from drot_utils.study.params import load_params
from drot_utils.study.paths import Run
from drot_utils.study.record import Study

MAX_LENGTH = 64


def main() -> None:
    """Run the benchmark."""
    options = read_options(__doc__)
    params, run = load_params("params/demo.yaml"), Run("demo")
    study = Study(params, run, "benchmark")
    device, dtype = study.device, study.dtype
    model, tokenizer = _classifier(params, run)
    pairs = _pairs(params, 1000 if options.quick else 5000)
    rows = classifier.encode(tokenizer, pairs, MAX_LENGTH)

    def ours(dtype: torch.dtype = dtype) -> np.ndarray:
        return classifier.Classifier(model, tokenizer, MAX_LENGTH, device, dtype).classify(pairs)

    def peer(dtype: torch.dtype = dtype) -> np.ndarray:
        classify = pipeline("text-classification", model.to(dtype), tokenizer=tokenizer, device=device, batch_size=32)
        texts = [{"text": a, "text_pair": b} for a, b in zip(*pairs, strict=True)]
        found = classify(texts, top_k=None, truncation=True, max_length=MAX_LENGTH)
        model.float()
        return np.array([[score["score"] for score in sorted(row, key=lambda s: s["label"])] for row in found])

    exact = np.abs(ours(torch.float32) - peer(torch.float32)).max()
    rounded = np.abs(ours() - peer()).max()
    assert exact < 1e-5 and rounded < 0.05, (exact, rounded)
    weights, tokens = _list_weights(model, dtype), sum(len(row["input_ids"]) for row in rows)
    compare(
        "critic_scoring",
        {
            "ours": (ours, len(rows)),
            "transformers pipeline": (peer, len(rows)),
            "bound": (lambda: _products(weights, tokens), len(rows)),
        },
        "rows/s",
        rounds=options.rounds,
        quick=options.quick,
        notes={"largest_difference_float32": float(exact), f"largest_difference_{dtype}": float(rounded)},
    )


def _classifier(params, run):
    # The critic's encoder with a library head, as that is all that a pipeline takes.
    place = package_folder(params.critic.base.name, run)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=3).eval()
    return model, load_model(params.critic.base, "encoder", run)[1]


def _pairs(params, count: int) -> tuple[list[str], list[str]]:
    gold = read_gold(params.critic.gold, corpora.read_actions(params.corpus.actions))
    rows = gold.sample(count, replace=True, random_state=0)
    # Contexts of unequal length: every third with its rationale.
    longer = np.arange(count) % 3 == 0
    return rows["action"].tolist(), (rows["context"] + np.where(longer, ", because " + rows["rationale"], "")).tolist()


def _list_weights(model, dtype: torch.dtype) -> list[torch.Tensor]:
    layers = [m for m in model.base_model.encoder.modules() if isinstance(m, torch.nn.Linear)]
    return [layer.weight.detach().to(dtype) for layer in layers]


def _products(weights: list[torch.Tensor], tokens: int) -> None:
    with torch.inference_mode():
        for start in range(0, tokens, 4096):
            count = min(4096, tokens - start)
            for weight in weights:
                functional.linear(torch.zeros(count, weight.shape[1], dtype=weight.dtype), weight)


if __name__ == "__main__":
    main()
