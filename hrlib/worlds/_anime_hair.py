"""Hair of the anime domain: flat clumps with pointed ends, a ring of light, and strands as lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ._anime_face import brows
from ._common import dot, mix, noise, smooth
from ._paint import Shader
from ._rays import Hit

if TYPE_CHECKING:
    from ._anime import Inked


@dataclass(frozen=True)
class Clumps:
    """Hair in clumps, [N, M] each.

    across: longitude around the parting's axis; along: position along it; edge: 0 in a clump's middle, 1 at its border;
    field: signed depth inside the hair with the clumps' pointed ends (> 0 is hair).
    """

    across: Tensor
    along: Tensor
    edge: Tensor
    field: Tensor


def clumps(s: Shader, hit: Hit, maps: dict[str, Tensor]) -> Clumps:
    """How the hair at the hits divides into clumps; depends only on the person, not on `detail_seed`."""
    p = s.p
    tilt = 0.55 * p["hair_part"]
    axis = F.normalize(torch.cat((tilt.sin() * 0.94, tilt.cos() * 0.94, torch.full_like(tilt, -0.30)), 1), dim=1)
    right = torch.tensor([1.0, 0.0, 0.0], device=axis.device).expand_as(axis)
    e1 = F.normalize(right - axis[:, :1] * axis, dim=1)
    e2 = torch.linalg.cross(axis, e1)
    point = (hit.px, hit.py, hit.pz)
    along = dot(axis, point)
    # below the brow, strands hang down: they keep the longitude they have at the brow's height
    hang = (hit.px, hit.py.clamp(min=0.05), hit.pz)
    across = torch.atan2(dot(e1, hang), -dot(e2, hang))
    # the front of the curtain is a wall along a radius, where the longitude does not change
    out = (hit.px * hit.px + hit.pz * hit.pz).sqrt() * torch.sign(hit.px)
    across = across + 1.0 * out * smooth(0.10, -0.45, hit.py)
    curl = p["hair_curl"].clamp(min=0)
    kink = smooth(0.6, 1.0, curl)
    across = across + curl * 0.075 * torch.sin(along * 15 + across * 5) + 0.10 * kink * torch.sin(along * 31)
    cell = across * (3.1 - 0.5 * p["hair_length"].clamp(-0.6, 0.6)) + 0.55 * torch.sin(
        across * 2.3 + 4 * p["hair_part"]
    )
    cell = cell + 0.30 * torch.sin(across * 5.7 + 3 * p["hair_volume"])
    edge = 2 * (torch.frac(cell + 32) - 0.5).abs()
    long = smooth(0.0, 0.35, p["hair_length"])
    reach = 0.075 + 0.04 * long + 0.06 * p["fringe"].clamp(min=0)
    uneven = 0.7 + 0.3 * torch.sin(across * 9.1 + 7 * p["hair_part"])
    return Clumps(across, along, edge, maps["hair"] + reach * uneven * (0.42 - edge))


def cel(s: Shader, hit: Hit, maps: dict[str, Tensor], own: float) -> Tensor:
    """[N, M] cosine of the key light to a mix of the surface's normal (weight `own`) and a ball's: simple shadows."""
    inv = (hit.px * hit.px + hit.py * hit.py + hit.pz * hit.pz).rsqrt() * (1 - own)
    n = [maps[k] * own + v * inv for k, v in (("nx", hit.px), ("ny", hit.py), ("nz", hit.pz))]
    return dot(s.key, n)


def hair(s: Inked, hit: Hit, maps: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Flat hair [N, 3, M] with shade, ring and strand lines (brows show through); coverage and loose hairs [N, M]."""
    p, c, px, k = s.p, s.flat, s.pixel / 0.72, clumps(s, hit, maps)
    lift = (hit.px * hit.px + hit.py * hit.py + hit.pz * hit.pz).sqrt() - maps["bald"] - 2 * hit.gap
    cover = smooth(-0.6, 0.6, k.field / (1.3 * px))
    cover = torch.maximum(cover, smooth(0.010, 0.030, lift) * smooth(0.0, 0.2, p["hair_length"]))
    kink = smooth(0.6, 1.0, p["hair_curl"])
    puff = torch.sin(k.across * 11 + 2 * torch.sin(k.along * 9)) * torch.sin(k.along * 19 + 2 * torch.sin(k.across * 7))
    jag = mix(0.5 - k.edge, 0.5 * puff, kink)
    ndl = cel(s, hit, maps, 0.12)
    soft = 2.0 * px
    dark = smooth(0.5, -0.5, (ndl + 0.30 * jag + 0.05) / soft)
    back = torch.minimum(0.16 - hit.pz, -0.14 - hit.py) - 0.07 * jag  # hair hanging behind the face is in shade
    dark = torch.maximum(dark, smooth(-0.5, 0.5, back / soft))
    # the angel ring: a band around the lamp's direction, with borders that the clumps make jagged
    lamp = F.normalize(s.up + 0.45 * s.key + 0.25 * s.view, dim=1)
    inv = (hit.px * hit.px + hit.py * hit.py + hit.pz * hit.pz).rsqrt()
    height = dot(lamp, (hit.px * inv, hit.py * inv, hit.pz * inv))
    width = 0.045 * (1 - 0.4 * kink)
    tooth = 0.10 * (k.edge - 0.5) + 0.03 * torch.sin(k.across * 23)
    band = ((height - 0.80 + tooth).abs() - width * smooth(1.0, 0.35, k.edge)) / soft
    ring = smooth(0.5, -0.5, band) * (1 - dark)
    # strands: bold borders between clumps, then ever finer lines up to the output's Nyquist limit
    count = s.octaves(14.0)
    fine = 0.0
    for i in range(max(0, count - 3), count):
        f = 14.0 * 2**i
        fine = fine + noise(k.across * f, k.along * f * 0.07, s.seed, 19 + i) * (0.55 if i < count - 1 else 0.75)
    out = mix(c.hair, c.hair_light, (ring * (0.9 + 0.1 * fine))[:, None])
    out = mix(out, c.hair_shade, dark[:, None])
    out = mix(out, c.hair_shade * 0.85, (0.75 * smooth(0.75, 1.25, fine))[:, None])
    out = mix(out, c.hair_light, (0.28 * smooth(0.95, 1.45, -fine))[:, None])
    taper = smooth(0.62, 0.05, k.along) * (1 - kink)
    bold = smooth(0.5, -0.5, (1 - k.edge - 0.085 * taper) * 0.16 / px) * smooth(0.0, 0.15, taper)
    curls = smooth(0.5, -0.5, (puff.abs() - 0.10) * 0.07 / px) * kink
    out = mix(out, c.ink, (0.72 * torch.maximum(bold, curls))[:, None])
    return brows(s, c, hit.x, hit.y, out, 0.7), cover, torch.zeros_like(cover)
