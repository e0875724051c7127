"""Directions in a generator's latent space in closed form (Shen and Zhou 2021), for Eq. (9).

A layer turns a code w into styles by an affine map A w + b, so steps along the eigenvectors of A^T A with the largest
eigenvalues change its styles the most. The factorisation needs no data and no optimisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .errors import InvalidValue, UnknownName, nearest


def layer_names(G: nn.Module) -> list[str]:
    """The layer that each code drives: ["b4.conv1", "b8.conv0", ..., the last layer to RGB]; entry i is that of code i.

    The last one is "inr" in a Style-INR-GAN, otherwise the last block's torgb. In MobileStyleGAN the code of a conv0
    also drives the block's up, which `closed_form` takes with it.
    """
    return [
        *G.synthesis.conv_names(),
        "inr" if hasattr(G.synthesis, "inr") else f"b{G.synthesis.resolutions[-1]}.torgb",
    ]


def closed_form(
    G: nn.Module, layers: str | Sequence[int | str] = "all", *, normalise: bool = True
) -> tuple[Tensor, Tensor]:
    """Eigenvalues [w_dim] in descending order, and orthonormal eigenvectors [w_dim, w_dim] in W, one a column.

    The sign of an eigenvector is arbitrary; here its largest component is positive. Computed in float64.

    Args:
        G: any generator; for Eq. (9) the mixed one.
        layers: "all" (see `layer_names`: without the toRGB layers of the inner blocks, as in the published code), or
            indices of codes, or names of layers (also "b4.torgb").
        normalise: True scales each row of A to unit length, so that layers with large weights do not dominate
            (genforce's code); False is rosinality's variant, whose layers are b4's toRGB and all convolutions.

    Raises:
        UnknownName: a layer that does not exist. InvalidValue: no layer at all.
    """
    names = layer_names(G)
    chosen = list(range(len(names))) if layers == "all" else [layers] if isinstance(layers, str) else list(layers)
    if not chosen:
        raise InvalidValue("no layers", expected='"all", or one or more', do=f"choose from {', '.join(names)}")
    A = torch.cat([_affine(G, layer, names) for layer in chosen]).detach().double()  # [sum C, w_dim]
    if normalise:
        A = A / A.norm(dim=1, keepdim=True).clamp(min=1e-30)
    eigenvalues, vectors = torch.linalg.eigh(A.T @ A)  # ascending
    eigenvalues, vectors = eigenvalues.flip(0).clamp(min=0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))  # [1, w_dim]
    return eigenvalues, vectors * largest.sign()


def _affine(G: nn.Module, layer: int | str, names: list[str]) -> Tensor:
    """The matrix A [C, w_dim] of one layer."""
    if isinstance(layer, str):
        known = [n.removesuffix(".affine") for n, m in G.synthesis.named_modules() if n.endswith(".affine")]
        good, name = layer in known, layer
    else:
        known, good = list(range(len(names))), layer in range(len(names))
        name = names[int(layer)] if good else ""
    if not good:
        hint = nearest(layer, known) if isinstance(layer, str) else ""
        raise UnknownName(f"layer {layer!r}", expected=f"one of {known}", do=hint or "see directions.layer_names(G)")
    driven = [name]
    if not isinstance(layer, str):  # a code of MobileStyleGAN drives "b8.up" and "b8.conv0"
        modules = dict(G.synthesis.named_modules())
        driven = [n for n in dict.fromkeys((name.replace("conv0", "up"), name)) if n in modules]
    return torch.cat([G.synthesis.get_submodule(f"{n}.affine").weight for n in driven])
