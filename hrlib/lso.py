"""Local style optimisation, Eq. (8) and (9): amend a mixed code so that the content's pose and semantics come back.

    min_{w_opt, n}  d_h[G_m(w_m + w_opt + eps, n), x_s] + lam_reg ||w_opt||_2^2                          (8)
    min_{w, n}      d_h[G_m(w_m + sum_i w_i e_i + eps, n), x_s] + lam_reg ||w||_2^2                      (9)

w_m stays fixed and only the codes of some early layers may move, so the style, which the late codes hold, stays as it
is. Pairs of a batch do not meet: each gets what it would get alone, up to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import descent
from .descent import Iterate, State, Variables
from .errors import ShapeError, UnknownName, number
from .inversion import (
    NOISE,
    Result,
    canvas_size,
    check_spread,
    fingerprint,
    noise_of,
    normalise_,
    peak_bytes,
    w_statistics,
)


@dataclass(frozen=True)
class Settings:
    """The numbers that decide a local style optimisation. See `optimise` for their meaning."""

    lam_reg: float
    num_steps: int = 50
    optimise_noise: bool = True
    shared: bool = True
    lr: float = 0.1
    lr_ramp_up: float = 0.05
    lr_ramp_down: float = 0.25
    eps_initial: float = 0.05
    eps_length: float = 0.75
    init_scale: float = 0.01
    w_samples: int = 10_000
    seed: int = 0


RANGES = descent.RANGES | {"lam_reg": "[0, inf)", "init_scale": "[0, inf)"}


def early_layers(num_ws: int) -> list[int]:
    """The paper's choice of codes (Sec. III-C): the first 5 of 18, {0, ..., 4}, which drive b4 to b16.

    Fewer codes mean a smaller picture, not another layout of the face: b4 to b16 are the early layers there, too.
    """
    return list(range(min(5, num_ws)))


def optimise(
    G_m: nn.Module,
    ws_m: Tensor,
    x_s: Tensor,
    loss: Callable[[Tensor, Any], dict[str, Tensor]],
    *,
    layers: Sequence[int] | None = None,
    directions: Tensor | None = None,
    resume: State | None = None,
    **settings: Any,
) -> Iterator[Iterate]:
    """Minimise Eq. (8), or Eq. (9) when `directions` are given; yield one Iterate a step.

    Variables of the iterates: "w_opt" [N, L, w_dim] for L layers, or with directions the coefficients "w" [N, 1, K]
    ([N, L, K] unless `shared`); and "noise/<layer>" [N, h, w]. `codes` turns them into ws.

    Args:
        G_m, ws_m: the mixed generator and the mixed codes [N, num_ws, w_dim], from `hrlib.mixing`; not changed.
        x_s: the content pictures [N, 3, H, W] in [-1, 1].
        loss: d_h of Eq. (4), `losses.named("vgg_high")`, or another.
        layers: indices of the codes that may move; None: `early_layers`.
        directions: [w_dim, K], columns e_1 ... e_K, from `directions.closed_form(G_m)`.
        resume: `Iterate.state()` of an equal run, to the bitwise same end on a CPU.
        settings: fields of `Settings`: lam_reg (the paper does not state it, and d_h grows with the picture: see
            `scaled_lam_reg`; the squared norm is summed over codes and dimensions, and averaged over the batch as d_h
            is); num_steps; optimise_noise; shared (Eq. 9 as written: one vector of coefficients
            for all layers; False: one a layer); lr, lr_ramp_up, lr_ramp_down; eps_initial, eps_length; init_scale
            (standard deviation of the initial variables, in units of w_std; 0 starts exactly at the mixed image);
            w_samples; seed.

    Raises:
        InvalidValue, ShapeError, UnknownName: before the first step. NonFiniteLoss: carries `.best`.
    """
    s = descent.checked_settings(Settings, settings, RANGES)
    size = canvas_size(G_m, x_s)
    layers = checked_layers(early_layers(G_m.num_ws) if layers is None else layers, G_m.num_ws)
    _check(G_m, ws_m, x_s, directions)
    _, w_std = w_statistics(G_m, samples=s.w_samples)
    n, target = len(x_s), loss.prepare(x_s)
    variables = _initial(G_m, n, layers, directions, w_std, size, s)

    def objective(step: int, v: Variables) -> tuple[dict[str, Tensor], Tensor]:
        scale = descent.exploration_scale(step / s.num_steps, w_std=w_std, initial=s.eps_initial, length=s.eps_length)
        eps = descent.unit_draw((1, G_m.num_ws, G_m.w_dim), seed=s.seed, step=step).to(ws_m) * scale
        ws = codes(ws_m, v, layers, directions)  # w_m + w_opt
        image = G_m.synthesis(ws + eps, noise=noise_of(v) or "const", size=size)  # G_m(w_m + w_opt + eps, n)
        terms = dict(loss(image, target))  # d_h[G_m(...), x_s]
        free = v["w_opt"] if directions is None else v["w"]
        terms["reg"] = s.lam_reg * free.square().sum() / n  # lam_reg ||w_opt||^2
        return terms, image

    def after_step(v: Variables) -> None:
        for m in noise_of(v).values():
            normalise_(m)

    config = asdict(s) | {
        "layers": layers,
        "loss": loss.describe(),
        "generator": fingerprint(G_m.state_dict()),
        "pair": fingerprint({"ws": ws_m, "x": x_s, **({} if directions is None else {"e": directions})}),
    }
    return descent.descend(
        variables,
        objective,
        num_steps=s.num_steps,
        lr=s.lr,
        lr_schedule=lambda t: descent.lr_ramp(t, ramp_up=s.lr_ramp_up, ramp_down=s.lr_ramp_down),
        after_step=after_step,
        resume=resume,
        config=config,
    )


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
    """The lam_reg at which a w_opt as long as w_std costs `share` of d_h at the mixed images (mean over the pairs).

    d_h is a sum over positions and channels, so no number serves two resolutions or two networks; this ratio does.
    """
    share, w_samples = number("share", share, "[0, inf)"), number("w_samples", w_samples, RANGES["w_samples"])
    _check(G_m, ws_m, x_s, None)
    image = G_m.synthesis(ws_m, size=canvas_size(G_m, x_s))
    return share * float(sum(loss(image, x_s).values())) / w_statistics(G_m, samples=w_samples)[1] ** 2


def codes(ws_m: Tensor, variables: Variables, layers: Sequence[int], directions: Tensor | None = None) -> Tensor:
    """ws = w_m + w_opt on `layers`, or w_m + sum_i w_i e_i; the other codes are those of ws_m, bit for bit."""
    if directions is None:
        offset = variables["w_opt"]  # [N, L, w_dim]
    else:
        offset = (variables["w"] @ directions.T.to(ws_m)).expand(-1, len(layers), -1)  # [N, 1 or L, K] @ [K, w_dim]
    return ws_m.index_add(1, torch.as_tensor(layers, device=ws_m.device), offset)


def checked_layers(layers: Sequence[int], num_ws: int) -> list[int]:
    """The layers as ascending indices; `UnknownName` for none, one twice, or one that is no code; else as `number`."""
    found = [number("layer", i, "whole (-inf, inf)") for i in layers]
    if not found or len(set(found)) < len(found) or min(found) < 0 or max(found) >= num_ws:
        raise UnknownName(
            f"layers {list(layers)}",
            expected=f"one or more different codes from 0 to {num_ws - 1}",
            do="the early ones, lso.early_layers, hold pose and semantics",
        )
    return sorted(found)


def _check(G_m: nn.Module, ws_m: Tensor, x_s: Tensor, directions: Tensor | None) -> None:
    if ws_m.shape != (len(x_s), G_m.num_ws, G_m.w_dim):
        raise ShapeError(
            f"mixed codes {tuple(ws_m.shape)} for {len(x_s)} content pictures",
            expected=f"[{len(x_s)}, {G_m.num_ws}, {G_m.w_dim}]",
            do="mix one code for each picture with mixing.lerp_ws",
        )
    if directions is not None and (directions.ndim != 2 or len(directions) != G_m.w_dim or not directions.shape[1]):
        raise ShapeError(
            f"directions of shape {tuple(directions.shape)}",
            expected=f"[{G_m.w_dim}, K], one direction a column",
            do="take the first K columns of directions.closed_form(G_m)[1]",
        )


def _initial(G_m, n, layers, directions, w_std, size, s: Settings) -> Variables:
    """Small random numbers around zero, the same for every pair; the generator's own noise maps."""
    width = G_m.w_dim if directions is None else directions.shape[1]
    rows = 1 if directions is not None and s.shared else len(layers)
    start = descent.unit_draw((1, rows, width), seed=s.seed, step=-1).to(G_m.w_avg) * (s.init_scale * w_std)
    variables = {"w_opt" if directions is None else "w": start.expand(n, -1, -1)}
    if s.optimise_noise:
        maps = G_m.noise_maps(size)
        check_spread(maps)
        variables |= {NOISE + k: m.expand(n, -1, -1) for k, m in maps.items()}
    return variables


def solve(
    G_m: nn.Module,
    ws_m: Tensor,
    x_s: Tensor,
    loss: Callable[[Tensor, Any], dict[str, Tensor]],
    *,
    watch: Callable[[Iterator[Iterate]], Iterator[Iterate]] = iter,
    checkpoint: str | Path | None = None,
    every: int = 10,
    **options: Any,
) -> Result:
    """Run `optimise` to its end (or to the end of `watch`) and return the last iterate as an `inversion.Result`.

    The last and not the best: with eps in the loss the least value met belongs to a lucky draw, and for a batch it
    would be the step at which the sum was least. Its ws are w_m + w_opt, its image is without eps.

    Args:
        checkpoint: a state file; written every `every` steps and resumed from when it exists; deleted at the end.
            One that is no state, of another run, or of one that is at work now, is refused before the first step.
        options: everything `optimise` takes.
    """
    start = time.perf_counter()
    begin = lambda resume: optimise(G_m, ws_m, x_s, loss, **(options | {"resume": resume} if resume else options))
    with descent.held(checkpoint) as saved:
        it = descent.completed(begin(saved()), watch=watch, checkpoint=checkpoint, every=every)
        state, size = it.state(), canvas_size(G_m, x_s)
        ws = codes(ws_m, it.variables, state.config["layers"], options.get("directions"))
        noise = noise_of(it.variables)
        with torch.no_grad():
            image = G_m.synthesis(ws, noise=noise or "const", size=size)
    done = it.step + 1 == state.config["num_steps"]
    return Result(
        ws=ws,
        noise=noise,
        image=image,
        history=state.history,
        config=state.config,
        seconds=time.perf_counter() - start,
        peak_bytes=peak_bytes(x_s.device),
        ended="all steps done" if done else f"stopped by its watcher after step {it.step}",
        best_step=it.step,
    )
