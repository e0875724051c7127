"""What every training step here does: a rate that falls at the end, a descent, a moving average, lazy R1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def fallen(left: float, share: float) -> float:
    """The factor of a learning rate with `left` of the run to go: 1, then linearly to 0.1 over the last `share`."""
    return 1.0 if left >= share else 0.1 + 0.9 * left / share


def one_cycle(adam: torch.optim.Optimizer, lr: float, steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """Rates that rise to `lr` over the first tenth of 2 or more steps, and fall to almost nothing."""
    rise = max(0.1, 1.1 / steps)  # PyTorch divides by the length of the rise less one step
    return torch.optim.lr_scheduler.OneCycleLR(adam, lr, total_steps=steps, pct_start=rise)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient of `loss`."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


@torch.no_grad()
def average(ema: nn.Module, net: nn.Module, beta: float) -> None:
    """Move the parameters of `ema` by 1 - beta towards those of `net`."""
    for p, q in zip(ema.parameters(), net.parameters(), strict=True):
        p.lerp_(q, 1 - beta)


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, amp: Callable) -> Tensor:
    """R1 (Mescheder et al. 2018): the mean of ||d critic / d picture||^2 at real pictures [N, 3, R, R], a scalar.

    amp: makes the context in which the critic computes, such as autocast; the gradient is taken outside it.
    """
    x = real.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with amp():
        logits = critic(x)
    (grad,) = torch.autograd.grad(logits.float().sum(), x, create_graph=True)
    return grad.float().square().sum((1, 2, 3)).mean()
