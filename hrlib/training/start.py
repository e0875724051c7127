"""Fit a start (`hrlib.starts`): ridge regression of w on pooled features of the generator's own samples.

Samples are drawn without truncation, z ~ N(0, I), one w for all layers, with the generator's own noise. Their features
are cached in the folder, so an interrupted fit goes on where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import losses, metrics, starts, store, weights
from ..errors import SEED, number
from ..nets import MobileGenerator
from . import shipping
from .gan_measures import Ridge

EDGE, CELLS = 256, 2  # the largest edge of what the features see, and cells a side over which they are averaged
SAMPLES, HELD, STEP = {None: 3000, EDGE: 1000}, 50, 100  # to fit on, to measure on, and between two saves


def samples(G: nn.Module, loss: losses.Perceptual, folder: Path, n: int, how: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(w [n, w_dim], p [n, D]) of samples 0 to n - 1; an interrupted call resumes. how: resize, cells, seed."""
    parts = []
    for first in range(0, n, STEP):
        file = folder / f"samples_{first:05d}.safetensors"
        if not file.exists():
            codes, pools = [], []
            for i in range(first, first + STEP):
                w, x = sample(G, how["seed"], i)
                codes.append(w)
                pools.append(starts.pooled(loss, x, resize=how["resize"], cells=how["cells"]))
            weights.save_state({"w": torch.cat(codes), "p": torch.cat(pools)}, file, force=True)
        parts.append(weights.load_state(file)[0])
    return torch.cat([part["w"] for part in parts])[:n], torch.cat([part["p"] for part in parts])[:n]


@torch.no_grad()
def sample(G: nn.Module, seed: int, i: int) -> tuple[Tensor, Tensor]:
    """(w [1, w_dim], picture [1, 3, H, W] in [-1, 1]) of sample i."""
    z = torch.randn(1, G.z_dim, generator=torch.Generator().manual_seed(seed * 1_000_003 + i))
    w = G.mapping.w(z)
    return w, draw(G, w)


@torch.no_grad()
def draw(G: nn.Module, w: Tensor) -> Tensor:
    """The picture of one w in all layers."""
    return G.synthesis(w[:, None].repeat(1, G.num_ws, 1)).clamp(-1, 1)


def run(
    generator: str,
    out: str | os.PathLike | None = None,
    *,
    loss: str | None = None,
    perceptual: str | None = None,
    folder: str | Path | None = None,
    n: int | None = None,
    held: int = HELD,
    seed: int = 0,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> dict[str, float]:
    """Sample, fit, measure on further samples, and write the start with its card.

    Args:
        generator: catalogue name or file.
        out: the file to write; None is data/weights/GENERATOR_start.safetensors.
        loss, perceptual: name and weights for `losses.named`: a perceptual loss, whose maps are pooled; None stands for
            EfficientNet-Lite0 with a MobileStyleGAN, and the shipped VGG16 otherwise. It sees pictures of at most
            EDGE pixels.
        folder: for the samples' features; by default build/training/start.
        n, held: numbers of samples to fit on (10 or more; None: 3,000, and 1,000 above EDGE) and to measure on.
        seed: of the samples.
        force: replace `out` and its card.
        tell: called with a line of progress.

    Returns:
        R^2 of w, and PSNR in dB of the pictures of w0, of the nearest sample and of the mean code, on held-out samples.

    Raises:
        InvalidValue: a number is out of range. StoreError: `out` exists, or cannot be written.
    """
    name = f"{Path(generator).stem}_start"
    file = shipping.free(shipping.place(name, out), force=force)
    G = weights.load_generator(generator)
    resize = EDGE if G.resolution > EDGE else None
    n, held = number("n", n or SAMPLES[resize], "whole [10, inf)"), number("held", held, "whole [2, inf)")
    how = {"resize": resize, "cells": CELLS, "seed": number("seed", seed, SEED)}
    suited = ("efficientnet_dense", "imagenet") if isinstance(G, MobileGenerator) else ("vgg_conv", "shipped")
    loss, perceptual = loss or suited[0], perceptual or suited[1]
    d = losses.named(loss, weights=perceptual)
    what = how | {"generator": store.fingerprint(G.state_dict()), "loss": d.describe()}
    folder = Path(folder or f"build/training/start/{name}")
    with store.claimed(folder, "cache of samples", what, again=True):
        tell(f"{n + held} samples of {generator}")
        w, p = samples(G, d, folder, n + held, how)
    model = Ridge(p[:n], w[:n])
    # A feature that hardly varies among samples (a dead channel) says nothing, and far too much off the samples.
    scale = torch.where(1 / model.scale > 1e-3 * p[:n].std(0).median(), model.scale, 0.0)
    state = {"mean": model.mean.float(), "scale": scale.float(), "offset": model.offset.float()}
    state["weight"] = model.weight.half()  # w0 is a guess, and three digits are enough
    about = {
        "card": f"ridge regression on {n} samples of {generator}, seed {seed}",
        "mapping": store.fingerprint(G.mapping.state_dict()),
        "loss": loss,
        "perceptual": perceptual,
        "resize": str(resize or 0),
        "cells": str(CELLS),
    }
    stored = {k: t.float() for k, t in state.items()}
    found = measured(G, starts.Start(stored, d, resize, CELLS, about["mapping"]), n, held, w, p, how["seed"])
    weights.save_state(state, file, about, force=True)
    known = weights.catalogue().get(generator)
    terms = f"; with the generator, {known.licence}" if known and known.licence != "MIT" else ""
    shipping.enter(file, card(name, generator, about, found, n=n, held=held, seed=seed), licence=f"MIT{terms}")
    return found


@torch.no_grad()
def measured(G: nn.Module, start: starts.Start, n: int, held: int, w: Tensor, p: Tensor, seed: int) -> dict[str, float]:
    """What `run` returns."""
    spread = (w[n:] - w[:n].mean(0)).square().sum()
    near = torch.cdist(p[n:] / p[:n].std(0).clamp_min(1e-8), p[:n] / p[:n].std(0).clamp_min(1e-8)).argmin(1)
    error, psnr = 0.0, {"w0": 0.0, "the nearest sample": 0.0, "the mean code": 0.0}
    for i in range(held):
        x = sample(G, seed, n + i)[1]
        w0 = start.codes(x, G)[:, 0]
        error += float((w0 - w[n + i]).square().sum())
        for name, code in zip(psnr, (w0, w[near[i]][None], G.w_avg[None]), strict=True):
            psnr[name] += float(metrics.psnr(draw(G, code), x)[0]) / held
    return {"R^2 of w": 1 - error / float(spread)} | {f"PSNR of {name}, dB": value for name, value in psnr.items()}


def card(name: str, generator: str, about: dict[str, str], found: dict[str, float], *, n: int, held: int, seed: int):
    """The model card, Markdown."""
    rows = "\n".join(f"  | {what} | {value:.2f} |" for what, value in found.items())
    edge = f"pictures of {about['resize']} px" if about["resize"] != "0" else "whole pictures"
    return f"""# {name}

Where an inversion with `{generator}` starts: a linear map from a picture's features to w; see `hrlib.starts`. An
addition to the paper's method, whose projector starts at the mean code.

- **Features**: the maps of the loss {about["loss"]} ({about["perceptual"]} weights) on {edge}, averaged over
  {CELLS} x {CELLS} parts.
- **Data**: {n:,} samples of the generator, z ~ N(0, I), not truncated, seed {seed}; no other picture.
- **Recipe**: ridge regression, the penalty of each component of w by generalised cross-validation.
- **Command**: `hrlab train start {generator} --force`.
- **Measured** on {held} further samples:

  | | |
  |---|---|
{rows}

- **Limits**: it begins an inversion and does not end one: what makes a person this person comes from the descent. Of
  use only with this generator and these features. Stored in 16 bits a number.
- **Licence**: MIT for the numbers; with the generator, its terms.
"""
