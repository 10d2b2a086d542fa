"""Fine-tuning: our loop against ``transformers.Trainer`` with its padding collator, same rows, batch, dtype and steps.

Two sets: one context a prompt (a teacher's), and several kept contexts a prompt (a round's), which we learn behind one copy of
the prompt.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

from benchmarks.harness import compare, read_options, write_result
from drot_utils.data import corpora
from drot_utils.engine.batches import make_batches
from drot_utils.engine.load import load_model
from drot_utils.engine.trainer import train
from drot_utils.method import student
from drot_utils.study.params import load_params
from drot_utils.study.paths import Run
from drot_utils.study.record import Study

RATE = 1e-4


def main() -> None:
    """Run the benchmark."""
    options = read_options(__doc__)
    params = load_params("params/demo.yaml")
    compute = params.compute.model_copy(update={"device": "cpu"})
    study = Study(params.model_copy(update={"compute": compute, "seed": 1}), Run("demo"), "benchmark")
    recorded = corpora.read_recorded(params.teacher.recorded, corpora.read_actions(params.corpus.actions))
    count = 64 if options.quick else 320
    single = recorded[recorded["choice"] == recorded["choice"].min()].head(count)
    results = {}
    for name, rows in (("one context a prompt", single), ("a round's contexts", _round(recorded, count))):
        print(f"\n{name}: {len(rows)} rows, {rows.groupby(['action_id', 'moral_variance']).ngroups} prompts")
        results[name] = _measure(name, rows.reset_index(drop=True), study, options)
    one, several = results.values()
    notes = {
        "ratio_one_context": one["ratio"],
        "ours_one_context": one["ours"],
        "peer_one_context": one["peer"],
        "of_bound_one_context": one["of_bound"],
        "loss_difference": several["loss_difference"],
        "loss_difference_one_context": one["loss_difference"],
        "loss_difference_own_batches_one_context": one["loss_difference_own_batches"],
        "compile_s_one_context": one["compile_s"],
    }
    # The JSON's ratio is the second set's; the bound and how near we are to it are the first's.
    write_result(
        "training", {**several, "name": "training", "bound": one["bound"], "of_bound": one["of_bound"], **notes}
    )


def _round(recorded: pd.DataFrame, count: int) -> pd.DataFrame:
    # As many kept contexts a prompt as a demo round has (about six): the responses of both styles, and of like actions.
    texts = recorded.sample(count, random_state=0).reset_index(drop=True)
    prompts = recorded.drop_duplicates(["action_id", "moral_variance"]).head(max(1, count // 6)).reset_index(drop=True)
    chosen = prompts.iloc[np.arange(count) % len(prompts)].reset_index(drop=True)
    return chosen.assign(context=texts["context"], rationale=texts["rationale"])


def _measure(name, rows, study, options):
    settings, run, dtype = study.params.student, study.run, study.dtype
    base, tokenizer = load_model(settings.base, "student", run)
    own, _ = load_model(settings.base, "student", run)  # compiled in place
    first = {k: v.clone() for k, v in base.state_dict().items()}
    examples = student.make_examples(rows, tokenizer, settings, False)
    losses = {}

    def ours() -> None:
        own.load_state_dict(first)
        with tempfile.TemporaryDirectory() as work:
            again = student.make_examples(rows, tokenizer, settings, False)
            done = train(study, own, again, Path(work), learning_rate=RATE, epochs=1)
        losses["ours"] = float(np.mean(done.losses))

    batches = make_batches(examples, settings.batch_size, 1, 0)

    def peer(kind: type[Trainer] = Trainer) -> None:
        base.load_state_dict(first)
        base.set_attn_implementation("sdpa")
        losses["peer"] = _train_with(kind, base, tokenizer, batches, settings, dtype)

    # The same work with the same result: Trainer given our batches in our order has our losses.
    began = time.perf_counter()
    ours()
    first_s = time.perf_counter() - began
    peer(_Ordered)
    difference = abs(losses["ours"] - losses["peer"]) / losses["peer"]
    peer()
    shuffled = abs(losses["ours"] - losses["peer"]) / losses["peer"]
    print(
        f"mean loss {losses['ours']:.4f}; Trainer's on the same batches {difference:.2%} apart, on its own {shuffled:.2%}"
    )
    assert difference < 0.01
    products = _list_products(base, examples, dtype)
    result = compare(
        f"training_{'one' if name.startswith('one') else 'round'}",
        {
            "ours": (ours, len(rows)),
            "transformers Trainer": (peer, len(rows)),
            "bound": (lambda: _products(products, len(batches)), len(rows)),
        },
        "examples/s", rounds=options.rounds, quick=options.quick, write=False,
    )  # fmt: skip
    return {
        **result,
        "compile_s": round(first_s - len(rows) / result["ours"], 1),
        "loss_difference": round(difference, 5),
        "loss_difference_own_batches": round(shuffled, 5),
    }


class _Ordered(Trainer):
    """Takes its rows in the order in which they stand."""

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_size=self.args.train_batch_size, collate_fn=self.data_collator)


def _train_with(kind, model, tokenizer, batches, settings, dtype) -> float:
    items = []
    # A batch that is not full goes last, so that the others stay as they are.
    for batch in sorted(batches, key=lambda b: sum(len(e.targets) for e in b) < settings.batch_size):
        for example in batch:
            for target in example.targets:
                ids = example.prompt + target
                labels = [-100] * len(example.prompt) + target
                items.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=settings.batch_size, num_train_epochs=1, learning_rate=RATE, seed=1,
            bf16=dtype == torch.bfloat16, use_cpu=True, logging_steps=1, report_to=[], disable_tqdm=True, save_strategy="no",
            weight_decay=0.01, lr_scheduler_type="linear", warmup_steps=0, dataloader_num_workers=0,
        )  # fmt: skip
        collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
        trainer = kind(model, arguments, train_dataset=items, data_collator=collator)
        trainer.pop_callback(PrinterCallback)
        trainer.train()
    return float(np.mean([row["loss"] for row in trainer.state.log_history if "loss" in row]))


def _list_products(model, examples, dtype: torch.dtype) -> list[tuple[torch.Tensor, int]]:
    """Return each weight with the tokens of all examples that it reads; of the vocabulary's, those to be learnt."""
    read = sum(e.length - len(e.targets) for e in examples)
    learnt = sum(len(t) for e in examples for t in e.targets)
    head = model.get_output_embeddings()
    return [
        (module.weight.detach().to(dtype), learnt if module is head else read)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]


def _products(products: list[tuple[torch.Tensor, int]], batches: int) -> None:
    # Forward and both backward products of every weight, batch by batch.
    for _ in range(batches):
        for weight, tokens in products:
            x = torch.zeros(round(tokens / batches), weight.shape[1], dtype=weight.dtype)
            y = functional.linear(x, weight)
            y @ weight
            y.T @ x


if __name__ == "__main__":
    main()
