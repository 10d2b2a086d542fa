"""Fine-tuning a student, by one process or several, killed at any moment and resumed (appendix D.2)."""

import functools
import itertools
import math
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from drot_utils.engine.batches import Example, batch_loss, make_batches, token_loss, use_eager
from drot_utils.engine.load import add_adapter, check_length, gather_whole, merge_adapter, round_weights
from drot_utils.engine.shards import derive_seed
from drot_utils.study.errors import ModelError
from drot_utils.study.params import Student
from drot_utils.study.paths import atomic
from drot_utils.study.progress import Progress
from drot_utils.study.record import Study

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Training:
    """What a training left behind besides the weights."""

    rows: int
    steps: int
    target_tokens: int = 0
    losses: list[float] = field(default_factory=list)


def train(
    study: Study,
    model: PreTrainedModel,
    examples: list[Example],
    work: Path,
    *,
    learning_rate: float,
    epochs: int,
    steps: int | None = None,
    what: str = "training",
) -> Training:
    """Fine-tune in place with AdamW and a linear schedule, by the settings in ``student`` and ``compute``.

    With ``student.adapter`` only that is trained, and added to the weights at the end.

    A step's batches (``student.accumulate`` of them) are dealt to the processes there are. Dropout is drawn from a seed
    of the step and the batch. So the losses depend neither on the number of processes nor on where a training was resumed.

    Parameters
    ----------
    work : Path
        Where a checkpoint is kept every ``student.checkpoint_minutes``; a killed training continues from it and ends
        with the same weights. Its name must change with the rows, the settings and the first weights. Whoever has kept the
        trained model deletes it.
    steps : int, optional
        Optimizer steps instead of epochs.

    Returns
    -------
    Training
        With the loss of each optimizer step, over all processes. Under FSDP, `model` holds a process's shards afterwards.

    Raises
    ------
    ModelError
        When a loss is not finite (the last checkpoint is kept), or prompt and target are longer than the model has positions.
    """
    settings, seed, device, dtype = study.params.student, study.params.seed, study.device, study.dtype
    check_length(model, settings.max_prompt_length, settings.max_target_length, "student.max_target_length")
    accelerator = _join_processes(study)
    world, rank = accelerator.num_processes, accelerator.process_index
    rows = sum(len(e.targets) for e in examples)
    total = steps or epochs * math.ceil(math.ceil(rows / settings.batch_size) / settings.accumulate)
    # What an adapter leaves alone is needed in `dtype` only, and may not fit the device in float32.
    adapted = (
        add_adapter(round_weights(model, dtype), settings.adapter, derive_seed(seed, "adapter", 0))
        if settings.adapter
        else None
    )
    model.to(device).train()
    use_eager(model, device)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compiled = study.params.compute.compile and can_compile(device)
    if compiled:  # the blocks that a model repeats: one is compiled, and all others run its code
        for module in model.modules():
            if type(module).__name__ in (model._no_split_modules or ()):
                module.compile(dynamic=True)
    # FSDP keeps the weights in float32, each process a share; autocast makes the copies.
    autocast = dtype != torch.float32 and accelerator.is_fsdp2
    weights = MasterWeights(model, torch.float32 if autocast else dtype)
    learner = _Learner(model, compiled)
    optimizer = torch.optim.AdamW(weights.parameters, lr=learning_rate, fused=True)
    if world > 1:
        learner, optimizer = accelerator.prepare(learner, optimizer)
    result = Training(rows, total)
    done = restore_checkpoint(work, optimizer, result)
    weights.renew_copies()
    saved = time.monotonic()
    with Progress(what, total, "steps", done=done, quiet=rank > 0) as progress:
        for step, micro in itertools.islice(enumerate(_deal_batches(examples, settings, seed)), done, total):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - step / total)
            turns = math.ceil(len(micro) / world)
            sums = torch.zeros(3, device=device)  # loss, target tokens, who thinks that a checkpoint is due
            for turn in range(turns):
                # A process without a batch goes through the first with no weight: all must take part in each turn.
                has_one = (k := turn * world + rank) < len(micro)
                weight = has_one / len(micro)
                torch.manual_seed(derive_seed(seed, f"dropout {step}", k))
                with nullcontext() if turn == turns - 1 else accelerator.no_sync(learner):
                    with torch.autocast(device.type, dtype, enabled=autocast):
                        loss, tokens = learner(micro[k if has_one else 0], device)
                    (loss * weight * world).backward()
                sums += torch.tensor([loss.item() * weight, tokens * has_one, 0.0], device=device)
            weights.take_gradients()
            accelerator.clip_grad_norm_(_trained(optimizer), 1.0)
            optimizer.step()
            weights.renew_copies()
            learner.zero_grad()
            sums[2] = time.monotonic() - saved >= settings.checkpoint_minutes * 60
            mean, tokens, due = accelerator.reduce(sums).tolist()
            if not math.isfinite(mean):
                raise ModelError(
                    f"the loss is {mean} at step {step + 1} of {total}", where=what,
                    todo="lower the learning rate, or train in float32 (compute.dtype)",
                )  # fmt: skip
            result.losses.append(mean)
            result.target_tokens += int(tokens)
            progress.update()
            if due and step + 1 < total:
                save_checkpoint(work, optimizer, result, write=rank == 0)
                saved = time.monotonic()
    accelerator.wait_for_everyone()
    weights.put_back()
    if adapted:
        merge_adapter(adapted)
    model.eval()
    return result


def _join_processes(study: Study) -> Accelerator:
    """Join the other processes of a training: with copies of the weights (DDP), or with a share each (FSDP 2)."""
    parallel, plugin = study.params.compute.parallel, None
    if parallel.fsdp and parallel.processes > 1:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True
        )
    return Accelerator(cpu=study.device.type == "cpu", fsdp_plugin=plugin)


class _Learner(nn.Module):
    """A student whose forward pass is its loss: what runs in several processes must be one call of one module."""

    def __init__(self, student: PreTrainedModel, compiled: bool) -> None:
        super().__init__()
        self.student = student
        self._loss = torch.compile(token_loss, dynamic=True) if compiled else token_loss
        self._no_split_modules = student._no_split_modules  # the blocks that FSDP takes as units

    def forward(self, batch: list[Example], device: torch.device) -> tuple[torch.Tensor, int]:
        """Return the loss of a batch and the number of its target tokens."""
        return batch_loss(self.student, batch, device, self._loss)


def _deal_batches(examples: list[Example], settings: Student, seed: int) -> Iterator[list[list[Example]]]:
    """Yield the batches of each step, without end."""
    for epoch in itertools.count():
        batches = make_batches(examples, settings.batch_size, seed, epoch)
        for start in range(0, len(batches), settings.accumulate):
            yield batches[start : start + settings.accumulate]


def _trained(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def save_checkpoint(work: Path, optimizer: torch.optim.Optimizer, result: Training, write: bool = True) -> None:
    """Write the optimizer, the weights that it changes and the losses to `work`, whole or not at all.

    Of several processes all must call, as each may hold a part of the weights, and one must `write`.
    """
    tensors = {f"model.{i}": gather_whole(p.detach()) for i, p in enumerate(_trained(optimizer))}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"state.{i}.{key}": gather_whole(value) for key, value in state.items()}
    tensors["losses"] = torch.tensor(result.losses, dtype=torch.float64)
    tensors["target_tokens"] = torch.tensor(result.target_tokens)
    if write:
        tensors["checksum"] = _checksum(tensors)
        with atomic(work / CHECKPOINT) as temporary:
            save_file(tensors, temporary)


def restore_checkpoint(work: Path, optimizer: torch.optim.Optimizer, result: Training) -> int:
    """Put a training back to its last checkpoint in `work`, if there is a whole one, and return the steps it had done."""
    try:
        tensors = load_file(work / CHECKPOINT)
    except (OSError, SafetensorError):
        return 0  # none, or not whole: the training starts afresh and ends the same
    if not torch.equal(tensors.pop("checksum", torch.tensor(-1)), _checksum(tensors)):
        return 0  # its bytes have changed
    state: dict[int, dict[str, torch.Tensor]] = {}
    for i, weight in enumerate(_trained(optimizer)):
        weight.detach().copy_(_like(weight, tensors[f"model.{i}"]))
        names = [name for name in tensors if name.startswith(f"state.{i}.")]
        state[i] = {name.split(".")[2]: _like(weight, tensors[name]) for name in names}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    result.losses = tensors["losses"].tolist()
    result.target_tokens = int(tensors["target_tokens"])
    return len(result.losses)


def _checksum(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    # Of names, shapes and bytes: safetensors has none of its own.
    total = 0
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), total)
        total = zlib.crc32(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), total)
    return torch.tensor(total)


def _like(weight: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    """Return a saved tensor cut into shards as its weight is; as it is, when that is whole or it is the step count."""
    if isinstance(weight, DTensor) and saved.shape == weight.shape:
        return distribute_tensor(saved.to(weight.device), weight.device_mesh, weight.placements)
    return saved


class MasterWeights:
    """The float32 weights that an optimizer changes, behind a model that computes with copies of them in `dtype`.

    Weights that are not trained are only changed to `dtype`.

    As autocast does, but a copy is made once a step, not at every use, and what is added to between the layers is
    in the smaller dtype, too. Gradients of several batches are added up in that dtype. In float32 there are no copies,
    and the optimizer changes the model's own weights.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        weights = [p.data.float() for p in trained]
        round_weights(model, dtype)
        own = dtype == torch.float32
        self.parameters = trained if own else weights
        self._pairs = [] if own else list(zip(trained, weights, strict=True))

    def take_gradients(self) -> None:
        """Move the copies' gradients to the weights."""
        for copy, weight in self._pairs:
            if copy.grad is None:
                continue
            if weight.grad is None:
                weight.grad = torch.empty_like(weight)
            weight.grad.copy_(copy.grad)  # into the same memory at each step: fresh pages are dear
            copy.grad = None

    @torch.no_grad()
    def renew_copies(self) -> None:
        """Copy the weights to the model, after the optimizer's step."""
        for copy, weight in self._pairs:
            copy.copy_(weight)

    def put_back(self) -> None:
        """Make the weights the model's own."""
        for copy, weight in self._pairs:
            copy.data = weight


@functools.cache
def can_compile(device: torch.device) -> bool:
    """Tell whether there is what compiling for `device` needs; where not, a warning says what is missing."""
    # Inductor needs a C++ compiler and Python's headers (CPU) or Triton (GPU), and says so only when it compiles.
    try:
        torch.compile(torch.square)(torch.ones(8, device=device))
    except Exception as error:  # of many kinds: subprocess, linker, Triton, dynamo
        why = str(error).strip().splitlines()[0]
        warnings.warn(
            f"compute.compile: nothing is compiled here, and the work continues without ({why})", stacklevel=2
        )
        return False
    return True
