"""Exact nucleus (top-p) sampling without sorting the whole vocabulary (Holtzman et al., 2020)."""

import torch

WIDTHS = (64, 1024)  # most nuclei fit into the first; the full sort is the last resort
CACHED = 1 << 19  # numbers that stay in a core's cache
TIE = 1e-6  # the whole mass is a float32 sum: this close to top_p counts as reaching it


def nucleus_sample(
    logits: torch.Tensor, uniform: torch.Tensor, top_p: float, temperature: float = 1.0
) -> torch.Tensor:
    """Draw one token a row from the nucleus: the smallest set of likeliest tokens whose probability reaches `top_p`.

    Among equal probabilities the order is that of ``torch.topk``. The draw is by inversion: the token in whose share of
    the nucleus `uniform` falls. So the result depends on the row's own logits and number only, not on its batch.

    Parameters
    ----------
    logits : Tensor of shape (rows, vocabulary)
    uniform : Tensor of shape (rows,)
        Numbers in [0, 1).
    top_p : float
        In (0, 1].
    temperature : float
        Divides the logits.

    Returns
    -------
    Tensor of int64, shape (rows,)

    Raises
    ------
    ValueError
        When a row of `logits` holds NaN or +inf, or is -inf throughout.
    """
    vocabulary = logits.shape[1]
    widths = [*(w for w in WIDTHS if w < vocabulary), vocabulary]
    top, ids = logits.topk(widths[0], dim=-1)
    peak = top[:, :1]
    check_logits(peak)
    total = _total_mass(logits, peak, temperature)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    pending = torch.arange(len(logits), device=logits.device)
    for width in widths:
        if width > widths[0]:
            top, ids = logits[pending].topk(width, dim=-1)
        # Summed in float64: at the boundary a float32 sum of thousands of terms may err by a token.
        mass = ((top.double() - peak[pending].double()) / temperature).exp() / total[pending]
        cumulative = mass.cumsum(-1)
        inside = (cumulative[:, -1] >= top_p - TIE) | (width == vocabulary)
        reached = cumulative[inside]
        # The nucleus ends with the first token at which the mass reaches top_p.
        size = (reached < top_p - TIE).sum(-1).clamp(max=width - 1)
        kept_mass = reached.gather(1, size.unsqueeze(1))
        target = uniform[pending[inside]].double().unsqueeze(1) * kept_mass
        drawn = torch.searchsorted(reached.contiguous(), target, right=True).squeeze(1).minimum(size)
        tokens[pending[inside]] = ids[inside].gather(1, drawn.unsqueeze(1)).squeeze(1)
        pending = pending[~inside]
        if not len(pending):
            break
    return tokens


def check_logits(peak: torch.Tensor) -> None:
    """Raise a ValueError when the largest logit of a row is NaN or infinite."""
    if not torch.isfinite(peak).all():
        raise ValueError("logits are not finite: the model's weights or its input are broken")


def _total_mass(logits: torch.Tensor, peak: torch.Tensor, temperature: float) -> torch.Tensor:
    # A few rows at a time on a CPU, and in place, so that they stay in its cache from one operation to the next.
    together = max(1, CACHED // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    parts = zip(logits.split(together), peak.split(together), strict=True)
    return torch.cat(
        [
            x.to(torch.float32, copy=True).sub_(top).div_(temperature).exp_().sum(-1, keepdim=True)
            for x, top in parts
        ]
    ).double()
