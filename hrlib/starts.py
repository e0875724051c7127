"""Where an inversion starts: codes read off the target by a linear map. An addition; the projector starts at the mean.

    w0 = offset + A (p(x) - mean) / spread     p: the maps of a perceptual loss, averaged over parts of the picture

A is fitted in closed form on the generator's own samples, whose w is known (`hrlab train start`). The map knows nothing
else, so w0 is only where the descent of Eq. (1) begins::

    start = starts.load("portraits_inr128_start")
    run = inversion.invert(G, x, loss, ws_init=start.codes(x, G))
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import losses, store, weights
from .errors import LayoutMismatch

KEYS = ("mapping", "loss", "perceptual", "resize", "cells")  # metadata of a file


@dataclass(frozen=True)
class Start:
    """A linear map from pooled features of a picture to w; made by `load`.

    state: {"mean": [D], "scale": [D] (1 / spread), "weight": [D, w_dim], "offset": [w_dim]}. loss: the perceptual loss
    whose maps are pooled, over cells x cells parts of the picture, which is resized to an edge of `resize` pixels (None
    keeps it). mapping: the fingerprint of the mapping network whose w it predicts.
    """

    state: dict[str, Tensor]
    loss: losses.Perceptual
    resize: int | None
    cells: int
    mapping: str

    def codes(self, x: Tensor, G: nn.Module) -> Tensor:
        """w0 for pictures x [N, 3, H, W] in [-1, 1], the same in every layer: [N, num_ws, w_dim], for `ws_init`.

        Raises:
            LayoutMismatch: G has another w.
        """
        self.check(G)
        part = {k: v.to(x) for k, v in self.state.items()}
        p = pooled(self.loss.to(x.device), x, resize=self.resize, cells=self.cells)
        w = part["offset"] + ((p - part["mean"]) * part["scale"]) @ part["weight"]  # [N, w_dim]
        return w[:, None].repeat(1, G.num_ws, 1)

    def check(self, G: nn.Module) -> None:
        """Raise `LayoutMismatch` unless it was fitted on samples of this generator, or of one with the same w."""
        if store.fingerprint(G.mapping.state_dict()) != self.mapping:
            raise LayoutMismatch(
                f"a start for another {type(G).__name__}",
                expected="one that was fitted on samples of this generator",
                do="leave it out, or fit one with `hrlab train start`",
            )


@torch.no_grad()
def pooled(loss: losses.Perceptual, x: Tensor, *, resize: int | None, cells: int) -> Tensor:
    """p(x): every map of the loss, averaged over cells x cells parts of the picture: [N, sum of C cells^2]."""
    maps = loss.features(x, loss.weights, resize=resize)
    return torch.cat([F.adaptive_avg_pool2d(m, cells).flatten(1) for m in maps.values()], 1)


def load(name_or_path: str | os.PathLike) -> Start:
    """The start in a file of `hrlab train start`, by catalogue name or path.

    Raises:
        LayoutMismatch: a file of another kind. MissingWeights: its perceptual network is not on this machine.
    """
    state, about = weights.load_state(name_or_path)
    if missing := [key for key in KEYS if key not in about]:
        raise LayoutMismatch(
            f"{name_or_path} without {', '.join(missing)}",
            expected="a file of `hrlab train start`",
            do="check the name, or fit one",
        )
    loss = losses.named(about["loss"], weights=about["perceptual"])
    return Start(state, loss, int(about["resize"]) or None, int(about["cells"]), about["mapping"])


def of(generator: str) -> str:
    """The name of the shipped start for a generator of the catalogue; "" if there is none."""
    name = f"{generator}_start"
    return name if name in weights.catalogue() else ""
