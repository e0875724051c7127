"""Volume rendering along rays: a camera's rays, sample points on them, and the integral of density and colour.

Numerics are those of CIPS-3D (github.com/PeterouZh/CIPS-3D, after pi-GAN): evenly spaced samples, each shifted by up to
half a step; a second, finer set of samples where the first found density; all of them integrated together. Random draws
are arguments; without them the result is deterministic.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = 1e10  # length of the last interval: any density there absorbs all remaining light


def directions(height: int, width: int, fov: float, *, centres: bool, like: Tensor) -> Tensor:
    """[H * W, 3] unit directions in the camera's frame, row by row from the top; the shorter side spans `fov` degrees.

    centres: send rays through pixel centres, so that every size shows the same picture. Otherwise, as in CIPS-3D, the
        outermost rays pass through the picture's edges.
    """
    short = min(height, width)
    if centres:
        line = lambda n: ((torch.arange(n) + 0.5) * 2 - n) / short
    else:
        line = lambda n: torch.linspace(-1, 1, n) * ((n - 1) / max(short - 1, 1))
    y, x = torch.meshgrid(-line(height), line(width), indexing="ij")
    z = torch.full_like(x, -1 / math.tan(math.radians(fov) / 2))
    return F.normalize(torch.stack((x, y, z), -1).reshape(-1, 3), dim=-1).to(like)


def places(count: int, near: float, far: float, perturb: Tensor | None, like: Tensor) -> Tensor:
    """Distances of samples along rays: [S, 1], or [N, R, S, 1] with `perturb`, of that shape and uniform in [0, 1]."""
    z = torch.linspace(near, far, count).to(like)[:, None]
    return z if perturb is None else z + (perturb - 0.5) * ((far - near) / (count - 1))


def integrate(
    values: Tensor,
    sigma: Tensor,
    z: Tensor,
    noise: Tensor | None = None,
    *,
    clamp: str = "relu",
    last_back: bool = False,
    white_back: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(light [N, R, C], expected depth [N, R, 1], weights [N, R, S, 1]) of samples sorted from near to far.

    Args:
        values: [N, R, S, C], what each sample emits. sigma: [N, R, S, 1], its density before the clamp.
        z: [N, R, S, 1], distances. noise: added to sigma.
        clamp: "relu" or "softplus", the function that makes densities non-negative.
        last_back: give the light that no sample absorbs to the last sample. white_back: replace it by white.
    """
    step = torch.cat((z[:, :, 1:] - z[:, :, :-1], torch.full_like(z[:, :, :1], FAR)), 2)
    sigma = sigma if noise is None else sigma + noise
    alpha = 1 - torch.exp(-step * (F.relu(sigma) if clamp == "relu" else F.softplus(sigma)))
    passed = torch.cumprod(torch.cat((torch.ones_like(alpha[:, :, :1]), 1 - alpha + 1e-10), 2), 2)[:, :, :-1]
    weights = alpha * passed
    total = weights.sum(2)
    if last_back:
        weights = torch.cat((weights[:, :, :-1], weights[:, :, -1:] + (1 - total)[:, :, None]), 2)
    light = (weights.mT @ values)[:, :, 0]  # [N, R, 1, S] @ [N, R, S, C]
    depth = (weights * z).sum(2)
    return (light + 1 - total if white_back else light), depth, weights


def finer(z: Tensor, weights: Tensor, u: Tensor | None) -> Tensor:
    """[N, R, S, 1] distances drawn from the distribution that `weights` [N, R, S, 1] at z describe.

    u: uniform in [0, 1], [N, R, S]; without it, evenly spaced quantiles. No gradient passes.
    """
    z, weights = z.detach()[..., 0], weights.detach()[..., 0] + 1e-5
    edges, mass = 0.5 * (z[..., :-1] + z[..., 1:]), weights[..., 1:-1] + 1e-5
    cdf = (mass / mass.sum(-1, keepdim=True)).cumsum(-1)
    cdf = torch.cat((torch.zeros_like(cdf[..., :1]), cdf), -1)  # [N, R, S - 1], one per edge
    u = torch.linspace(0, 1, z.shape[-1]).to(z).expand(z.shape) if u is None else u
    right = torch.searchsorted(cdf, u.contiguous())
    below, above = (right - 1).clamp(min=0), right.clamp(max=cdf.shape[-1] - 1)
    low, high = cdf.gather(-1, below), cdf.gather(-1, above)
    span = torch.where(high - low < 1e-5, 1.0, high - low)
    start, end = edges.gather(-1, below), edges.gather(-1, above)
    return (start + (u - low) / span * (end - start))[..., None]


def surface(z: Tensor, sigma: Tensor, level: float) -> Tensor:
    """[N, R, 1, 1]: the distance at which the density of each ray first reaches `level`; if nowhere, of its maximum.

    z, sigma: [N, R, S, 1] distances, near to far, and densities there, between which the crossing is interpolated.
    """
    inside = sigma > level
    first = torch.where(
        inside.any(2, keepdim=True), inside.byte().argmax(2, keepdim=True), sigma.argmax(2, keepdim=True)
    )
    before = (first - 1).clamp(min=0)
    (z0, z1), (s0, s1) = ((v.gather(2, before), v.gather(2, first)) for v in (z, sigma))
    share = ((level - s0) / (s1 - s0).clamp(min=1e-6)).clamp(0, 1)
    return z0 + (z1 - z0) * share


def reproject(
    image: Tensor,
    depth: Tensor,
    camera: Tensor,
    other_depth: Tensor,
    other: Tensor,
    fov: float,
    *,
    tolerance: float = 0.015,
) -> tuple[Tensor, Tensor]:
    """Warp one view to a second camera by depth, to test whether the views are consistent.

    Args:
        image, depth: [N, C, H, H] and [N, 1, H, H] seen from `camera` [N or 1, 4, 4], with rays through pixel centres.
        other_depth: [N, 1, H, H] seen from the camera `other`.
        tolerance: the largest difference of the two depths at a point that both cameras see; where it is larger, the
            point is hidden from one of them. In the unit of the depths.

    Returns:
        `image` as seen from `other` [N, C, H, H], and a mask [N, 1, H, H]: 1 where both cameras see the point, else 0.
    """
    n, _, height, width = image.shape
    local = directions(height, width, fov, centres=True, like=image)
    points = other[:, None, :3, 3] + local @ other[:, :3, :3].mT * other_depth.flatten(2).mT  # [N, H W, 3]
    seen = (points - camera[:, None, :3, 3]) @ camera[:, :3, :3]  # in the first camera's frame
    flat = seen[..., :2] / -seen[..., 2:] / math.tan(math.radians(fov) / 2)
    grid = (flat * torch.tensor([1.0, -1.0]).to(flat)).reshape(n, height, width, 2)
    look = lambda x: F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    distance = seen.norm(dim=-1).reshape(n, 1, height, width)
    inside = (grid.abs() < 1).all(-1)[:, None]
    return look(image), ((look(depth) - distance).abs() < tolerance).float() * inside
