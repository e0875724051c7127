"""Fits "ffhq_matte", the linear probe with which `worlds.imagined` cuts a head out of a picture of the FFHQ generator.

There is no label drawn by hand and no other network. FFHQ's alignment says where a face, hair, clothes and background
certainly are in most pictures; the generator's features say what looks alike; each step corrects the one before:

1. four linear classes on the features of b32 and b64, from those zones of 72 samples; then five rounds in which each
   pixel takes the label of which the last round was certain. It cuts well, but takes long hair for background, since
   these features know where they are;
2. in each sample, person against background by looks alone (b128 and colours), from the pixels of which step 1 is
   certain, background only above the shoulders: long hair looks like the hair on the head;
3. one linear probe on b32, b64 and b128, from step 2 in all samples: its errors there do not agree, so they cancel.

Prints how far the probe agrees with the shipped one, and writes nothing unless asked: `fit_matte.py FILE`. Two minutes,
3 GB.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from hrlib import weights
from hrlib.worlds.imagined import GENERATOR

SAMPLES, PSI, SIDE = 72, 0.85, 64
Y, X = torch.meshgrid(*[(torch.arange(SIDE) + 0.5) / SIDE] * 2, indexing="ij")
ZONES = torch.stack(
    [
        (((X - 0.5) / 0.17) ** 2 + ((Y - 0.58) / 0.2) ** 2 < 1) | (((X - 0.5).abs() < 0.1) & (Y > 0.7) & (Y < 0.93)),
        ((X - 0.5).abs() < 0.16) & (Y > 0.11) & (Y < 0.2),  # hair
        ((X - 0.5).abs() < 0.3) & (Y > 0.95),  # clothes
        (((X - 0.5).abs() > 0.44) & (Y < 0.5)) | ((Y < 0.04) & ((X - 0.5).abs() > 0.25)),  # background
    ]
)
SHARES = torch.tensor([1.0, 1.0, 0.6, 1.6])  # weights of the classes


def solve(x: Tensor, targets: Tensor, weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weighted ridge regression of targets [N, K] on x [N, C]: coefficients [C, K] and constants [K]."""
    x1 = torch.cat([x, torch.ones(len(x), 1)], 1)
    A = (x1 * weight[:, None]).T @ x1
    A.diagonal()[:-1].add_(ridge * A.diagonal()[:-1].mean())
    v = torch.linalg.solve(A, (x1 * weight[:, None]).T @ targets)
    return v[:-1], v[-1]


def samples() -> tuple[dict[int, Tensor], Tensor]:
    """Features {32, 64, 128: [N, C, 64, 64], half precision} and pictures [N, 3, 64, 64] in [-1, 1]."""
    G = weights.load_generator(GENERATOR)
    features, pictures = {32: [], 64: [], 128: []}, []
    for seed in range(1001, 1001 + SAMPLES):
        z = torch.randn(1, G.z_dim, generator=torch.Generator().manual_seed(seed))
        for res, x, rgb in G.synthesis.blocks(G.mapping(z, PSI)):
            if res in features:
                x = F.avg_pool2d(x, 2) if res == 128 else F.interpolate(x, size=(SIDE, SIDE))
                features[res].append(x[0].half())
        pictures.append(F.interpolate(rgb.clamp(-1, 1), size=(SIDE, SIDE), mode="area")[0])
    return {res: torch.stack(x) for res, x in features.items()}, torch.stack(pictures)


def certain_zones(x: Tensor) -> Tensor:
    """Step 1: from x [N, C, 64, 64], person minus background [N, 64, 64], about -1 to 1."""
    flat = x[:, :, ::2, ::2].permute(0, 2, 3, 1).flatten(0, 2)
    mean = flat.mean(0)
    zones = ZONES[:, ::2, ::2].flatten(1)
    labels, known = zones.float().argmax(0).repeat(len(x)), zones.any(0).float().repeat(len(x))
    for _ in range(5):
        targets = F.one_hot(labels, 4).float()
        weight = known * (SHARES / (targets * known[:, None]).sum(0))[labels] * 1e4
        v, constant = solve(flat - mean, targets, weight, ridge=3e-3)
        best = ((flat - mean) @ v + constant).topk(2, 1)
        labels, known = best.indices[:, 0], (best.values[:, 0] - best.values[:, 1] > 0.35).float()
    side = v[:, :3].sum(1) - v[:, 3]
    return torch.einsum("nchw,c->nhw", x - mean[:, None, None], side) + constant[:3].sum() - constant[3]


def by_looks(margin: Tensor, x: Tensor, picture: Tensor) -> Tensor:
    """Step 2, one sample: a new margin [64, 64] from the one of step 1, features x [C, 64, 64] and the picture."""
    colours = 3 * picture
    looks = torch.cat([x, colours, F.avg_pool2d(colours[None], 3, 1, 1)[0]]).flatten(1).T
    person, edge = margin > 0.5, (X - 0.5).abs() > 0.44
    background = (margin < -0.7) & ((Y < 0.3) | ((Y < 0.45) & edge))
    weight = (person / person.sum().clamp(min=1) + background / background.sum().clamp(min=1)).flatten() * 1000
    targets = torch.where(person, 1.0, -1.0).flatten()[:, None]
    looks = looks - looks.mean(0)
    v, constant = solve(looks, targets, weight, ridge=1e-2)
    found = F.avg_pool2d((looks @ v + constant).reshape(1, SIDE, SIDE), 3, 1, 1)[0]
    return torch.where(person, margin, found).clamp(-1, 1)


@torch.no_grad()
def main() -> None:
    features, pictures = samples()
    scale = {res: x[:8].float().std() for res, x in features.items()}
    features = {res: x / scale[res].half() for res, x in features.items()}
    margins = certain_zones(torch.cat([features[32], features[64]], 1).float())
    margins = torch.stack([by_looks(m, x.float(), p) for m, x, p in zip(margins, features[128], pictures, strict=True)])
    A, b = 0.0, 0.0
    for i, margin in enumerate(margins):
        x = torch.cat([x[i].float() for x in features.values()]).flatten(1).T
        x1, target = torch.cat([x, torch.ones(len(x), 1)], 1), margin.flatten()
        weighted = (x1 * target.abs().clamp(min=0.05)[:, None]).T
        A, b = A + (weighted @ x1).double(), b + (weighted @ target).double()
    A.diagonal()[:-1].add_(3e-3 * A.diagonal()[:-1].mean())
    v = torch.linalg.solve(A, b).float()
    parts = dict(zip((32, 64, 128), v[:-1].split([x.shape[1] for x in features.values()]), strict=True))
    probe = {f"b{res}": part / scale[res] for res, part in parts.items()} | {"bias": v[-1]}

    shipped = weights.load_state("ffhq_matte")[0]
    old, new = (
        sum(torch.einsum("nchw,c->nhw", x.float(), p[f"b{r}"] * scale[r]) for r, x in features.items()) + p["bias"]
        for p in (shipped, probe)
    )
    print(f"the same side as the shipped probe at {((old > 0) == (new > 0)).float().mean():.2%} of the pixels")
    if len(sys.argv) > 1:
        weights.save_state(probe, sys.argv[1])


if __name__ == "__main__":
    main()
