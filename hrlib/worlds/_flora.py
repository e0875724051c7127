"""Plants on the near land: grass blade by blade, conifers needle by needle, broad-leaved trees leaf by leaf.

Parts too small for a picture to resolve fade into noise of the same tones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ._common import hash01, smooth
from ._lattice import Field, draw, fractal
from ._terrain import bank as bank_line
from ._terrain import hazed, relit

# Sizes of grass are relative to the row's distance below the horizon.
_RATIO = math.log(1.05)  # log of the ratio between the distances of neighbouring rows
_BLADE = 0.135  # length of a blade
_GAP = 0.021  # width of a lattice cell, which holds one blade
_WIDTH, _SHOWN = 0.013, (0.45, 1.3)  # width of a blade; the widths in pixels between which blades fade in
REACH_OVER = _BLADE / (1 - _BLADE)  # how far blades at the bank's edge rise above it, relative to its distance
# per stand: width of a tree's cell; nearest and farthest foot, from the bank (0) to the lower edge (1); probability
_STANDS = ((0.085, 0.01, 0.07, 0.75), (0.24, 0.09, 0.24, 0.60), (0.85, 0.40, 0.75, 0.60))
_COARSE = 1 / 64  # a fixed pixel size, so that trees stand at the same place in pictures of every size


def grassy(e: Tensor, bank: Tensor, pixel: float) -> Tensor:
    """[M] where blades of grass can be visible: close enough to resolve, not above the tallest at the bank's edge."""
    return (e < bank + REACH_OVER * bank.abs()) & (e * (-_WIDTH / pixel) > _SHOWN[0])


def grass(field: Field, u: Tensor, e: Tensor, bank: Tensor, light: Tensor, pixel: float) -> Tensor:
    """[3, M]: `light` with blades of grass and flowers in front of it."""
    s = (-e).clamp(min=0.01)
    shown = smooth(*_SHOWN, s * (_WIDTH / pixel))
    first = (s.log() * (1 / _RATIO)).floor()
    green = field.rgb("grass")
    dry = torch.lerp(green, torch.tensor([0.34, 0.27, 0.12], device=u.device)[:, None], 0.5)
    sun = field.rgb("sun") * (0.62 + 0.25 * field("light_y"))
    lit, dim = field.rgb("ambient") + sun, field.rgb("ambient") * 0.8 + 0.25 * sun
    light = light * (1 - 0.45 * shown * (-bank < s).float())  # between the blades
    for row in range(1, 5):
        j = first + row
        base = (j * _RATIO).exp()
        height = (base - s) / (base * _BLADE)
        grown = (base > -bank).float()
        for stand in (0, 1):
            x = u / (base * _GAP) + (0.37 * j + 0.5 * stand)
            cell = x.floor()
            uniform = draw(field, cell, j * 2 + stand, 80)
            y = (height - 0.22 * uniform[1]) / (0.36 + 0.42 * uniform[0])
            lean = (uniform[1] - 0.5) * (0.5 + 0.9 * y)
            off = (x - cell - 0.5 - lean * y * 0.8 - (uniform[2] - 0.5) * 0.4).abs()
            inside = (
                smooth(0.04, -0.04, off - 0.22 * (1 - y * y) * (0.45 + 2.2 * y).clamp(max=1))
                * ((y < 1) & (y > 0)).float()
                * grown
                * shown
            )
            tone = (0.34 + 0.86 * y) * (0.66 + 0.68 * uniform[3])
            colour = torch.lerp(green, dry, smooth(0.55, 1.0, uniform[3] * (0.6 + 0.5 * y)))
            light = torch.lerp(light, colour * tone * torch.lerp(dim, lit, y.clamp(0, 1)), inside)
    for j in (2 * (0.5 * first + 0.5).ceil() + 2, 2 * (0.5 * first + 0.5).ceil()):
        base = (j * _RATIO).exp()
        light = _flowers(field, u, j, base, s, (base > -bank).float() * shown, light, lit)
    return light


def _flowers(
    field: Field, u: Tensor, j: Tensor, base: Tensor, s: Tensor, grown: Tensor, light: Tensor, lit: Tensor
) -> Tensor:
    """Flowers with five petals on the tallest stems of a row."""
    x = u / (base * 0.085) + 0.61 * j
    cell = x.floor()
    uniform = draw(field, cell, j, 81)
    px = x - cell - 0.5 - (uniform[0] - 0.5) * 0.6
    py = ((base - s) / (base * 0.085) - 0.75 - 0.55 * uniform[1]) * 1.25
    radius = (px.square() + py.square()).sqrt()
    petals = 0.15 + 0.055 * torch.cos(5 * torch.atan2(py, px) + 6 * uniform[2])
    there = (uniform[3] < 0.42 * field("flowers")).float() * grown
    inside = smooth(0.02, -0.02, radius - petals) * there
    white = torch.tensor([0.85, 0.85, 0.80], device=u.device)[:, None]
    gold = torch.tensor([0.75, 0.50, 0.04], device=u.device)[:, None]
    colour = torch.where(uniform[2] < 0.5, field.rgb("flower"), white) * (0.65 + 0.35 * smooth(0.0, 0.2, radius))
    colour = torch.lerp(gold, colour, smooth(0.045, 0.06, radius))
    return torch.lerp(light, colour * lit * 0.75, inside)


@dataclass(frozen=True)
class Tree:
    """A place in a stand, with one tree or none in each of n pictures: columns [n], and a box (u, e) around them."""

    columns: dict[str, Tensor]
    left: float
    right: float
    bottom: float
    top: float


def trees(field: Field, left: float, right: float) -> list[Tree]:
    """Trees whose crowns or shadows reach into the columns from `left` to `right`, farthest stand first."""
    found = []
    n, device = len(field.seed), field.seed.device
    for stand, (width, near, far, chance) in enumerate(_STANDS):
        cell = torch.arange(math.floor((left - 1) / width), math.floor((right + 1) / width) + 1, device=device)
        item = torch.arange(n, device=device).repeat_interleave(len(cell))
        every, cell = field.at(item), cell.repeat(n)
        seed = field.seed[item]
        kinds = torch.arange(9, device=device)[:, None]
        roll = hash01(seed, cell * 16 + kinds, torch.full_like(cell, stand))
        u = (cell + roll[0]) * width
        grove = hash01(seed, torch.div(cell, 3, rounding_mode="floor"), torch.full_like(cell, 950 + stand))
        depth = near + (far - near) * roll[1]
        foot = bank_line(every, u, _COARSE) * (1 - depth) - every("horizon") * depth
        size = -foot * (1.0 + 0.75 * roll[2]) * every("tree_height")
        dense = every("trees")
        likely = chance * dense * (0.30 + 1.3 * (grove < 0.35 + 0.35 * dense).float()) * (0.16 / size).clamp(max=1)
        there = roll[3] < likely
        columns = {
            "u": u, "foot": foot, "size": size, "there": there, "shift_x": roll[4], "shift_y": roll[5],
            "needles": roll[6] < every("conifers"), "tone": 0.75 + 0.5 * roll[7], "slim": 0.82 + 0.32 * roll[8],
        }  # fmt: skip
        columns = {name: value.view(n, -1) for name, value in columns.items()}
        void = ~columns["there"]
        box = [
            edge.masked_fill(void, worst * math.inf).sort(0, descending=worst < 0).values[0].tolist()
            for edge, worst in (
                (columns["u"] - columns["size"], 1),
                (columns["u"] + columns["size"], -1),
                (columns["foot"] - 0.2 * columns["size"], 1),
                (columns["foot"] + 1.05 * columns["size"], -1),
            )
        ]
        for k, (start, stop, low, high) in enumerate(zip(*box, strict=True)):
            if start < right and stop > left:
                found.append(Tree({name: value[:, k] for name, value in columns.items()}, start, stop, low, high))
    return found


def _leaves(
    field: Field, x: Tensor, y: Tensor, shown: Tensor, cell: float, channel: int, aspect: float, turn: float
) -> tuple[Tensor, Tensor]:
    """Small ellipses scattered over the plane in four layers: tone [M] of the foremost (0 if there is none), and cover.

    Nothing is drawn if `shown` is 0 everywhere.
    """
    tone = torch.zeros_like(x)
    if not shown.any():
        return tone, tone
    for layer in range(4):
        size = cell * (1.25 - 0.12 * layer)
        c, s = math.cos(1.3 * layer + 0.4) / size, math.sin(1.3 * layer + 0.4) / size
        gx, gy = c * x - s * y, s * x + c * y
        cx, cy = gx.floor(), gy.floor()
        uniform = draw(field, cx, cy, channel + layer)
        fx, fy = gx - cx - 0.5 - (uniform[0] - 0.5) * 0.5, gy - cy - 0.5 - (uniform[1] - 0.5) * 0.5
        angle = (uniform[2] - 0.5) * turn - (1.3 * layer + 0.4)
        ca, sa = angle.cos(), angle.sin()
        along, across = ca * fx - sa * fy, (sa * fx + ca * fy) * aspect
        inside = along.square() + across.square() < 0.2
        shade = (0.45 + 0.16 * layer + 0.50 * uniform[3]) * (0.86 + 0.5 * across.clamp(-0.3, 0.3))
        tone = torch.where(inside, shade, tone)
    return tone, (tone > 0).float()


def broadleaf(field: Field, x: Tensor, y: Tensor, px: Tensor, tone: Tensor) -> tuple[Tensor, Tensor]:
    """A broad-leaved tree of height 1 with its foot at the origin: light [3, M] and cover [M]; px: a pixel's size."""
    finest = float(px.min())
    n = fractal(field, x, y, 90, scale=3.4, pixel=px, finest=finest, octaves=4, gain=0.62, slopes=True)
    fine = fractal(field, x, y, 91, scale=13.0, pixel=px, finest=finest, gain=0.9)[0] * 0.75
    cx, cy = x * (1 / 0.34), (y - 0.60) * (1 / 0.38)
    body = 1 - cx.square() - cy.square() * (1 + 0.25 * cy) + 0.30 * n[0] - 0.8 * smooth(0.36, 0.18, y)
    drawn = smooth(2.4, 5.0, 0.011 / px)
    leaf, some = _leaves(field, x, y, drawn, 0.011, 92, 1.9, 6.28)
    edge = smooth(-0.04, 0.26, body + 0.12 * fine)
    cover_far = smooth(0.10, 0.24, body + 0.20 * fine)
    cover_near = torch.maximum(
        some * (leaf * 0.75 < edge * 1.25).float() * (edge > 0.02).float(), (edge > 0.97).float()
    )
    bright = torch.lerp(
        (0.80 + 0.28 * fine).clamp(0.2, 1.6),
        torch.where(leaf > 0, leaf, 0.26) * (1 + 0.30 * fine).clamp(0.35, 1.6),
        drawn,
    )
    cover = torch.lerp(cover_far, cover_near, drawn)
    sun = 0.42 + 0.26 * (cx * field("light_x") + cy * field("light_y"))
    sun = (sun + 0.10 * n[0] - 0.13 * (n[1] * field("light_x") + n[2] * field("light_y"))).clamp(0.04, 0.95)
    sun = sun * (0.55 + 0.45 * smooth(0.9, 0.1, body))  # the inside is dark
    trunk = smooth(0.004, -0.004, (x - 0.012 * n[0] * y).abs() - 0.026 * (1.25 - y)) * smooth(0.62, 0.5, y)
    trunk = trunk * smooth(-0.004, 0.006, y + 0.008 * fine)
    bark = fractal(field, x * 6, y, 97, scale=14.0, pixel=px * 4, finest=finest * 4, gain=0.7)[0]
    brown = torch.tensor([0.085, 0.062, 0.045], device=x.device)[:, None] * (1 + 0.45 * bark).clamp(0.3, 2)
    wood = relit(field, brown, 0.35 + 5 * x * field("light_x"))
    light = torch.lerp(wood, relit(field, field.rgb("leaf") * (tone * bright), sun), cover)
    return light, torch.maximum(cover, trunk)


def conifer(field: Field, x: Tensor, y: Tensor, px: Tensor, tone: Tensor) -> tuple[Tensor, Tensor]:
    """A conifer of height 1 with its foot at the origin: light [3, M] and cover [M]; px: a pixel's size."""
    finest = float(px.min())
    n = fractal(field, x, y, 100, scale=7.0, pixel=px, finest=finest, octaves=3, gain=0.6)[0]
    fine = fractal(field, x, y + 0.6 * x.abs(), 101, scale=22.0, pixel=px, finest=finest, gain=0.9)[0] * 0.8
    side = x.abs()
    tier = 11.0 * (1 - (1 - y.clamp(0, 1)).sqrt() * 0.55) * y.clamp(0, 1) * 1.5 + 14 * side + 0.30 * n
    step = tier - tier.floor()
    lean = draw(field, tier.floor(), (x > 0).float(), 102)
    half = 0.25 * (1 - y).clamp(min=0) ** 0.85 * (0.62 + 0.38 * (1 - step) + 0.34 * (lean[0] - 0.5)) + 0.004
    body = (half - side) / (0.25 * (1.03 - y).clamp(min=0.05)) + 0.10 * fine
    turn = torch.where(x > 0, 1.0, -1.0)
    drawn = smooth(2.4, 5.0, 0.010 / px)
    leaf, some = _leaves(field, x * turn, y + 0.55 * side, drawn, 0.010, 103, 5.0, 1.6)
    edge = smooth(-0.16, 0.22, body)
    skirt = smooth(0.055, 0.085, y + 0.02 * fine)
    cover_far = smooth(-0.04, 0.06, body) * skirt
    cover_near = (
        torch.maximum(some * (leaf * 0.7 < edge * 1.2).float() * (edge > 0.02).float(), (edge > 0.9).float()) * skirt
    )
    cover = torch.lerp(cover_far, cover_near, drawn)
    bright = torch.lerp(
        (0.85 + 0.35 * fine).clamp(0.2, 1.8),
        torch.where(leaf > 0, leaf, 0.26) * (1 + 0.30 * fine).clamp(0.35, 1.6),
        drawn,
    )
    bough = 0.40 + 0.75 * (1 - step) * smooth(0.0, 0.18, step)
    sun = (0.36 + 2.1 * x * field("light_x") + 0.10 * field("light_y")).clamp(0.06, 0.8) * bough
    albedo = field.rgb("conifer") * (tone * bright)
    load = field("winter") * smooth(0.35, 0.75, (1 - step) + 0.25 * fine) * 0.85
    albedo = torch.lerp(albedo, torch.tensor([0.80, 0.84, 0.90], device=x.device)[:, None], load)
    trunk = smooth(0.003, -0.003, side - 0.016 * (1.1 - y)) * smooth(-0.004, 0.006, y) * (y < 0.5).float()
    brown = torch.tensor([0.07, 0.05, 0.038], device=x.device)[:, None]
    light = torch.lerp(relit(field, brown, 0.35 + 5 * x * field("light_x")), relit(field, albedo, sun), cover)
    return light, torch.maximum(cover, trunk)


def plant(
    field: Field, tree: Tree, item: Tensor, u: Tensor, e: Tensor, light: Tensor, needles: bool, pixel: float
) -> Tensor:
    """[3, M]: `light` with one tree of each picture in front; item [M] is the index of each sample's picture."""
    get = lambda name: tree.columns[name] if field.item is None else tree.columns[name][item]
    size = get("size")
    x, y = (u - get("u")) / size, (e - get("foot")) / size
    shape = conifer if needles else broadleaf
    colour, cover = shape(
        field.moved(torch.stack((tree.columns["shift_x"], tree.columns["shift_y"]), 1)),
        x / get("slim"),
        y,
        pixel / size,
        get("tone"),
    )
    distance = 0.10 * smooth(0.25, 0.02, -get("foot"))
    colour = hazed(field, colour, u, e.clamp(max=0.05), distance)
    return torch.lerp(light, colour, cover)
