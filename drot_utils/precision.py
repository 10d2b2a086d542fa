"""Models in a smaller dtype: rounded weights for inference, and for training with weights that stay in float32."""

import torch
from torch import nn


def round_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Change a model's weights to `dtype`, in place, and return it.

    Unlike ``model.to(dtype)`` it leaves the buffers alone: rounded to bfloat16, rotary frequencies are off by up to 0.2%,
    some tenths of a radian at position 200.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


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
