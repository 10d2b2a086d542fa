import numpy as np
import torch
from conftest import CPU

from drot_utils import encoder, fitting
from drot_utils.tiny import build_tiny


def test_it_learns_and_keeps_the_best_step(smoke):
    base, tokenizer = build_tiny("tiny-bert")
    torch.manual_seed(0)
    model = encoder.PairClassifier(base, 2, "mean", 32, 0.1)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 160)
    texts = [("fine good kind" if y else "cruel bad wrong") + f" {i % 5}" for i, y in enumerate(labels)]
    settings = smoke.nli.model_copy(
        update={"max_steps": 40, "evaluations": 4, "patience": 9, "learning_rate": 0.01}
    )
    fit = fitting.fit(
        model, tokenizer, (texts[:120], None), labels[:120], (texts[120:], None), labels[120:], settings,
        device=CPU, dtype=torch.float32, seed=0,
    )  # fmt: skip
    losses = [row["dev_loss"] for row in fit.curve]
    assert min(losses) < 0.2 and fit.best_step == fit.curve[int(np.argmin(losses))]["step"]
    logits = encoder.predict(model, tokenizer, encoder.encode(tokenizer, (texts[120:], None), 64), CPU)
    assert (logits.argmax(1) == labels[120:]).mean() > 0.9
