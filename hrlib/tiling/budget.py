"""Plan the memory of a tiled inversion: which tiles fit a budget, and what is kept where.

The plan is measured rather than looked up: small tiles of this loss and generator are run, the tensors alive at
the worst moment are counted, and the count is extrapolated by the tile's area. What stays at full size is a short list.
"""

from __future__ import annotations

import functools
import math
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import BudgetError, InvalidValue, UnknownName, nearest, number
from ..losses import Loss, Perceptual
from ..nets.windows import Window
from . import limits
from .exact import KEEP, TiledGenerator, TiledLoss, haloed, parts_of, reach_of, tiles

# Full-size tensors that `optim.descend` holds while a tile is processed, and those that a checkpoint adds.
IMAGES = 4  # the target, the picture, its gradient, and the picture of the previous iterate
NOISE = {"noise maps": 1, "their gradients": 1, "the best and the last iterate": 2}  # in sets of noise maps
MOMENTS = 2  # sets of noise maps: Adam's two moments
CHECKPOINT = 7  # sets of noise maps: copies of maps and moments, and the bytes of the file written
SCRATCH = 1.9  # allocated bytes per live byte: the convolutions' buffers and the allocator's reserve (measured)
WARM_UP = 100_000_000  # bytes that the libraries allocate at their first use on a CPU (measured)
EDGES = (2048, 1536, 1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32)  # pixels; sides of the tiles tried
CPU_EDGE = 512  # larger tiles are no faster on a CPU: the system then allocates every tensor afresh
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def bytes_of(memory: str | float) -> int:
    """The bytes that "4GB", "900 MiB" or a number stand for, at least 1; `InvalidValue` for anything else."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?I?)B?\s*", str(memory).upper())
    try:
        value = int(float(found[1]) * UNITS[found[2]])
    except (TypeError, ValueError, KeyError) as e:
        raise InvalidValue(
            f"memory = {memory!r}", expected='a size such as "4GB" or "900MiB"', do="write a number and a unit"
        ) from e
    if value < 1:
        raise InvalidValue(
            f"memory = {memory!r}", expected="at least one byte", do='write a number and a unit, such as "4GB"'
        )
    return value


def shown(count: float) -> str:
    """Bytes in words: "3.20 GB", "45 MB" (powers of ten)."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@dataclass(frozen=True)
class Plan:
    """How a tiled inversion will be done, and how much memory it takes.

    size: (H, W). tile: (height, width). keep: where the target's features stay, see `tiling.exact.TargetFeatures`.
    moments: where Adam's moments stay, "memory" or "file". needs: {item: bytes}, all held at the same time.
    checkpoint: bytes that writing a checkpoint takes, instead of a tile. budget: bytes. extra: pixels that the loss
    processes (tiles with halos) over pixels of the picture. disk: bytes of temporary files. source: where the budget
    comes from, in words. limit: (bytes, limit in words) that this process cannot exceed, or None.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    keep: str
    moments: str
    needs: dict[str, int]
    checkpoint: int
    budget: int
    extra: float
    disk: int = 0
    source: str = ""
    limit: tuple[int, str] | None = None

    @property
    def peak(self) -> int:
        """Bytes at the worst moment: while a tile is processed, or while a checkpoint is written."""
        resting = sum(self.needs.values()) - self.needs["a tile"]
        return max(sum(self.needs.values()), resting + self.checkpoint)

    def __str__(self) -> str:
        height, width = self.size
        count = len(tiles(self.size, self.tile))
        rows = [f"{width} x {height} = {width * height / 1e6:.2f} megapixels in {count} tiles of up to "]
        rows[0] += f"{self.tile[1]} x {self.tile[0]}; with halos, the loss sees {self.extra:.2f} times as many pixels"
        rows += [f"  {what:32s} {shown(n):>9s}" for what, n in self.needs.items()]
        rows += [f"  {'(writing a checkpoint instead of a tile)':32s} {shown(self.checkpoint):>9s}"]
        budget = f"{shown(self.budget)}{self.source and f' ({self.source})'}"
        rows += [f"  {'predicted peak':32s} {shown(self.peak):>9s}   of {budget}"]
        where = {"memory": "in memory", "file": "in memory-mapped files", "recompute": "recomputed in each step"}
        where["half"] = "in memory at 16 bits (not exact)"
        rows += [f"  target features: {where[self.keep]}; Adam's moments: {where[self.moments]}"]
        if self.disk:
            rows += [f"  on disk: {shown(self.disk)} in {tempfile.gettempdir()}"]
        if self.limit and self.peak > self.limit[0]:
            rows += [f"  WARNING: this will fail here: {self.limit[1]} allows {shown(self.limit[0])}"]
        return "\n".join(rows)

    def apply(self, G: nn.Module, loss: Loss) -> dict[str, Any]:
        """Arguments for `inversion.invert`: the tiled generator, the tiled loss, and where Adam's moments stay."""
        tiled = TiledLoss(loss, self.tile, keep=self.keep)
        return {"G": TiledGenerator(G, self.tile), "loss": tiled, "moments": self.moments}


def plan(
    G: nn.Module,
    loss: Loss,
    size: tuple[int, int],
    *,
    memory: str | float | None = None,
    batch: int = 1,
    optimise_noise: bool = True,
    keep: str | None = None,
    moments: str | None = None,
    tile: int | tuple[int, int] | None = None,
) -> Plan:
    """The fastest way to invert a picture of `size` within `memory`.

    Args:
        size: (H, W) of the picture.
        memory: for the whole process, such as "4GB". Default: what it uses already, plus four fifths of what it may
            still use: the least of the machine's free memory, the process's limits and its control groups. The plan
            says which of them that was. A budget beyond these limits gives a plan for another machine, with a warning.
        batch: pictures inverted at once. optimise_noise: as in `inversion.invert`.
        keep, moments, tile: fix these rather than let the plan choose. keep="half" is only used if set here, because
            it is not exact.

    Raises:
        BudgetError: nothing fits; the message gives the smallest plan and what would help.
        InvalidValue: a loss or generator that cannot be tiled, or a memory, batch, size or tile out of range.
        UnknownName: an unknown `keep` or `moments`. ShapeError: a size that the loss's network cannot take.
    """
    device = next(G.parameters()).device
    TiledGenerator(G, (64, 64))  # raises for a generator of one size
    batch = number("batch", batch, "whole [1, inf)")
    size = tuple(number("size", n, "whole [1, inf)") for n in size)
    pixels = size[0] * size[1] * batch
    _check("keep", keep, KEEP)
    _check("moments", moments, ("memory", "file"))
    stride, halo = reach_of(loss)
    for part in parts_of(loss):
        if isinstance(part, Perceptual):
            part.features.check_size(*size)
    element = next(G.parameters()).element_size()
    noise = element * batch * sum(math.prod(s) * (1 if r == 4 else 2) for r, s in G.synthesis.canvas(size).items())
    noise *= optimise_noise
    used, headrooms = limits.memory(device)
    used += WARM_UP * (device.type == "cpu")
    tightest = min(headrooms)
    budget = used + int(0.8 * tightest.free) if memory is None else bytes_of(memory)
    source = f"four fifths of what {tightest.limit} leaves" if memory is None else "as requested"
    mapped = 0.5 if tightest.limit != limits.ADDRESSES else MOMENTS  # sets of maps that moments in files occupy
    hard = min((headroom for headroom in headrooms if headroom.hard), default=None)
    limit = hard and (used + hard.free, hard.limit)
    features = _feature_bytes(loss) * pixels
    synthesis_bytes, loss_bytes = _tile_bytes(G, loss, size, batch)
    disk_free = shutil.disk_usage(tempfile.gettempdir()).free

    @functools.cache  # a large picture has many thousands of small tiles
    def grid(edge: tuple[int, int]) -> tuple[int, int, int]:
        """Pixels of the largest tile, of the largest tile with its halo, and of all tiles with their halos."""
        windows = tiles(size, tuple(-(-e // stride) * stride for e in edge))
        area = lambda w: (w[0].stop - w[0].start) * (w[1].stop - w[1].start) * batch
        seen = [area(haloed(w, size, stride=stride, halo=halo)) for w in windows]
        return max(map(area, windows)), max(seen), sum(seen)

    def candidate(edge: tuple[int, int], keep: str, moments: str) -> Plan:
        own, with_halo, seen = grid(edge)
        resting = {"memory": features, "half": features / (element / 2)}.get(keep, 0)
        needs = {
            "libraries and networks": used,
            "target, pictures, gradient": IMAGES * 3 * element * pixels,
            **{what: n * noise for what, n in NOISE.items()},
            "Adam's moments": int((MOMENTS if moments == "memory" else mapped) * noise),
            "target features": int(resting),
            "a tile": int(SCRATCH * max(synthesis_bytes(own), loss_bytes(with_halo))),
        }
        disk = (features if keep == "file" else 0) + (MOMENTS * noise if moments == "file" else 0)
        extra = seen / pixels
        return Plan(size, edge, keep, moments, needs, CHECKPOINT * noise, budget, extra, int(disk), source, limit)

    def cost(p: Plan) -> float:  # relative time of a step: recomputing features is a fourth pass besides three
        reading = 0.05 * (p.keep == "file") + 0.02 * (p.moments == "file")
        return p.extra * (4 / 3 if p.keep == "recompute" else 1) + reading

    most = CPU_EDGE if device.type == "cpu" else EDGES[0]
    edges = [(min(e, size[0]), min(e, size[1])) for e in EDGES if e <= most]
    if tile is not None:
        pair = tuple(tile) if isinstance(tile, (tuple, list)) else (tile, tile)
        edges = [tuple(number("tile", n, "whole [1, inf)") for n in pair)]
    places = [keep] if keep else ["memory", "recompute", "file"]
    rests = [moments] if moments else ["memory", "file"]
    options = [candidate(e, k, m) for e in dict.fromkeys(edges) for k in places for m in rests]
    options = [p for p in options if p.disk < disk_free]
    fitting = [p for p in options if p.peak <= budget]
    if not fitting:
        raise _refusal(options, budget, pixels)
    return min(fitting, key=cost)


def _refusal(options: list[Plan], budget: int, pixels: int) -> BudgetError:
    if not options:
        return BudgetError(
            f"too little space for temporary files in {tempfile.gettempdir()}",
            expected="space for the target's features and Adam's moments",
            do="set TMPDIR to a folder on a larger disk, or keep them in memory",
        )
    least = min(options, key=lambda p: p.peak)
    fixed = least.needs["libraries and networks"] + least.needs["a tile"]
    fits = max(0, budget - fixed) / ((least.peak - fixed) / pixels)
    ways = [f"give it {shown(1.05 * least.peak)}"]
    if fits >= 1e4:  # else the networks alone are too large
        ways.append(f"reduce the picture to {fits / 1e6:.2f} megapixels or less")
    if least.moments != "file":
        ways.append("keep Adam's moments in files (moments='file')")
    return BudgetError(
        f"a budget of {shown(budget)} for {pixels / 1e6:.2f} megapixels, which need {shown(least.peak)}:\n{least}",
        expected="enough memory for the noise maps, the picture and one tile",
        do=", or ".join([*ways, "leave the noise maps fixed (in Python, optimise_noise=False)"]),
    )


def _check(name: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        hint = nearest(str(value), list(known)) or "leave it out, and the plan will choose"
        raise UnknownName(f"{name}={value!r}", expected=f"one of {', '.join(known)}", do=hint)


def _feature_bytes(loss: Loss) -> float:
    """Bytes per pixel of the target's features, all taps together."""
    total = 0.0
    for part in parts_of(loss):
        if isinstance(part, Perceptual):
            x = next(part.features.parameters()).new_zeros(1, 3, 64, 64)
            with torch.no_grad():
                total += sum(m.numel() * m.element_size() for m in part.features(x, part.weights).values()) / 64**2
    return total


def _tile_bytes(
    G: nn.Module, loss: Loss, size: tuple[int, int], batch: int
) -> tuple[Callable[[int], float], Callable[[int], float]]:
    """Two functions from a tile's pixels (of the whole batch) to the bytes alive: in the synthesis, and in the loss."""
    p = next(G.parameters())
    ws = p.new_zeros(batch, G.num_ws, G.w_dim)

    def draw_tile(edge: int) -> int:
        window = tuple(slice(0, min(edge, n)) for n in size)
        leaf = ws.clone().requires_grad_()
        maps = _maps_of(G, size, window, batch, p)
        return _live_peak(lambda: G.synthesis(leaf, maps, size, window=window).sum().backward())

    def evaluate_tile(edge: int) -> int:
        shape = tuple(min(edge, n) for n in size)
        tiled = TiledLoss(loss, shape, keep="recompute")
        x = p.new_zeros(batch, 3, *shape).requires_grad_()
        target = tiled.prepare(p.new_zeros(batch, 3, *shape))
        return _live_peak(lambda: sum(tiled(x, target).values()).backward())

    return _line(draw_tile, size, batch), _line(evaluate_tile, size, batch)


def _maps_of(G: nn.Module, size: tuple[int, int], window: Window, batch: int, like: Tensor) -> dict[str, Tensor]:
    layers = G.synthesis.parts(size, window)
    shape = lambda name: [w.stop - w.start for w in layers[name]]
    return {name: like.new_zeros(batch, *shape(name)).requires_grad_() for name in G.synthesis.conv_names()}


def _line(measure: Callable[[int], int], size: tuple[int, int], batch: int) -> Callable[[int], float]:
    """Pixels -> bytes: a line through two probes, or in proportion to one if the picture is too small for two."""
    area = lambda edge: math.prod(min(edge, n) for n in size) * batch
    small, large = 64, 160
    a, b = measure(small), measure(large)
    per_pixel = (b - a) / (area(large) - area(small)) if area(large) > area(small) else a / area(small)
    return lambda pixels: max(a + per_pixel * (pixels - area(small)), 0)


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors created while it is active and not yet freed; `.peak` is their maximum.

    torch keeps such statistics for CUDA only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self._count(t.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.known:
            self.known.add(storage)
            n = storage.nbytes()
            self.now += n
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, n)

    def _free(self, n: int) -> None:
        self.now -= n


def _live_peak(run: Callable[[], Any]) -> int:
    """The largest number of bytes alive at once in tensors that `run` creates."""
    with _Live() as live:
        run()
    return live.peak
