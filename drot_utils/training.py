"""Fine-tuning a student, by one process or several, killed at any moment and resumed (appendix D.2)."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from drot_utils.checkpoint import CHECKPOINT, Training, restore_checkpoint, save_checkpoint, trained_weights
from drot_utils.compiling import can_compile, compile_blocks
from drot_utils.errors import ModelError
from drot_utils.params import Student as Settings
from drot_utils.precision import MasterWeights
from drot_utils.progress import Progress
from drot_utils.prompts import check_length
from drot_utils.shards import derive_seed
from drot_utils.student import Example, batch_loss, make_batches, make_examples, token_loss


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


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: pd.DataFrame,
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
    of the step and the batch. So the losses hang neither on the number of processes nor on where a training was resumed.

    Parameters
    ----------
    rows : DataFrame
        ``action_id action moral_variance context rationale``.
    epochs : int
        Passes over the rows.
    work : Path
        Where a checkpoint is kept every ``settings.checkpoint_minutes``; a training that was killed goes on from it
        and ends with the same weights. Its name must change with the rows, the settings and the first weights.
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
    examples = make_examples(rows, tokenizer, settings, model.config.is_encoder_decoder)
    batches = math.ceil(sum(len(e.targets) for e in examples) / settings.batch_size)
    each_epoch = math.ceil(batches / settings.accumulate)
    total = steps or epochs * each_epoch
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
    result = Training(len(rows), total, 0)
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
                if k == mine[-1]:
                    (loss * weight * world).backward()
                else:
                    with accelerator.no_sync(learner):
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


def _numbered_steps(
    examples: list[Example], settings: Settings, seed: int, total: int
) -> Iterator[tuple[int, list[list[Example]]]]:
    step = epoch = 0
    while True:
        batches = make_batches(examples, settings.batch_size, seed, epoch)
        for start in range(0, len(batches), settings.accumulate):
            if step == total:
                return
            yield step, batches[start : start + settings.accumulate]
            step += 1
        epoch += 1
