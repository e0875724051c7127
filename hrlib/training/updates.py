"""What the training steps share: schedules as functions of the step, a descent, a moving average, R1."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def fallen(left: float, share: float) -> float:
    """Factor of the learning rate with `left` of the run to go: 1, then linearly to 0.1 over the last `share`."""
    return 1.0 if left >= share else 0.1 + 0.9 * left / share


def one_cycle(step: int, steps: int, lr: float) -> tuple[float, float]:
    """(learning rate, Adam's beta1) of a step of 2 or more: PyTorch's OneCycleLR, as a function of the step.

    The rate rises from lr / 25 to `lr` over the first tenth and falls to lr / 250,000 at the last step, along cosines;
    beta1 goes the other way between 0.85 and 0.95.
    """
    rise = max(0.1, 1.1 / steps) * steps - 1  # of a step more than one, so that the rise has a length
    low = lr / 25
    if step <= rise:
        return _cosine(low, lr, step / rise), _cosine(0.95, 0.85, step / rise)
    done = (step - rise) / (steps - 1 - rise)
    return _cosine(lr, low / 1e4, done), _cosine(0.85, 0.95, done)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)


def set_rate(adam: torch.optim.Optimizer, lr: float, beta1: float) -> None:
    """Give all parameters this learning rate and beta1 for the next step."""
    for group in adam.param_groups:
        group["lr"], group["betas"] = lr, (beta1, group["betas"][1])


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient of `loss`."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


@torch.no_grad()
def average(ema: nn.Module, net: nn.Module, beta: float) -> None:
    """Move the parameters of `ema` towards those of `net` by the share 1 - beta."""
    for p, q in zip(ema.parameters(), net.parameters(), strict=True):
        p.lerp_(q, 1 - beta)


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, amp: Callable) -> Tensor:
    """R1 (Mescheder et al. 2018): the mean of ||d critic / d picture||^2 at real pictures [N, 3, R, R], a scalar.

    amp: makes the context of the critic's forward pass, such as autocast; the gradient is taken outside it.
    """
    x = real.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with amp():
        logits = critic(x)
    (grad,) = torch.autograd.grad(logits.float().sum(), x, create_graph=True)
    return grad.float().square().sum((1, 2, 3)).mean()
