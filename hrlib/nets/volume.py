"""Volume rendering along rays: the rays of a camera, places on them, and the integral of what lies there.

Numerics are those of CIPS-3D (github.com/PeterouZh/CIPS-3D, after pi-GAN): evenly spaced samples, each shifted by up
to half a step; a second, finer set of samples drawn where the first found density; all of them integrated together.
Every random draw is an argument, and without it the result is deterministic.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = 1e10  # length of the last interval: whatever density is there takes all the light that is left


def directions(height: int, width: int, fov: float, *, centres: bool, like: Tensor) -> Tensor:
    """[H * W, 3] unit directions in the camera's frame, row by row from the top; the shorter side spans `fov` degrees.

    centres: rays through the middles of pixels, so that every size shows the same picture. CIPS-3D's own grid has its
    outermost rays at the very edges of the picture.
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
    """Distances of samples along rays: [S, 1], or with `perturb` (uniform in [0, 1], [N, R, S, 1]) of its shape."""
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
        values: [N, R, S, C] what each sample emits. sigma: [N, R, S, 1] density before its clamp.
        z: [N, R, S, 1] distances. noise: added to sigma.
        clamp: "relu" or "softplus", which makes densities of any number.
        last_back: the last sample takes the light that nothing has taken. white_back: white takes it.
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
    """[N, R, S, 1] distances drawn from the density of light that `weights` [N, R, S, 1] at z describe.

    u: uniform in [0, 1], [N, R, S]; without it the quantiles are evenly spaced. No gradient passes.
    """
    z, weights = z.detach()[..., 0], weights.detach()[..., 0] + 1e-5
    edges, mass = 0.5 * (z[..., :-1] + z[..., 1:]), weights[..., 1:-1] + 1e-5
    cdf = (mass / mass.sum(-1, keepdim=True)).cumsum(-1)
    cdf = torch.cat((torch.zeros_like(cdf[..., :1]), cdf), -1)  # [N, R, S - 1], as many as edges
    u = torch.linspace(0, 1, z.shape[-1]).to(z).expand(z.shape) if u is None else u
    right = torch.searchsorted(cdf, u.contiguous())
    below, above = (right - 1).clamp(min=0), right.clamp(max=cdf.shape[-1] - 1)
    low, high = cdf.gather(-1, below), cdf.gather(-1, above)
    span = torch.where(high - low < 1e-5, 1.0, high - low)
    start, end = edges.gather(-1, below), edges.gather(-1, above)
    return (start + (u - low) / span * (end - start))[..., None]


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
    """What a second camera would see, by depth alone, of what the first one saw: the test of views' consistency.

    Args:
        image, depth: [N, C, H, H] and [N, 1, H, H] from `camera` [N or 1, 4, 4], rays through pixel centres.
        other_depth: [N, 1, H, H] from the camera `other`.
        tolerance: by how much the two depths may disagree about a point; one that differs more is hidden from one of
            them. In the unit of depths.

    Returns:
        The picture of `other` [N, C, H, H] made of `image`, and a mask [N, 1, H, H] of 0 or 1 where both see a point.
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
