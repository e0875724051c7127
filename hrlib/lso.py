"""Local style optimisation, Eq. (8) and (9): change a mixed code so that the content's pose and semantics come back.

    min_{w_opt, n}  d_h[G_m(w_m + w_opt + eps, n), x_s] + lam_reg ||w_opt||_2^2                          (8)
    min_{w, n}      d_h[G_m(w_m + sum_i w_i e_i + eps, n), x_s] + lam_reg ||w||_2^2                      (9)

w_m stays fixed, and only the codes of some early layers change, so the style, which is in the late codes, is kept. The
pairs of a batch are independent: each gives the same result as on its own, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from . import optim, store
from .errors import InvalidValue, ShapeError, number, plain, truth
from .inversion import (
    NOISE,
    Result,
    canvas_size,
    check_codes,
    check_loss,
    check_spread,
    noise_of,
    normalise_,
    w_statistics,
)
from .optim import Iterate, Run, State, Variables

RANGES = optim.RANGES | {"lam_reg": "[0, inf)", "init_scale": "[0, inf)"}
FLAGS = ("optimise_noise", "shared")


def early_layers(num_ws: int) -> list[int]:
    """The paper's choice of codes (Sec. III-C): the first 5 of 18, {0, ..., 4}, which drive b4 to b16.

    A generator with fewer codes makes a smaller picture with the same layout: its early layers are b4 to b16, too.
    """
    return list(range(min(5, num_ws)))


def optimise(
    G_m: nn.Module,
    ws_m: Tensor,
    x_s: Tensor,
    loss: Callable[[Tensor, Any], dict[str, Tensor]],
    *,
    lam_reg: float,
    layers: Sequence[int] | None = None,
    directions: Tensor | None = None,
    shared: bool = True,
    num_steps: int = 50,
    optimise_noise: bool = True,
    lr: float = 0.1,
    lr_ramp_up: float = 0.05,
    lr_ramp_down: float = 0.25,
    eps_initial: float = 0.05,
    eps_length: float = 0.75,
    init_scale: float = 0.01,
    w_samples: int = 10_000,
    seed: int = 0,
    resume: State | None = None,
) -> Run[Result]:
    """Minimise Eq. (8), or Eq. (9) if `directions` are given; yields one Iterate a step.

    Loop over the run, or pass it to `optim.solve`, which returns an `inversion.Result` of the last iterate: its ws are
    w_m + w_opt, its image is without eps. The last iterate and not the best: with eps in the loss, the lowest value is
    that of a lucky draw, and for a batch it would be the lowest sum.

    Variables of the iterates: "w_opt" [N, L, w_dim] for L layers, or with directions the coefficients "w" [N, 1, K]
    ([N, L, K] unless `shared`); and "noise/<layer>" [N, h, w]. `codes` turns them into ws.

    Args:
        G_m, ws_m: the mixed generator and the mixed codes [N, num_ws, w_dim], from `hrlib.mixing`; neither changes.
        x_s: the content pictures [N, 3, H, W] in [-1, 1].
        loss: d_h of Eq. (4), `losses.named("vgg_high", weights="shipped")`, or another.
        lam_reg: weight of ||w_opt||^2, which is summed over codes and dimensions and averaged over the batch, as d_h
            is. The paper does not state it, and d_h grows with the picture: see `scaled_lam_reg`.
        layers: indices of the codes that change; None: `early_layers`.
        directions: [w_dim, K], columns e_1 ... e_K, from `directions.closed_form(G_m)`.
        shared: True is Eq. (9) as written, one vector of coefficients for all layers; False: one vector a layer.
        num_steps: steps of Adam.
        optimise_noise: False keeps the generator's own noise maps.
        lr, lr_ramp_up, lr_ramp_down, eps_initial, eps_length, w_samples, seed: as in `inversion.invert`.
        init_scale: standard deviation of the initial variables, in units of w_std; 0 starts at exactly the mixed image.
        resume: `Iterate.state()` of the same run; on a CPU the result is bitwise the same.

    Raises:
        InvalidValue, ShapeError: before the first step. StoreError: at the first step, if `resume` belongs to another
        run. NonFiniteLoss: carries `.best`.
    """
    given = dict(locals())  # the arguments, by name
    config = plain({name: given[name] for name in RANGES}, RANGES)
    config |= {name: truth(name, given[name]) for name in FLAGS}
    s = SimpleNamespace(**config)
    check_loss(loss)
    size = canvas_size(G_m, x_s)
    layers = checked_layers(early_layers(G_m.num_ws) if layers is None else layers, G_m.num_ws)
    _check(G_m, ws_m, x_s, directions)
    _, w_std = w_statistics(G_m, samples=s.w_samples)
    n, target = len(x_s), loss.prepare(x_s)
    if s.optimise_noise:
        check_spread(G_m.noise_maps(size))

    def objective(step: int, v: Variables) -> tuple[dict[str, Tensor], Tensor]:
        scale = optim.exploration_scale(step / s.num_steps, w_std=w_std, initial=s.eps_initial, length=s.eps_length)
        eps = optim.unit_draw((1, G_m.num_ws, G_m.w_dim), seed=s.seed, step=step).to(ws_m) * scale
        ws = codes(ws_m, v, layers, directions)  # w_m + w_opt, or w_m + sum_i w_i e_i
        image = G_m.synthesis(ws + eps, noise=noise_of(v) or "const", size=size)  # G_m(ws + eps, n)
        terms = dict(loss(image, target))  # d_h[G_m(ws + eps, n), x_s], Eq. (8) and (9)
        free = v["w_opt"] if directions is None else v["w"]
        terms["reg"] = s.lam_reg * free.square().sum() / n  # lam_reg ||w_opt||^2, Eq. (8); lam_reg ||w||^2, Eq. (9)
        return terms, image

    def after_step(v: Variables) -> None:
        for m in noise_of(v).values():
            normalise_(m)

    config |= {
        "layers": layers,
        "loss": loss.describe(),
        "generator": store.fingerprint(G_m.state_dict()),
        "pair": store.fingerprint({"ws": ws_m, "x": x_s, **({} if directions is None else {"e": directions})}),
    }

    def steps(state: State | None) -> Iterator[Iterate]:
        return optim.descend(
            _initial(G_m, n, layers, directions, w_std, size, s),
            objective,
            num_steps=s.num_steps,
            lr=s.lr,
            lr_schedule=lambda t: optim.lr_ramp(t, ramp_up=s.lr_ramp_up, ramp_down=s.lr_ramp_down),
            after_step=after_step,
            resume=state,
            config=config,
        )

    @torch.no_grad()
    def finish(it: Iterate, seconds: float) -> Result:
        ws, noise = codes(ws_m, it.variables, layers, directions), noise_of(it.variables)
        return Result(
            ws=ws,
            noise=noise,
            image=G_m.synthesis(ws, noise=noise or "const", size=size),
            history=list(it.history),
            config=config,
            seconds=seconds,
            peak_bytes=optim.peak_bytes(x_s.device),
            ended=optim.ended(it, s.num_steps),
            best_step=it.step,
        )

    return Run(steps, finish, config=config, num_steps=s.num_steps, resume=resume)


@torch.no_grad()
def scaled_lam_reg(
    G_m: nn.Module,
    ws_m: Tensor,
    x_s: Tensor,
    loss: Callable[[Tensor, Any], dict[str, Tensor]],
    *,
    share: float = 0.2,
    w_samples: int = 10_000,
) -> float:
    """The lam_reg at which a w_opt of length w_std costs `share` of d_h at the mixed images (mean over the pairs).

    d_h is a sum over positions and channels, so one lam_reg does not suit two resolutions or networks; this ratio does.

    Args:
        G_m, ws_m, x_s, loss, w_samples: as in `optimise`.
        share: the ratio, 0 or more.
    """
    share, w_samples = number("share", share, "[0, inf)"), number("w_samples", w_samples, RANGES["w_samples"])
    _check(G_m, ws_m, x_s, None)
    image = G_m.synthesis(ws_m, size=canvas_size(G_m, x_s))
    return share * float(sum(loss(image, x_s).values())) / w_statistics(G_m, samples=w_samples)[1] ** 2


def codes(ws_m: Tensor, variables: Variables, layers: Sequence[int], directions: Tensor | None = None) -> Tensor:
    """ws = w_m + w_opt on `layers`, or w_m + sum_i w_i e_i; the other codes are exactly those of ws_m."""
    if directions is None:
        offset = variables["w_opt"]  # Eq. (8), [N, L, w_dim]
    else:
        offset = variables["w"] @ directions.T.to(ws_m)  # sum_i w_i e_i, Eq. (9), [N, 1 or L, K] @ [K, w_dim]
        offset = offset.expand(-1, len(layers), -1)
    return ws_m.index_add(1, torch.as_tensor(layers, device=ws_m.device), offset)


def checked_layers(layers: Sequence[int], num_ws: int) -> list[int]:
    """The layers as ascending indices; `InvalidValue` for no layer, a repeated one, or one outside the codes."""
    indices = [number("layer", i, "whole (-inf, inf)") for i in layers] if isinstance(layers, Iterable) else []
    if not indices or len(set(indices)) < len(indices) or min(indices) < 0 or max(indices) >= num_ws:
        raise InvalidValue(
            f"layers {layers!r}",
            expected=f"one or more different codes from 0 to {num_ws - 1}",
            do="use lso.early_layers, which hold pose and semantics",
        )
    return sorted(indices)


def _check(G_m: nn.Module, ws_m: Tensor, x_s: Tensor, directions: Tensor | None) -> None:
    check_codes(ws_m, G_m, len(x_s), rows=G_m.num_ws, what="mixed codes")
    if len(ws_m) != len(x_s):
        raise ShapeError(
            f"mixed codes {tuple(ws_m.shape)} for {len(x_s)} content pictures",
            expected=f"[{len(x_s)}, {G_m.num_ws}, {G_m.w_dim}]",
            do="mix one code a picture with mixing.lerp_ws",
        )
    if directions is not None and (directions.ndim != 2 or len(directions) != G_m.w_dim or not directions.shape[1]):
        raise ShapeError(
            f"directions of shape {tuple(directions.shape)}",
            expected=f"[{G_m.w_dim}, K], one direction a column",
            do="take the first K columns of directions.closed_form(G_m)[1]",
        )


def _initial(G_m, n, layers, directions, w_std, size, s: SimpleNamespace) -> Variables:
    """Small random numbers around zero, the same for every pair, and the generator's own noise maps."""
    width = G_m.w_dim if directions is None else directions.shape[1]
    rows = 1 if directions is not None and s.shared else len(layers)
    start = optim.unit_draw((1, rows, width), seed=s.seed, step=-1).to(G_m.w_avg) * (s.init_scale * w_std)
    variables = {"w_opt" if directions is None else "w": start.expand(n, -1, -1)}
    if s.optimise_noise:
        variables |= {NOISE + k: m.expand(n, -1, -1) for k, m in G_m.noise_maps(size).items()}
    return variables
