"""Faster models by ``torch.compile``, where the machine has what that needs."""

import functools
import warnings

import torch
from transformers import PreTrainedModel


def can_compile(device: torch.device) -> bool:
    """Tell whether there is what compiling for `device` needs; where not, a warning says what is missing."""
    if why := _missing(device):
        warnings.warn(
            f"compute.compile: nothing is compiled here, and the work goes on without ({why})", stacklevel=2
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
