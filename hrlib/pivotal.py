"""Pivotal tuning (PTI, Roich et al. 2022): change the generator itself around a code that has been found.

    min_theta  d[G(w_p; theta), x] + lam_mse d_mse[G(w_p; theta), x]

w_p, the pivot, stays fixed; theta are the weights of the synthesis network. It is not part of the paper; as one of
the strongest inversions known, it shows what a reconstruction could reach. Tuned weights, unlike noise maps, take part
in every edit. Its authors take a pivot in W from 450 steps, LPIPS as d, and 350 steps of Adam with a constant rate of
3e-4.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from . import optim, store
from .errors import plain
from .inversion import canvas_size, check_codes, check_loss
from .optim import Iterate, Run, State, Variables

RANGES = {name: optim.RANGES[name] for name in ("num_steps", "lr")} | {"lam_mse": "[0, inf)"}


@dataclass(frozen=True)
class Tuned:
    """A finished tuning.

    generator: a copy of G with the tuned weights, without gradients. ws [N, num_ws, w_dim]: the pivot. image
    [N, 3, H, W] = generator.synthesis(ws); history: one dict a step; config: settings, loss, hashes; seconds;
    peak_bytes (on a CPU, of the whole process); ended: why the loop ended; best_step: the step of these weights.
    """

    generator: nn.Module
    ws: Tensor
    image: Tensor
    history: list[dict[str, float]]
    config: dict[str, Any]
    seconds: float
    peak_bytes: int
    ended: str
    best_step: int


def tune(
    G: nn.Module,
    ws: Tensor,
    x: Tensor,
    loss: Callable[[Tensor, Any], dict[str, Tensor]],
    *,
    num_steps: int = 350,
    lr: float = 3e-4,
    lam_mse: float = 1.0,
    resume: State | None = None,
) -> Run[Tuned]:
    """Minimise the equation above; yields one Iterate a step, and `optim.solve` returns a `Tuned`.

    Args:
        G: a generator; it stays as it is. Its constant noise maps are used and not tuned.
        ws: [1 or N, num_ws, w_dim], the pivot: the `ws` of an inversion in "w" or "w+" without noise maps.
        x: [N, 3, H, W] in [-1, 1], the inverted pictures; one generator is tuned to all of them.
        loss: d, from `hrlib.losses`.
        num_steps, lr: of Adam, whose rate is constant.
        lam_mse: weight of the mean squared pixel error.
        resume: `Iterate.state()` of the same run.

    Raises:
        InvalidValue, ShapeError: before the first step. StoreError: at the first step, if `resume` belongs to another
        run. NonFiniteLoss: carries `.best`.
    """
    config = plain({"num_steps": num_steps, "lr": lr, "lam_mse": lam_mse}, RANGES)
    check_loss(loss)
    size = canvas_size(G, x)
    check_codes(ws, G, len(x), rows=G.num_ws, what="ws")
    pivot, target = ws.detach().expand(len(x), -1, -1), loss.prepare(x)
    theta = dict(G.synthesis.named_parameters())

    def synthesise(v: Variables) -> Tensor:
        return functional_call(G.synthesis, v, (pivot,), {"size": size})  # G(w_p; theta)

    def objective(step: int, v: Variables) -> tuple[dict[str, Tensor], Tensor]:
        image = synthesise(v)
        terms = dict(loss(image, target))
        if config["lam_mse"]:
            terms["mse"] = config["lam_mse"] * (image - x).square().mean()
        return terms, image

    def steps(state: State | None) -> Iterator[Iterate]:
        return optim.descend(
            theta,
            objective,
            num_steps=config["num_steps"],
            lr=config["lr"],
            lr_schedule=lambda t: 1.0,
            resume=state,
            config=config,
        )

    @torch.no_grad()
    def finish(it: Iterate, seconds: float) -> Tuned:
        generator = copy.deepcopy(G).requires_grad_(False)
        generator.synthesis.load_state_dict(it.best.variables, strict=False)
        return Tuned(
            generator=generator,
            ws=pivot.clone(),
            image=synthesise(it.best.variables),
            history=list(it.history),
            config=config,
            seconds=seconds,
            peak_bytes=optim.peak_bytes(x.device),
            ended=optim.ended(it, config["num_steps"]),
            best_step=it.best.step,
        )

    config |= {
        "loss": loss.describe(),
        "generator": store.fingerprint(G.state_dict()),
        "image": store.fingerprint({"x": x}),
        "pivot": store.fingerprint({"ws": pivot}),
    }
    return Run(steps, finish, config=config, num_steps=config["num_steps"], resume=resume)
