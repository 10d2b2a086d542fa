"""Nucleus sampling: our slots against ``generate(do_sample=True, num_return_sequences=10)``, same student, prompts and settings."""

import statistics
import time

import torch
from torch.nn import functional

from benchmarks.harness import compare, read_options
from drot_utils.data import corpora
from drot_utils.engine import trainer
from drot_utils.engine.load import load_folder, load_model, save_model
from drot_utils.engine.slots import GROUPED
from drot_utils.engine.writer import Writer
from drot_utils.method.prompts import student_source
from drot_utils.method.student import make_examples
from drot_utils.study.params import load_params
from drot_utils.study.paths import Run
from drot_utils.study.record import Study

N, TOP_P, TEMPERATURE, MAX_NEW, SLOTS = 10, 0.9, 0.8, 56, 320


def main() -> None:
    """Run the benchmark."""
    options = read_options(__doc__)
    params = load_params("params/demo.yaml")
    compute = params.compute.model_copy(update={"device": "cpu"})
    study = Study(params.model_copy(update={"compute": compute, "seed": 1}), Run("demo"), "benchmark")
    run, device, dtype = study.run, study.device, study.dtype
    model, tokenizer = _student(study)
    actions = corpora.read_actions(params.corpus.actions)["action"]
    count = 24 if options.quick else 200
    prompts = [student_source(actions[i // 2], 1 - 2 * (i % 2), seq2seq=False) for i in range(count)]
    writer = Writer(model, tokenizer, device, dtype, 64, MAX_NEW, SLOTS)
    sampling = {"top_p": TOP_P, "temperature": TEMPERATURE, "seed": 1}
    written = writer.write(prompts, N, "nucleus", **sampling)
    lengths = [[c.tokens for c in group] for group in written]
    _check_greedy(run, prompts[:16])
    best = _best_batch(model, tokenizer, prompts, (8, 16) if options.quick else (8, 16, 32))
    peer_tokens = _generate(model, tokenizer, prompts, best)
    # Both draw from the same distribution, so their texts are as long on average.
    ours_mean, peer_mean = (statistics.mean(c for group in lengths for c in group), peer_tokens / (len(prompts) * N))
    assert abs(ours_mean - peer_mean) < 0.15 * peer_mean, (ours_mean, peer_mean)
    tokens = sum(map(sum, lengths))

    def ours() -> None:
        model.set_attn_implementation(GROUPED)  # as the writer does
        writer.write(prompts, N, "nucleus", **sampling)

    shapes = _record_shapes(model, ours)
    compare(
        "sampling",
        {
            "ours": (ours, tokens),
            "transformers generate": (lambda: _generate(model, tokenizer, prompts, best), peer_tokens),
            "bound": (lambda: _products(model, shapes, dtype), tokens),
        },
        "tokens/s",
        rounds=options.rounds,
        quick=options.quick,
        notes={
            "prompts": len(prompts),
            "mean_tokens": round(ours_mean, 1),
            "peer_batch": best * N,
            "sequences": len(prompts) * N,
            "slots": SLOTS,
        },
    )


def _student(study):
    # A student that ends its contexts, as the base model does not: fine-tuned for a few steps on the teacher's rows.
    params, run = study.params, study.run
    folder = run.work("benchmarks") / "student"
    if not (folder / "model.safetensors").exists():
        model, tokenizer = load_model(params.student.base, "student", run)
        rows = corpora.read_recorded(params.teacher.recorded, corpora.read_actions(params.corpus.actions)).head(400)
        examples = make_examples(rows, tokenizer, params.student, model.config.is_encoder_decoder)
        trainer.train(study, model, examples, folder.with_name("work"), learning_rate=1e-4, epochs=1)
        save_model(model, tokenizer, folder, study.dtype)
    return load_folder(folder, "student")


def _generate(model, tokenizer, prompts: list[str], batch: int) -> int:
    torch.manual_seed(0)
    model.set_attn_implementation("sdpa")  # its default
    tokenizer.padding_side = "left"
    tokens = 0
    for start in range(0, len(prompts), batch):
        inputs = tokenizer(prompts[start : start + batch], return_tensors="pt", padding=True)
        output = model.generate(
            **inputs, do_sample=True, top_p=TOP_P, top_k=0, temperature=TEMPERATURE, num_return_sequences=N,
            max_new_tokens=MAX_NEW, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        new = output[:, inputs["input_ids"].shape[1] :]
        ended = (new == tokenizer.eos_token_id).long()
        tokens += int(torch.where(ended.any(1), ended.argmax(1) + 1, new.shape[1]).sum())
    return tokens


def _check_greedy(run, prompts: list[str]) -> None:
    # In float32 both sides' most likely texts are the same, to the token.
    model, tokenizer = load_folder(run.work("benchmarks") / "student", "student")
    writer = Writer(model, tokenizer, torch.device("cpu"), torch.float32, 64, MAX_NEW, SLOTS)
    ours = [group[0].text for group in writer.write(prompts, 1, "greedy")]
    model.set_attn_implementation("sdpa")
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW, pad_token_id=tokenizer.pad_token_id)
    theirs = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert ours == [text.strip() for text in theirs]


def _best_batch(model, tokenizer, prompts: list[str], sizes: tuple[int, ...]) -> int:
    rates = {}
    for batch in sizes:
        began = time.perf_counter()
        rates[batch] = _generate(model, tokenizer, prompts[: max(sizes)], batch) / (time.perf_counter() - began)
    print("generate, prompts a batch:", {size: f"{rate:.0f} tokens/s" for size, rate in rates.items()})
    return max(rates, key=rates.get)


def _record_shapes(model, work) -> list[tuple[int, int, int, int]]:
    """Do `work` and return rows, tokens a row, keys a row and rows for the vocabulary of every pass through the model."""
    passes, heads = [], []

    def note_pass(_module, _args, given) -> None:
        passes.append((*given["input_ids"].shape, given["attention_mask"].shape[-1]))

    def note_head(_module, args) -> None:
        heads.append(args[0].shape[0])

    hooks = [
        model.base_model.register_forward_pre_hook(note_pass, with_kwargs=True),
        model.get_output_embeddings().register_forward_pre_hook(note_head),
    ]
    work()
    for hook in hooks:
        hook.remove()
    return [(*shape, head) for shape, head in zip(passes, heads, strict=True)]


def _products(model, shapes: list[tuple[int, int, int, int]], dtype: torch.dtype) -> None:
    # The matrix products of the same passes with nothing around them: weights, and attention's two for each layer.
    config, head = model.config, model.get_output_embeddings()
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    keys, size = config.num_key_value_heads, config.head_dim
    group = config.num_attention_heads // keys
    noise = torch.randn(max(rows * tokens for rows, tokens, _, _ in shapes), max(w.shape[1] for w in weights)).to(dtype)
    with torch.inference_mode():
        for rows, tokens, seen, heads in shapes:
            inputs = {w.shape[1]: noise[: rows * tokens, : w.shape[1]].contiguous() for w in weights}
            for weight in weights:
                functional.linear(inputs[weight.shape[1]], weight)
            functional.linear(inputs[head.weight.shape[1]][:heads], head.weight)
            query = torch.zeros(rows * keys, group * tokens, size, dtype=dtype)
            key = torch.zeros(rows * keys, seen, size, dtype=dtype)
            for _ in range(config.num_hidden_layers):
                torch.bmm(torch.bmm(query, key.transpose(1, 2)), key)


if __name__ == "__main__":
    main()
