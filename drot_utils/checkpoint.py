"""The state of a training on disk, so that a killed one ends with the same weights."""

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from drot_utils.paths import atomic

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Training:
    """What a training left behind besides the weights."""

    rows: int
    steps: int
    target_tokens: int
    losses: list[float] = field(default_factory=list)


def trained_weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the weights that an optimizer changes."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def save_checkpoint(
    work: Path, optimizer: torch.optim.Optimizer, result: Training, write: bool = True
) -> None:
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


def gather_whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that FSDP has cut into shards as one, others as they are; all processes must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)
    return whole
