"""Camera rays and their intersections with the star-shaped head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import compact
from ._head import Bake, lookup, to_chart

Components = tuple[Tensor, Tensor, Tensor]
FAR = 1e30  # x * FAR clamped to [0, 1] is 1 where x > 0, else 0


@dataclass(frozen=True)
class Hit:
    """Where rays meet the head: [N, K] each.

    t: ray parameter; gap: distance by which the ray misses the head (0 where it hits); deep: 1 where all neighbouring
    coarse rays hit, so that this ray counts as a hit whatever its gap; dx, dy, dz: the ray's direction; px, py, pz: the
    point relative to the head's centre; x, y: its chart coordinates.
    """

    t: Tensor
    gap: Tensor
    deep: Tensor
    dx: Tensor
    dy: Tensor
    dz: Tensor
    px: Tensor
    py: Tensor
    pz: Tensor
    x: Tensor
    y: Tensor

    def pick(self, index: Tensor) -> Hit:
        """The hits at `index` [N, J] of the second axis; each field is gathered when it is first read."""
        return _Picked(self, index)


class _Picked(Hit):
    """A selection of hits that gathers lazily, since painters read few of the fields."""

    def __init__(self, hit: Hit, index: Tensor) -> None:
        vars(self).update(_hit=hit, _index=index)

    def __getattr__(self, name: str) -> Tensor:
        value = vars(self)[name] = getattr(self._hit, name).gather(1, self._index)
        return value


def _march(radius: Tensor, o: Tensor, d: Components, t: Tensor, steps: int, reach: float) -> tuple[Tensor, Tensor]:
    """March along the rays o + t d with a bracketed secant rule.

    Returns:
        The ray parameter of the first hit, or else of the closest approach, and the gap there (0 where the ray hits).
    """
    best_t, best = t, torch.full_like(t, 9.0)
    low, high = t - 0.03 / reach, torch.full_like(t, 9.0)  # outside before `low`, inside at `high`
    last_t = last = None
    for _ in range(steps):
        x, y, dist = to_chart(*(torch.addcmul(o[:, i, None], t, d[i]) for i in range(3)))
        gap = dist.sub_(lookup(radius, x, y)[:, 0])
        inside = (gap * -FAR).clamp_(0, 1)  # masks as numbers: torch.where is many times slower than lerp
        low, high = t.lerp(low, inside), high.lerp(t, inside)
        best_t, best = best_t.lerp(t, best.sub(gap).mul_(FAR).clamp_(0, 1)), torch.minimum(gap, best)
        if last is None:
            ahead = gap * (1 / (1.2 * reach))
        else:
            slope = last.sub_(gap).div_(last_t.sub_(t).sub_(1e-9)).clamp_(-2.5 * reach, -0.25 * reach)
            ahead = (gap / slope).neg_()
        ahead.clamp_(-0.05 / reach, 0.12 / reach).add_(t)
        last_t, last = t.clone(), gap
        width = high - low
        ahead = torch.maximum(ahead, torch.add(low, width.clamp(max=0.2 / reach), alpha=0.15))
        t = torch.minimum(ahead, torch.add(low, width, alpha=0.85))
    struck = (8 - high).mul_(FAR).clamp_(0, 1)
    return best_t.lerp(high, struck), best.clamp_(min=0).mul_(1 - struck)


def intersect(
    baked: Bake,
    o: Tensor,
    coarse: Components,
    fine_at: Callable[[Tensor], Components],
    shape: tuple[int, int],
    reach: float,
) -> tuple[Hit, Tensor]:
    """The first intersections of camera rays with the head: on a coarse grid, then refined where the head may be.

    Args:
        o: [N, 3] the camera relative to the head's centre, in the head frame.
        coarse: three [N, h, w] direction components of the coarse rays; o + d lies on the plane of focus.
        fine_at: flat indices [N, K] -> direction components [N, K] of the fine rays.
        shape: height and width of the fine grid.
        reach: length of the middle ray's direction.

    Returns:
        The hits of the K fine rays that pass near the head, and their flat indices [N, K].
    """
    n, h, w = coarse[0].shape
    d = tuple(c.reshape(n, -1) for c in coarse)
    t0 = torch.full_like(d[0], 1 - 1.25 / reach)
    t, rough = (v.view(n, 1, h, w) for v in _march(baked.radius, o, d, t0, 18, reach))
    close = F.interpolate(F.max_pool2d((rough < 0.05).float(), 3, 1, 1), shape, mode="nearest")
    at = compact(close.reshape(n, -1) > 0)
    # deep inside the silhouette, a ray that passes an edge and runs out of steps still belongs to the head
    struck = F.max_pool2d((rough <= 0).float(), 3, 1, 1)
    deep = F.interpolate(-F.max_pool2d(-struck, 5, 1, 2), shape, mode="nearest").reshape(n, -1).gather(1, at)
    near = -F.max_pool2d(-t, 3, 1, 1)  # the nearest depth around, so that no edge is skipped
    t = F.interpolate(near, shape, mode="bilinear", align_corners=False).reshape(n, -1).gather(1, at) - 0.01 / reach
    d = fine_at(at)
    t, gap = _march(baked.radius, o, d, t, 6, reach)
    p = [o[:, i, None] + t * d[i] for i in range(3)]
    x, y, _ = to_chart(*p)
    return Hit(t, gap, deep, *d, *p, x, y), at
