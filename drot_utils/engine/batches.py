"""What a student learns from, in batches, its loss, and the memory that this takes (appendix D.2).

One code path serves causal and seq2seq models.

The contexts that share a prompt (same action and moral variance) are learnt behind one copy of it. A causal model sees
``prompt, target 1, target 2 ...`` in one sequence in which a target attends to the prompt and itself only and counts its
positions from the end of the prompt; a seq2seq model encodes the prompt once. The losses are those of separate rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from drot_utils.engine import load
from drot_utils.engine.slots import fit_mask, use_grouped, write_sequences
from drot_utils.study.errors import ModelError
from drot_utils.study.params import ModelRef, Parallel, Student
from drot_utils.study.paths import resolve

# Behind one copy of a prompt: with more, what attention takes grows faster than what the prompt's copies save.
MOST_TARGETS = 4


@dataclass(frozen=True)
class Example:
    """A prompt with its targets, as token ids; a target ends with the end token unless it was cut."""

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
    mask = fit_mask(model, (same | (part == 0).unsqueeze(1)).tril().unsqueeze(1).to(device))
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


def use_eager(model: PreTrainedModel, device: torch.device) -> None:
    """Let a model be trained with eager attention on a CPU: a fifth faster, as the fused one's backward pass is slow there."""
    if device.type == "cpu":
        model.set_attn_implementation("eager")


def check_base(model: PreTrainedModel, device: torch.device) -> None:
    """Make sure by a few tokens that a model, just loaded, can be trained and written with on `device`.

    The loss of targets that share a prompt must be that of separate rows, and a causal model's logits while it writes in
    slots those of a plain forward pass. It takes four short forward passes.

    Raises
    ------
    ModelError
        When they differ, or the model's code fails: layers that carry a state along, or a cache of another kind.
    """
    own, cause = model.config._attn_implementation, None
    try:
        why = _find_difference(model, device)
    except Exception as error:  # of any kind: the model's own code, given what it was not written for
        why, cause = _name_error(error), error
    model.set_attn_implementation(own)
    if why:
        raise ModelError(
            f"a model of the type {model.config.model_type} cannot be a student here ({why})", where=type(model).__name__,
            todo="choose a student such as of the Llama, SmolLM, Qwen, OLMo or T5 families",
        ) from cause  # fmt: skip


def _name_error(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


@torch.no_grad()
def _find_difference(model: PreTrainedModel, device: torch.device) -> str | None:
    own, place = model.config._attn_implementation, model.device
    prompt, targets = [5, 6], [[7, 8], [9, 10]]
    use_eager(model, device)
    loss, _ = batch_loss(model, [Example(prompt, targets)], place)
    labels = torch.tensor(targets, device=place)
    steps: list[torch.Tensor] = []

    def choose(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        steps.append(logits)
        return logits.argmax(-1)

    if not model.config.is_encoder_decoder:
        use_grouped(model, device)
        starts, sizes = [[5], [6, 7, 8]], {"pad": 0, "max_new_tokens": 2, "slots": 2}
        written = write_sequences(model, starts, 1, choose, ends=torch.tensor([-1], device=place), **sizes)
    model.set_attn_implementation(own)
    if not steps:
        expected = model(input_ids=torch.tensor([prompt] * 2, device=place), labels=labels).loss
    else:  # all rows at once: a pass takes as long as reading the weights
        rows = [prompt + target for target in targets] + [a + b for a, b in zip(starts, written, strict=True)]
        padded = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        logits = model(padded.to(place)).logits
        expected = token_loss(logits[:2, 1:3].flatten(0, 1), labels.flatten())
        plain = torch.stack([logits[2, :2], logits[3, 2:4]], 1)
    if not torch.allclose(loss, expected, rtol=1e-4):
        return "the loss of targets behind one prompt is not that of separate rows"
    if steps and (torch.stack(steps) - plain).abs().max() > 0.01 * plain.std():
        return "while it writes in slots, its logits are not those of a plain forward pass"
    return None


#: How students are built, from their configurations on the hub, so that `plan` needs none of their files.
SHAPES = {
    "smollm2-135m-instruct": ("llama", {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49152, "tie_word_embeddings": True,
    }),
    "HuggingFaceTB/SmolLM3-3B": ("smollm3", {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 128256, "tie_word_embeddings": True,
    }),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    }),
    "google/flan-t5-xl": ("t5", {
        "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "feed_forward_proj": "gated-gelu",
        "vocab_size": 32128, "tie_word_embeddings": False, "decoder_start_token_id": 0,
    }),
}  # fmt: skip
GIB = 2**30
RESERVE = 1.0  # GiB for CUDA and its libraries: assumed


def _sketch(ref: ModelRef) -> PreTrainedModel:
    """Build a student without values, on torch's meta device: its layers and their sizes, which take no memory.

    Nothing is fetched: a configuration that is neither known nor in its folder or the hub's cache is a `ModelError`.
    """
    family, sizes = SHAPES.get(ref.name, (None, {}))
    try:
        if family:
            config = AutoConfig.for_model(family, **sizes)
        elif ref.source == "random":
            config = load.build_tiny(ref.name)[0].config
        else:
            place = resolve(ref.name) if ref.source == "folder" else ref.name
            config = AutoConfig.from_pretrained(place, revision=ref.revision, local_files_only=True)
            load.check_plain(config, place)
    except (OSError, ValueError) as error:
        fetch = f"fetch it (hf download {ref.name} config.json --revision {ref.revision})"
        todo = (
            f"{fetch if ref.revision else 'check the path'}, or add the model to SHAPES in drot_utils/engine/batches.py"
        )
        raise ModelError("its configuration is not on this machine", where=ref.name, todo=todo) from error
    kind = "seq2seq" if config.is_encoder_decoder else "causal"
    with torch.device("meta"):
        model = load.KINDS[kind].from_config(config, dtype=torch.float32)
    head = model.get_output_embeddings()
    if sizes.get("tie_word_embeddings") is False and head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(torch.empty_like(head.weight))  # a T5 is tied until its weights say otherwise
    return model


@dataclass(frozen=True)
class Memory:
    """About how many GiB a training takes of a device; `activations` are those of the longest batch that may come."""

    weights: float
    gradients: float
    moments: float
    activations: float

    @property
    def total(self) -> float:
        """All of it, and what CUDA takes."""
        return RESERVE + self.weights + self.gradients + self.moments + self.activations


def count_memory(settings: Student, parallel: Parallel, dtype: torch.dtype) -> tuple[Memory, Memory]:
    """Count what training by `settings` takes of each device, without and with gradient checkpointing.

    The weights are kept as `trainer.train` does: in float32, with copies in `dtype`; what an adapter leaves alone in `dtype`
    only. The activations are what torch keeps of a forward pass for the backward pass, without compilation, and for the
    latter itself twice the largest of them; with gradient checkpointing, what one block keeps besides. A model whose code
    does not run without values, or not as a student's, is a `ModelError`.
    """
    model = _sketch(settings.base)
    if settings.adapter:
        with torch.device("meta"):
            load.add_adapter(model, settings.adapter, 0)
    load.round_weights(model, dtype).train()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    if parallel.fsdp and parallel.processes > 1:  # shares in float32
        parts = [n * trained / parallel.processes for n in (4, 4, 8)]
    else:
        size = dtype.itemsize
        copies = size if dtype != torch.float32 else 0
        buckets = size if parallel.processes > 1 else 0  # in which DDP sums gradients
        parts = [size * frozen + (4 + copies) * trained, (4 + copies + buckets) * trained, 8 * trained]
    AttentionInterface.register("counted", _attend)
    AttentionMaskInterface.register("counted", lambda *_, **__: None)
    model.set_attn_implementation("counted")
    kept = _sum_kept(model, settings)
    blocks = sum(type(module).__name__ in (model._no_split_modules or ()) for module in model.modules())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    longest = blocks / 2 if model.config.is_encoder_decoder else blocks  # an encoder's keep little
    again = min(kept, _sum_kept(model, settings) + kept / longest)
    return tuple(Memory(*(n / GIB for n in (*parts, activations))) for activations in (kept, again))


def _sum_kept(model: PreTrainedModel, settings: Student) -> float:
    full, rest = divmod(settings.batch_size, MOST_TARGETS)
    prompt, target = [0] * settings.max_prompt_length, [0] * settings.max_target_length
    batch = [Example(prompt, [target] * n) for n in [MOST_TARGETS] * full + [rest] * (rest > 0)]
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other gets its number
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            batch_loss(model, batch, torch.device("meta"))
    except Exception as error:  # of any kind: the model's own code, on tensors without values
        raise ModelError(
            f"what training a model of the type {model.config.model_type} takes cannot be counted ({_name_error(error)})",
            where=settings.base.name, todo="plan without --gpu-gib; whether it can be a student, its training says first",
        ) from error  # fmt: skip
    sizes = [storage.nbytes() for storage in kept.values()]
    return sum(sizes) + 2 * max(sizes)


class _Kernel(torch.autograd.Function):
    """Attention as kernels of a GPU do it, for its memory only: they keep what they read and wrote, not the weights."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """Keep all that is read, and the output."""
        out = torch.empty_like(query)
        ctx.save_for_backward(query, *others, out)
        return out


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, *,
    position_bias: torch.Tensor | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    # A kernel that is given a mask gets keys and values copied for each query head, and the mask as numbers, with T5's bias.
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    shape = [len(query), 1 if position_bias is None else query.shape[1], query.shape[2], key.shape[2]]
    return _Kernel.apply(query, key, value, query.new_empty(shape)).transpose(1, 2), None
