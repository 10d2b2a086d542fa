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

from drot_utils.engine.batches import Example, batch_loss, make_batches, token_loss
from drot_utils.engine.load import check_length, gather_whole, round_weights
from drot_utils.engine.shards import derive_seed
from drot_utils.study.errors import ModelError
from drot_utils.study.params import Student as Settings
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


def open_accelerator(study: Study) -> Accelerator:
    """Join the other processes of a training: with copies of the weights (DDP), or with a share each (FSDP 2)."""
    plugin = None
    if study.params.compute.parallel.fsdp:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True
        )
    return Accelerator(cpu=study.device.type == "cpu", fsdp_plugin=plugin)


def train(
    model: PreTrainedModel,
    examples: list[Example],
    settings: Settings,
    *,
    learning_rate: float,
    epochs: int,
    work: Path,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool = False,
    steps: int | None = None,
    what: str = "training",
    accelerator: Accelerator | None = None,
) -> Training:
    """Fine-tune in place with AdamW and a linear schedule.

    A step's batches (``settings.accumulate`` of them) are dealt to the processes there are. Dropout is drawn from a seed
    of the step and the batch. So the losses depend neither on the number of processes nor on where a training was resumed.

    Parameters
    ----------
    examples : list of Example
        A target for each row to be learnt.
    epochs : int
        Passes over the rows.
    work : Path
        Where a checkpoint is kept every ``settings.checkpoint_minutes``; a killed training continues from it and ends
        with the same weights. Its name must change with the rows, the settings and the first weights.
    compiled : bool
        Compile the student's blocks and the loss first, where the machine can.
    steps : int, optional
        Optimizer steps instead of epochs.
    accelerator : Accelerator, optional
        In each of several processes (see `parallel`). Under FSDP, `model` holds its shards afterwards.

    Returns
    -------
    Training
        With the loss of each optimizer step, over all processes.

    Raises
    ------
    ModelError
        When a loss is not finite (the last checkpoint is kept), or prompt and target are longer than the model has positions.
    """
    check_length(model, settings.max_prompt_length, settings.max_target_length, "student.max_target_length")
    accelerator = accelerator or Accelerator(cpu=device.type == "cpu")
    world, rank = accelerator.num_processes, accelerator.process_index
    rows = sum(len(e.targets) for e in examples)
    total = steps or epochs * math.ceil(math.ceil(rows / settings.batch_size) / settings.accumulate)
    model.to(device).train()
    if device.type == "cpu":
        # A fifth faster: the fused one's backward pass is slow on a CPU.
        model.set_attn_implementation("eager")
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compiled = compiled and can_compile(device)
    if compiled:
        compile_blocks(model)
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
        for step, micro in _numbered_steps(examples, settings, seed, total):
            if step < done:
                continue
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - step / total)
            # A process without a batch goes through another's with no weight: all must take part.
            mine = list(range(rank, len(micro), world)) or [0]
            has_one = rank < len(micro)
            weight = has_one / len(micro)
            # Loss, target tokens, and who thinks that a checkpoint is due.
            sums = torch.zeros(3, device=device)
            for k in mine:
                torch.manual_seed(derive_seed(seed, f"dropout {step}", k))
                with torch.autocast(device.type, dtype, enabled=autocast):
                    loss, tokens = learner(micro[k], device)
                with nullcontext() if k == mine[-1] else accelerator.no_sync(learner):
                    (loss * weight * world).backward()
                sums += torch.tensor([loss.item() * weight, tokens * has_one, 0.0], device=device)
            weights.take_gradients()
            accelerator.clip_grad_norm_(trained_weights(optimizer), 1.0)
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
                save_checkpoint(work, optimizer, result, write=accelerator.is_main_process)
                saved = time.monotonic()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (work / CHECKPOINT).unlink(missing_ok=True)
    weights.put_back()
    model.eval()
    return result


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


def _numbered_steps(
    examples: list[Example], settings: Settings, seed: int, total: int
) -> Iterator[tuple[int, list[list[Example]]]]:
    step = 0
    for epoch in itertools.count():
        batches = make_batches(examples, settings.batch_size, seed, epoch)
        for start in range(0, len(batches), settings.accumulate):
            if step == total:
                return
            yield step, batches[start : start + settings.accumulate]
            step += 1


def trained_weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the weights that an optimizer changes."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def save_checkpoint(work: Path, optimizer: torch.optim.Optimizer, result: Training, write: bool = True) -> None:
    """Write the optimizer, the weights that it changes and the losses to `work`, whole or not at all.

    Parameters
    ----------
    write : bool
        False in all but one of several processes; all must call, as each may hold a part of the weights.
    """
    tensors = {f"model.{i}": gather_whole(p.detach()) for i, p in enumerate(trained_weights(optimizer))}
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
    parameters = trained_weights(optimizer)
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.copy_(_like(parameter, tensors[f"model.{i}"]))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("state."):
            _, i, key = name.split(".")
            whole = value.shape == parameters[int(i)].shape  # a moment, not the step count
            state.setdefault(int(i), {})[key] = _like(parameters[int(i)], value) if whole else value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    result.losses = tensors["losses"].tolist()
    result.target_tokens = int(tensors["target_tokens"])
    return len(result.losses)


def _checksum(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    # Of names, shapes and bytes: safetensors has none of its own.
    total = 0
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        total = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), total)
    return torch.tensor(total)


def _like(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)
    return whole


class MasterWeights:
    """The float32 weights that an optimizer changes, behind a model that computes with rounded copies of them.

    As autocast does, but a copy is made once a step, not at every use, and what is added to between the layers is
    in the smaller dtype, too. Gradients of several batches are added up in that dtype.

    Parameters
    ----------
    model : Module
        Gets the copies.
    dtype : torch.dtype
        Of the copies; in float32 there are none, and the optimizer changes the model's own weights.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        weights = [p.data.float() for p in model.parameters()]
        round_weights(model, dtype)
        if dtype == torch.float32:
            self._pairs, self.parameters = [], list(model.parameters())
        else:
            self._pairs, self.parameters = list(zip(model.parameters(), weights, strict=True)), weights

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


def can_compile(device: torch.device) -> bool:
    """Tell whether there is what compiling for `device` needs; where not, a warning says what is missing."""
    if why := _missing(device):
        warnings.warn(
            f"compute.compile: nothing is compiled here, and the work continues without ({why})", stacklevel=2
        )
    return not why


def compile_blocks(model: PreTrainedModel) -> None:
    """Compile the blocks that a model repeats, in place: one is compiled, and all others run its code.

    It takes some 15 s (a whole model: minutes), and a later process finds the code in torch's cache.
    """
    for module in model.modules():
        if type(module).__name__ in (model._no_split_modules or ()):
            module.compile(dynamic=True)


@functools.cache
def _missing(device: torch.device) -> str:
    # Inductor needs a C++ compiler and Python's headers (CPU) or Triton (GPU), and says so only when it compiles.
    try:
        torch.compile(torch.square)(torch.ones(8, device=device))
    except Exception as error:  # of many kinds: subprocess, linker, Triton, dynamo
        return str(error).strip().splitlines()[0]
    return ""
