"""The patterns and objects of `textures`, each a small function of coordinates.

A pattern returns a tone in [0, 1] everywhere; an object returns a mask and an inner tone. Colours come later.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TAU = 2 * math.pi


@dataclass(frozen=True)
class Canvas:
    """Coordinates of a batch of images in pattern space, and the random generator.

    x, y: [n, S, S]; px: [n, 1, 1], the size of a pixel in the unit of x and y, for anti-aliased edges.
    """

    x: Tensor
    y: Tensor
    px: Tensor
    rng: torch.Generator

    def u(self, low: float, high: float) -> Tensor:
        """One uniform draw per image, [n, 1, 1]."""
        return low + (high - low) * torch.rand(len(self.x), 1, 1, generator=self.rng)

    def noise(self, x: Tensor, y: Tensor, octaves: int = 3) -> Tensor:
        """[n, S, S] fractal value noise in about [0, 1]; a cell of the coarsest octave is one unit of x and y."""
        total, size = torch.zeros_like(x), 0.0
        for k in range(octaves):
            lattice = torch.rand(len(x), 1, 32, 32, generator=self.rng)
            grid = torch.stack([x, y], -1) * 2**k / 16
            grid = (grid + 1) % 4 - 1  # keeps large arguments exact; the reflection has period 4
            amp = 0.5**k
            sampled = F.grid_sample(lattice, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
            total, size = total + amp * sampled[:, 0], size + amp
        return total / size

    def hash(self, i: Tensor, j: Tensor) -> Tensor:
        """[n, S, S] a fixed pseudo-random number in [0, 1) for each integer cell (i, j) of each image."""
        table = torch.rand(len(i), 64 * 64, generator=self.rng)
        index = (i.long() % 64) * 64 + j.long() % 64
        return table.gather(1, index.flatten(1)).view_as(i)


def _edge(d: Tensor, px: Tensor) -> Tensor:
    """Coverage of the inside (d < 0) of a signed distance, softened over 1.5 pixels."""
    return (0.5 - d / (1.5 * px)).clamp(0, 1)


def wave(t: Tensor, px: Tensor, duty: float | Tensor = 0.5) -> Tensor:
    """A square wave of period 1 that is 1 for the fraction `duty` of each period."""
    return _edge((t % 1 - 0.5).abs() - duty / 2, px)


def _tri(t: Tensor) -> Tensor:
    """A triangle wave of period 1 between 0 and 1."""
    return 2 * (t % 1 - 0.5).abs()


def _cells(c: Canvas, jitter: float) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For the 3x3 lattice cells around each pixel: (dx, dy) from the jittered centre, and two random numbers."""
    i0, j0 = c.x.floor(), c.y.floor()
    tables = [torch.rand(len(c.x), 64 * 64, generator=c.rng) for _ in range(4)]
    out = []
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            i, j = i0 + di, j0 + dj
            index = ((i.long() % 64) * 64 + j.long() % 64).flatten(1)
            a, b, r, s = (t.gather(1, index).view_as(i) for t in tables)
            out.append((c.x - i - 0.5 - jitter * (a - 0.5), c.y - j - 0.5 - jitter * (b - 0.5), r, s))
    return out


def _voronoi(c: Canvas) -> tuple[Tensor, Tensor, Tensor]:
    """Distances to the nearest and second nearest jittered point, and a random tone per cell."""
    cells = _cells(c, 0.9)
    dist = torch.stack([torch.hypot(dx, dy) for dx, dy, _, _ in cells])
    near, index = dist.topk(2, dim=0, largest=False)
    return near[0], near[1], torch.stack([r for _, _, r, _ in cells]).gather(0, index[:1])[0]


# --- patterns: coordinates -> tone in [0, 1]; one period or cell is one unit -------------------------------------


def _checker(c: Canvas) -> Tensor:
    a, b = wave(c.x, c.px), wave(c.y, c.px)
    return a + b - 2 * a * b


def _bricks(c: Canvas) -> Tensor:
    x = c.x / 2 + 0.5 * (c.y.floor() % 2)
    return (
        (1 - wave(x + 0.5, c.px / 2, 0.08))
        * (1 - wave(c.y + 0.5, c.px, 0.16))
        * (0.7 + 0.3 * c.hash(x.floor(), c.y.floor()))
    )


def _hexagons(c: Canvas) -> Tensor:
    r3 = math.sqrt(3)
    ax, ay = c.x % 1 - 0.5, c.y % r3 - r3 / 2
    bx, by = (c.x - 0.5) % 1 - 0.5, (c.y - r3 / 2) % r3 - r3 / 2
    first = ax.square() + ay.square() < bx.square() + by.square()
    hx, hy = torch.where(first, ax, bx).abs(), torch.where(first, ay, by).abs()
    return _edge(torch.maximum(hx, 0.5 * hx + r3 / 2 * hy) - 0.42, c.px)


def _triangles(c: Canvas) -> Tensor:
    h = math.sqrt(3) / 2
    parity = c.y.floor() + (h * c.x + 0.5 * c.y).floor() + (h * c.x - 0.5 * c.y).floor()
    return parity % 2


def _leaves(c: Canvas) -> Tensor:
    out = torch.zeros_like(c.x)
    for dx, dy, r, s in _cells(c, 0.6):
        cos, sin = torch.cos(TAU * r), torch.sin(TAU * r)
        u, v = cos * dx + sin * dy, cos * dy - sin * dx
        body = _edge(v.abs() - 0.34 * (1 - (u / 0.62).square()), c.px)
        vein = _edge(v.abs() - 0.03, c.px) * body
        out = torch.maximum(out, body * (0.55 + 0.45 * s) - 0.45 * vein)
    return out


def _weave(c: Canvas) -> Tensor:
    over = (c.x.floor() + c.y.floor()) % 2
    across, along = torch.sin(math.pi * (c.x % 1)), torch.sin(math.pi * (c.y % 1))
    return torch.where(over > 0, along, 0.6 * across)


def _scales(c: Canvas) -> Tensor:
    tone = torch.zeros_like(c.x)
    for k in (1, 0, -1):  # lower rows are drawn last and cover the upper ones
        row = (c.y * 2).floor() + k
        dx = (c.x + 0.5 * (row % 2)) % 1 - 0.5
        r = torch.hypot(dx, c.y - row / 2)
        tone = torch.where(r < 0.52, 0.15 + 0.85 * (r / 0.52).square(), tone)
    return tone


def _maze(c: Canvas) -> Tensor:
    flip = c.hash(c.x.floor(), c.y.floor()) > 0.5
    x, y = c.x % 1, c.y % 1
    x = torch.where(flip, 1 - x, x)
    arc = torch.minimum((torch.hypot(x, y) - 0.5).abs(), (torch.hypot(1 - x, 1 - y) - 0.5).abs())
    return _edge(arc - 0.14, c.px)


def _strands(c: Canvas) -> Tensor:
    bend = 0.8 * c.noise(c.x / 6, c.y / 6, 2)
    return (c.noise(3 * c.x + 3 * bend, c.y / 5, 3) * 2.2 - 0.6).clamp(0, 1)


def _wood(c: Canvas) -> Tensor:
    r = torch.hypot(c.x, 0.15 * c.y) + 0.5 * c.noise(c.x / 2, c.y / 6, 2)
    return (r * 1.2) % 1 * (0.75 + 0.25 * c.noise(8 * c.x, c.y / 2, 1))


def _specks(c: Canvas) -> Tensor:
    return torch.stack([_edge(torch.hypot(dx, dy) - 0.3 * s + 0.12, c.px) for dx, dy, _, s in _cells(c, 1.0)]).amax(0)


def _ripples(c: Canvas) -> Tensor:
    a, b = torch.hypot(c.x - c.u(1, 4), c.y), torch.hypot(c.x + c.u(1, 4), c.y)
    return 0.5 + 0.25 * (torch.sin(TAU * a) + torch.sin(TAU * b))


def _cracks(c: Canvas) -> Tensor:
    first, second, _ = _voronoi(c)
    return _edge(second - first - 0.1, c.px)


PATTERNS: dict[str, Callable[[Canvas], Tensor]] = {
    "stripes": lambda c: wave(c.x, c.px),
    "sine": lambda c: 0.5 + 0.5 * torch.sin(TAU * c.x),
    "checker": _checker,
    "grid": lambda c: torch.maximum(wave(c.x, c.px, 0.22), wave(c.y, c.px, 0.22)),
    "plaid": lambda c: 0.4 * wave(c.x, c.px, 0.4) + 0.35 * wave(c.y, c.px, 0.4) + 0.25 * wave(2 * c.x, 2 * c.px, 0.2),
    "waves": lambda c: wave(c.y + 0.3 * torch.sin(TAU * c.x / 2), c.px),
    "zigzag": lambda c: wave(c.y + 0.9 * _tri(c.x / 2), c.px),
    "dots": lambda c: _edge(torch.hypot(c.x % 1 - 0.5, c.y % 1 - 0.5) - 0.3, c.px),
    "bricks": _bricks,
    "rings": lambda c: wave(torch.hypot(c.x, c.y), c.px),
    "squares": lambda c: wave(torch.maximum(c.x.abs(), c.y.abs()), c.px),
    "rays": lambda c: wave(
        torch.atan2(c.y, c.x) / TAU * c.u(5, 12).round(), 2 * c.px / torch.hypot(c.x, c.y).clamp(min=0.2)
    ),
    "spiral": lambda c: wave(torch.hypot(c.x, c.y) + c.u(1, 3).round() * torch.atan2(c.y, c.x) / TAU, c.px),
    "hexagons": _hexagons,
    "triangles": _triangles,
    "cells": lambda c: _voronoi(c)[2],
    "cracks": _cracks,
    "leaves": _leaves,
    "weave": _weave,
    "scales": _scales,
    "maze": _maze,
    "strands": _strands,
    "wood": _wood,
    "marble": lambda c: 0.5 + 0.5 * torch.sin(TAU * (c.x / 2 + 1.5 * c.noise(c.x / 2, c.y / 2, 4))),
    "clouds": lambda c: (c.noise(c.x / 3, c.y / 3, 4) * 1.8 - 0.4).clamp(0, 1),
    "blobs": lambda c: _edge(0.5 - c.noise(c.x, c.y, 1), c.px),
    "ripples": _ripples,
    "specks": _specks,
    "grain": lambda c: torch.rand(c.x.shape, generator=c.rng),
}

# --- objects: coordinates -> (mask, inner tone); an object fills about the unit circle ----------------------------


def _box(c: Canvas, x: float, y: float, w: float, h: float) -> Tensor:
    return torch.maximum((c.x - x).abs() - w, (c.y - y).abs() - h)


def _boxes(*boxes: tuple[float, float, float, float]) -> Callable[[Canvas], tuple[Tensor, Tensor]]:
    """An object made of boxes (centre x, centre y, half width, half height); y points down."""

    def draw(c: Canvas) -> tuple[Tensor, Tensor]:
        d = torch.stack([_box(c, *b) for b in boxes]).amin(0)
        return _edge(d, c.px), torch.zeros_like(d)

    return draw


def _polar(radius: Callable[[Tensor], Tensor]) -> Callable[[Canvas], tuple[Tensor, Tensor]]:
    """An object bounded by radius(angle), the angle measured from "up"."""

    def draw(c: Canvas) -> tuple[Tensor, Tensor]:
        d = torch.hypot(c.x, c.y) - radius(torch.atan2(c.x, -c.y))
        return _edge(d, c.px), torch.zeros_like(d)

    return draw


def _polygon(sides: int) -> Callable[[Tensor], Tensor]:
    half = math.pi / sides
    return lambda a: math.cos(half) / torch.cos((a + half) % (2 * half) - half)


def _disk(c: Canvas, x: float, y: float, r: float | Tensor) -> Tensor:
    return torch.hypot(c.x - x, c.y - y) - r


def _solid(d: Tensor, tone: Tensor, c: Canvas) -> tuple[Tensor, Tensor]:
    return _edge(d, c.px), tone.expand_as(d)


def _face(c: Canvas) -> tuple[Tensor, Tensor]:
    eyes = torch.minimum(_disk(c, -0.35, -0.2, 0.14), _disk(c, 0.35, -0.2, 0.14))
    mouth = torch.maximum((_disk(c, 0, 0.1, 0.45)).abs() - 0.07, 0.25 - c.y)
    return _solid(torch.hypot(c.x * 1.15, c.y) - 0.95, _edge(torch.minimum(eyes, mouth), c.px), c)


def _eye(c: Canvas) -> tuple[Tensor, Tensor]:
    lid = torch.maximum(_disk(c, 0, 0.75, 1.25), _disk(c, 0, -0.75, 1.25))
    return _solid(lid, _edge((_disk(c, 0, 0, 0.28)).abs() - 0.14, c.px), c)


def _house(c: Canvas) -> tuple[Tensor, Tensor]:
    roof = torch.maximum(c.y, c.x.abs() * 0.9 - c.y - 0.9)
    door = torch.minimum(_box(c, 0, 0.6, 0.18, 0.3), _box(c, 0.4, 0.25, 0.13, 0.13))
    return _solid(torch.minimum(roof, _box(c, 0, 0.45, 0.7, 0.45)), _edge(door, c.px), c)


def _tree(c: Canvas) -> tuple[Tensor, Tensor]:
    trunk = _box(c, 0, 0.65, 0.12, 0.35)
    crown = torch.maximum(c.x.abs() * 1.4 - (c.y + 0.95) % 0.5 - 0.35, (c.y + 0.2).abs() - 0.75)
    return _solid(torch.minimum(trunk, crown), _edge(trunk, c.px), c)


def _mushroom(c: Canvas) -> tuple[Tensor, Tensor]:
    cap = torch.maximum(torch.hypot(c.x, c.y * 1.2), torch.zeros_like(c.x)) - 0.9
    cap, stem = torch.maximum(cap, c.y - 0.05), _box(c, 0, 0.45, 0.2, 0.45)
    return _solid(torch.minimum(cap, stem), _edge(stem, c.px), c)


def _sphere(c: Canvas) -> tuple[Tensor, Tensor]:
    r2 = c.x.square() + c.y.square()
    light = (0.5 * c.x + 0.5 * c.y - 0.7 * (1 - r2).clamp(min=0).sqrt()).clamp(-1, 0) + 1
    return _solid(r2.sqrt() - 0.95, light, c)


def _cube(c: Canvas) -> tuple[Tensor, Tensor]:
    angle = (torch.atan2(c.x, c.y) / TAU * 3) % 3
    return _edge(torch.hypot(c.x, c.y) - _polygon(6)(torch.atan2(c.x, -c.y)), c.px), angle.floor() / 2


def _target(c: Canvas) -> tuple[Tensor, Tensor]:
    r = torch.hypot(c.x, c.y)
    return _solid(r - 0.95, _edge(((r * 2.1) % 1 - 0.5).abs() - 0.25, c.px * 2), c)


def _ladder(c: Canvas) -> tuple[Tensor, Tensor]:
    rungs = torch.maximum(((c.y * 2.2) % 1 - 0.5).abs() / 2.2 - 0.07, _box(c, 0, 0, 0.4, 0.95))
    rails = torch.maximum((c.x.abs() - 0.4).abs() - 0.08, c.y.abs() - 0.98)
    return _solid(torch.minimum(rungs, rails), torch.zeros_like(rungs), c)


OBJECTS: dict[str, Callable[[Canvas], tuple[Tensor, Tensor]]] = {
    "disk": _polar(lambda a: torch.full_like(a, 0.9)),
    "ring": lambda c: _solid((torch.hypot(c.x, c.y) - 0.7).abs() - 0.2, torch.zeros_like(c.x), c),
    "square": _polar(_polygon(4)),
    "triangle": _polar(_polygon(3)),
    "hexagon": _polar(_polygon(6)),
    "star": _polar(lambda a: 0.42 + 0.58 * _tri(a / TAU * 5).square()),
    "flower": _polar(lambda a: 0.68 + 0.3 * torch.cos(6 * a)),
    "gear": _polar(lambda a: 0.75 + 0.2 * torch.tanh(6 * torch.cos(10 * a))),
    "drop": _polar(lambda a: 0.55 + 0.45 * (1 - a.abs() / math.pi).pow(4)),
    "heart": _polar(lambda a: 0.55 + 0.35 * (a.abs() / math.pi).pow(3) + 0.3 * (a.abs() * 1.6).sin().clamp(min=0)),
    "cross": _boxes((0, 0, 0.9, 0.28), (0, 0, 0.28, 0.9)),
    "pill": lambda c: _solid(torch.hypot((c.x.abs() - 0.5).clamp(min=0), c.y) - 0.38, torch.zeros_like(c.x), c),
    "crescent": lambda c: _solid(
        torch.maximum(_disk(c, 0, 0, 0.9), -_disk(c, 0.45, 0, 0.75)), torch.zeros_like(c.x), c
    ),
    "arrow": lambda c: _solid(
        torch.minimum(_box(c, -0.35, 0, 0.55, 0.16), torch.maximum(c.y.abs() + c.x - 0.9, 0.1 - c.x)),
        torch.zeros_like(c.x),
        c,
    ),
    "glyph_L": _boxes((-0.4, 0, 0.18, 0.9), (0.1, 0.72, 0.6, 0.18)),
    "glyph_T": _boxes((0, -0.72, 0.75, 0.18), (0, 0, 0.18, 0.9)),
    "glyph_E": _boxes((-0.45, 0, 0.17, 0.9), (0.1, -0.73, 0.6, 0.17), (0, 0, 0.5, 0.15), (0.1, 0.73, 0.6, 0.17)),
    "glyph_H": _boxes((-0.5, 0, 0.17, 0.9), (0.5, 0, 0.17, 0.9), (0, 0, 0.5, 0.16)),
    "ladder": _ladder,
    "target": _target,
    "sphere": _sphere,
    "cube": _cube,
    "face": _face,
    "eye": _eye,
    "house": _house,
    "tree": _tree,
    "mushroom": _mushroom,
}
