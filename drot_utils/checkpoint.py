"""The state of a training on disk, so that a killed one ends with the same weights."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from drot_utils.paths import atomic

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Training:
    """What a training left behind besides the weights."""

    rows: int
    steps: int
    target_tokens: int
    losses: list[float] = field(default_factory=list)


def save_checkpoint(
    work: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, result: Training
) -> None:
    """Write weights, optimizer, random state and losses to `work`, whole or not at all."""
    tensors = {f"model.{i}": p.detach() for i, p in enumerate(model.parameters())}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"state.{i}.{key}": value for key, value in state.items()}
    tensors["random"] = torch.get_rng_state()
    if model.device.type == "cuda":
        tensors["random_cuda"] = torch.cuda.get_rng_state()  # dropout draws from it
    tensors["losses"] = torch.tensor(result.losses, dtype=torch.float64)
    tensors["target_tokens"] = torch.tensor(result.target_tokens)
    with atomic(work / CHECKPOINT) as temporary:
        save_file(tensors, temporary)


def restore_checkpoint(
    work: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, result: Training
) -> int:
    """Put a training back to its last checkpoint in `work`, if there is a whole one, and return the steps it had done."""
    try:
        tensors = load_file(work / CHECKPOINT)
    except (OSError, SafetensorError):
        return 0  # none, or not whole: the training starts afresh and ends the same
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(tensors[f"model.{i}"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("state."):
            _, i, key = name.split(".")
            state.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    torch.set_rng_state(tensors["random"])
    if "random_cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random_cuda"])
    result.losses = tensors["losses"].tolist()
    result.target_tokens = int(tensors["target_tokens"])
    return len(result.losses)
