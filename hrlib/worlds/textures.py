"""A procedural image classification set: patterns, materials and objects, drawn in batches with torch.

Its purpose is to pre-train our thin perceptual networks (`hrlib.training.perceptual`) at a low resolution, without
photographs, licences or downloads. Each class is a small function of coordinates; colour, scale, rotation, position,
light, background and noise are random, so only the structure distinguishes the classes.

All random numbers come from one `torch.Generator` on the CPU per (seed, class, part): equal arguments give equal bytes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import UnknownName, nearest, number
from ._shapes import OBJECTS, PATTERNS, TAU, Canvas, wave

CLASSES: tuple[str, ...] = tuple(sorted(PATTERNS)) + tuple(sorted(OBJECTS))


def _colours(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Three RGB colours per image, [n, 3, 1, 1] in [0, 1]; each, unless clipped, at least 0.45 away from the last."""

    def draw() -> Tensor:  # from grey to fully saturated, since photographs lie mostly in between
        rgb = torch.rand(n, 3, generator=rng)
        return torch.lerp(rgb.mean(1, keepdim=True), rgb, torch.rand(n, 1, generator=rng))

    out = [draw()]
    for _ in range(2):
        step = draw() - out[-1]
        length = step.norm(dim=1, keepdim=True)
        out.append((out[-1] + step * (0.45 / length.clamp(1e-3, 0.45))).clamp(0, 1))
    return tuple(c[:, :, None, None] for c in out)


def render(name: str, n: int, *, size: int = 48, seed: int = 0, part: int = 0) -> Tensor:
    """Draw `n` images of the class `name`.

    Args:
        name: one of `CLASSES`.
        n: number of images.
        size: side in pixels; patterns have 3 to 10 periods, objects a diameter of 40 to 90 % of it.
        seed: of the random numbers.
        part: different parts of one seed are independent (such as training and held-out images).

    Returns:
        float32 [n, 3, size, size] in [-1, 1].

    Raises:
        UnknownName: no such class.
        InvalidValue: n or size below 1.
    """
    if name not in CLASSES:
        hint = nearest(name, list(CLASSES)) or "use a name listed in textures.CLASSES"
        raise UnknownName(f"class {name!r}", expected=f"one of {', '.join(CLASSES)}", do=hint)
    n, size = number("n", n, "whole [1, inf)"), number("size", size, "whole [1, inf)")
    rng = torch.Generator().manual_seed((seed * 1_000_003 + CLASSES.index(name)) * 1009 + part)
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = (t.expand(n, size, size) for t in torch.meshgrid(axis, axis, indexing="ij"))
    canvas = Canvas(x, y, torch.full((n, 1, 1), 2 / size), rng)
    first, second, third = _colours(n, rng)
    if name in PATTERNS:
        tone = PATTERNS[name](_placed(canvas, turn=math.pi, scale=canvas.u(1.5, 5.0), shift=3.0))
        image = torch.lerp(first, second, tone[:, None])
    else:
        mask, tone = OBJECTS[name](_placed(canvas, turn=0.5, scale=1 / canvas.u(0.4, 0.9), shift=0.35))
        ground = torch.lerp(first, third, 0.5 * _background(canvas)[:, None])
        body = torch.lerp(second, first, 0.85 * tone[:, None])
        image = torch.lerp(ground, body, mask[:, None])
    angle = canvas.u(0, TAU)
    light = 1 + canvas.u(0, 0.4) * (torch.cos(angle) * x + torch.sin(angle) * y)
    image = image * (light * canvas.u(0.75, 1.1))[:, None]
    image = image + canvas.u(0, 0.06)[:, None] * torch.randn(image.shape, generator=rng)
    return image.clamp(0, 1) * 2 - 1


def _placed(c: Canvas, *, turn: float, scale: Tensor, shift: float) -> Canvas:
    """The canvas rotated by up to +-`turn` radians, scaled, and shifted by up to +-`shift`."""
    a = c.u(-turn, turn)
    x, y = c.x + c.u(-shift, shift) / scale, c.y + c.u(-shift, shift) / scale
    cos, sin = torch.cos(a) * scale, torch.sin(a) * scale
    return Canvas(cos * x - sin * y, sin * x + cos * y, c.px * scale, c.rng)


def _background(c: Canvas) -> Tensor:
    """[n, S, S] tones behind an object: constant, a gradient, clouds or a faint pattern, one of them per image."""
    angle, freq = c.u(0, TAU), c.u(1, 4)
    along = torch.cos(angle) * c.x + torch.sin(angle) * c.y
    choices = torch.stack(
        [torch.zeros_like(c.x), 0.5 + 0.5 * along, c.noise(2 * c.x, 2 * c.y), wave(freq * along, freq * c.px) * 0.6]
    )
    pick = (c.u(0, len(choices)).floor().long()).expand_as(c.x)
    return choices.gather(0, pick[None])[0]


def dataset(per_class: int, *, size: int = 48, seed: int = 0, part: int = 0) -> tuple[Tensor, Tensor]:
    """All classes, `per_class` images each, in class order.

    Returns:
        (images uint8 [N, 3, size, size], labels int64 [N]) with N = per_class * len(CLASSES). In uint8, 70,000 images
        take 0.5 GB; `image / 127.5 - 1` converts them to the library's convention.
    """
    images = torch.empty(len(CLASSES) * per_class, 3, size, size, dtype=torch.uint8)
    for k, name in enumerate(CLASSES):
        for start in range(0, per_class, 500):  # bounds the memory; a block's bytes depend only on its index
            stop = min(start + 500, per_class)
            block = render(name, stop - start, size=size, seed=seed, part=part * 1000 + start // 500)
            images[k * per_class + start : k * per_class + stop] = (block * 127.5 + 127.5).round().to(torch.uint8)
    return images, torch.arange(len(CLASSES)).repeat_interleave(per_class)
