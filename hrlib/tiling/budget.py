"""The memory of a tiled inversion, foretold: which tiles fit a budget, and what is kept where.

Nothing is guessed from a table of layers: one small tile of the very loss and generator is run, the tensors alive at
its worst moment are counted, and the count grows with the tile's area. What stays at full size is a short list.
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

from ..errors import BudgetError, UnknownName, nearest, number
from ..losses import Loss, Perceptual
from ..nets.windows import Window, needed
from . import limits
from .exact import TiledGenerator, TiledLoss, haloed, parts_of, reach_of, tiles

# Tensors of full size that `optim.descend` keeps alive while a tile is worked on, and those of a checkpoint on top.
IMAGES = 4  # the target, the picture, its gradient, and the previous iterate's picture
NOISE = {"noise maps": 1, "their gradients": 1, "the best and the last iterate": 2}
MOMENTS = 2  # Adam's
CHECKPOINT = 7  # copies of maps and moments, and the bytes of all that is written
SCRATCH = 1.4  # allocated over alive: buffers of the convolutions, and what the allocator holds back (measured)
WARM = 100_000_000  # what the libraries take when they are first used on a CPU (measured)
EDGES = (2048, 1536, 1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32)  # of tiles that are tried
CPU_EDGE = 512  # larger tiles are no faster on a CPU: above it every tensor is fetched anew from the system
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def bytes_of(memory: str | float) -> int:
    """Bytes of "4GB", "900 MiB" or a number, one at least; `BudgetError` for anything else."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?I?)B?\s*", str(memory).upper())
    try:
        value = int(float(found[1]) * UNITS[found[2]])
    except (TypeError, ValueError, KeyError) as e:
        raise BudgetError(f"memory {memory!r}", expected='a size as "4GB" or "900MiB"', do="write it so") from e
    if value < 1:
        raise BudgetError(f"memory {memory!r}", expected="more than nothing", do='give a size as "4GB"')
    return value


def shown(count: float) -> str:
    """Bytes for people: "3.2 GB", "45 MB" (powers of ten)."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@dataclass(frozen=True)
class Plan:
    """What a tiled inversion will need, and how it will be done.

    size: (H, W). tile: (height, width). keep: where the target's features stay, see `tiling.Shelf`. moments: where
    Adam's moments stay, "memory" or "file". needs: {what: bytes}, all alive together. checkpoint: bytes that
    writing one takes instead of a tile. budget: bytes. extra: pixels that the loss looks at, over the picture's own.
    stored: bytes of temporary files. decided: what the budget comes from. limit: the bytes that this process can have
    at all, and what says so.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    keep: str
    moments: str
    needs: dict[str, int]
    checkpoint: int
    budget: int
    extra: float
    stored: int = 0
    decided: str = ""
    limit: tuple[int, str] | None = None

    @property
    def peak(self) -> int:
        """Bytes at the worst moment: working on a tile, or writing a checkpoint."""
        resting = sum(self.needs.values()) - self.needs["a tile"]
        return max(sum(self.needs.values()), resting + self.checkpoint)

    def __str__(self) -> str:
        height, width = self.size
        count = len(tiles(self.size, self.tile))
        rows = [f"{width} x {height} = {width * height / 1e6:.2f} megapixels in {count} tiles of up to "]
        rows[0] += f"{self.tile[1]} x {self.tile[0]}; the loss sees {self.extra:.2f} times as many pixels"
        rows += [f"  {what:32s} {shown(n):>9s}" for what, n in self.needs.items()]
        rows += [f"  {'(writing a checkpoint instead of a tile)':32s} {shown(self.checkpoint):>9s}"]
        budget = f"{shown(self.budget)}{self.decided and f' ({self.decided})'}"
        rows += [f"  {'predicted peak':32s} {shown(self.peak):>9s}   of {budget}"]
        where = {"memory": "in memory", "file": "in memory-mapped files", "recompute": "computed anew in each step"}
        where["half"] = "in memory at 16 bits, which is not exact"
        rows += [f"  target features: {where[self.keep]}; Adam's moments: {where[self.moments]}"]
        if self.stored:
            rows += [f"  on disk: {shown(self.stored)} in {tempfile.gettempdir()}"]
        if self.limit and self.peak > self.limit[0]:
            rows += [f"  WARNING: this will fail here: {self.limit[1]} allows {shown(self.limit[0])}"]
        return "\n".join(rows)

    def apply(self, G: nn.Module, loss: Loss) -> dict[str, Any]:
        """Arguments of `inversion.invert`: the generator and the loss, tiled, and where the moments stay."""
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
    """How to invert a picture of `size` within `memory`, the most convenient way that fits.

    Args:
        memory: of the whole process, as "4GB"; by default what is taken already, and four fifths of what may still be
            taken now by the machine's free memory, the process's limits and its control groups. The plan says which
            decided. One above what this process can have makes a plan for another machine, with a warning.
        batch: pictures at once. optimise_noise: as in `inversion.invert`.
        keep, moments, tile: decide these instead of leaving them to the plan. keep="half" is never chosen unasked,
            because it is not exact.

    Raises:
        BudgetError: nothing fits; it says what is smallest, and what would help.
        UnknownName, ShapeError: a loss or generator that cannot be tiled, a size that the network cannot take.
        InvalidValue: a batch, size or tile that is no whole number.
    """
    device = next(G.parameters()).device
    TiledGenerator(G, (64, 64))  # refuses a generator of one size
    batch = number("batch", batch, "whole [1, inf)")
    size = tuple(number("size", n, "whole [1, inf)") for n in size)
    pixels = size[0] * size[1] * batch
    _check("keep", keep, ("memory", "recompute", "file", "half"))
    _check("moments", moments, ("memory", "file"))
    stride, halo = reach_of(loss)
    for part in parts_of(loss):
        if isinstance(part, Perceptual):
            part.features.check_size(*size)
    element = next(G.parameters()).element_size()
    noise = element * batch * sum(math.prod(s) * (1 if r == 4 else 2) for r, s in G.synthesis.canvas(size).items())
    noise *= optimise_noise
    taken, rooms = limits.of(device)
    taken += WARM * (device.type == "cpu")
    tightest = min(rooms)
    budget = taken + int(0.8 * tightest.free) if memory is None else bytes_of(memory)
    decided = f"four fifths of what is left by {tightest.why}" if memory is None else "as asked for"
    in_memory = 0.5 if tightest.why != limits.ADDRESSES else MOMENTS  # maps' worth of moments that lie in files
    hard = min((room for room in rooms if room.hard), default=None)
    limit = hard and (taken + hard.free, hard.why)
    features = _feature_bytes(loss) * pixels
    need_draw, need_look = _tile_needs(G, loss, size, batch)
    room = shutil.disk_usage(tempfile.gettempdir()).free

    @functools.cache  # a large picture has many thousands of small tiles
    def grid(edge: tuple[int, int]) -> tuple[int, int, int]:
        """Pixels of the largest tile, of the largest as the loss sees it, and of all that it sees."""
        windows = tiles(size, tuple(-(-e // stride) * stride for e in edge))
        area = lambda w: (w[0].stop - w[0].start) * (w[1].stop - w[1].start) * batch
        seen = [area(haloed(w, size, stride=stride, halo=halo)) for w in windows]
        return max(map(area, windows)), max(seen), sum(seen)

    def made(edge: tuple[int, int], keep: str, moments: str) -> Plan:
        drawn, looked_at, seen = grid(edge)
        resting = {"memory": features, "half": features / (element / 2)}.get(keep, 0)
        needs = {
            "libraries and networks": taken,
            "target, pictures, gradient": IMAGES * 3 * element * pixels,
            **{what: n * noise for what, n in NOISE.items()},
            "Adam's moments": int((MOMENTS if moments == "memory" else in_memory) * noise),
            "target features": int(resting),
            "a tile": int(SCRATCH * max(need_draw(drawn), need_look(looked_at))),
        }
        on_disk = (features if keep == "file" else 0) + (MOMENTS * noise if moments == "file" else 0)
        extra = seen / pixels
        return Plan(size, edge, keep, moments, needs, CHECKPOINT * noise, budget, extra, int(on_disk), decided, limit)

    def cost(p: Plan) -> float:  # of a step, relative: computing features anew is a fourth pass besides three
        reading = 0.05 * (p.keep == "file") + 0.02 * (p.moments == "file")
        return p.extra * (4 / 3 if p.keep == "recompute" else 1) + reading

    most = CPU_EDGE if device.type == "cpu" else EDGES[0]
    edges = [(min(e, size[0]), min(e, size[1])) for e in EDGES if e <= most]
    if tile is not None:
        pair = tuple(tile) if isinstance(tile, (tuple, list)) else (tile, tile)
        edges = [tuple(number("tile", n, "whole [1, inf)") for n in pair)]
    places = [keep] if keep else ["memory", "recompute", "file"]
    rests = [moments] if moments else ["memory", "file"]
    options = [made(e, k, m) for e in dict.fromkeys(edges) for k in places for m in rests]
    options = [p for p in options if p.stored < room]
    fitting = [p for p in options if p.peak <= budget]
    if not fitting:
        raise _refusal(options, budget, pixels)
    return min(fitting, key=cost)


def _refusal(options: list[Plan], budget: int, pixels: int) -> BudgetError:
    if not options:
        return BudgetError(
            f"no room for temporary files in {tempfile.gettempdir()}",
            expected="room for the target's features and Adam's moments",
            do="set TMPDIR to a larger disk, or keep them in memory",
        )
    least = min(options, key=lambda p: p.peak)
    fixed = least.needs["libraries and networks"] + least.needs["a tile"]
    fits = max(0, budget - fixed) / ((least.peak - fixed) / pixels)
    return BudgetError(
        f"a budget of {shown(budget)} for {pixels / 1e6:.2f} megapixels; the least is {shown(least.peak)}:\n{least}",
        expected="a budget that holds the noise maps, the picture and one tile",
        do=f"give {shown(1.05 * least.peak)}, reduce the picture to {fits / 1e6:.2f} megapixels or less"
        + ("" if least.moments == "file" else ", keep Adam's moments in files (moments='file')")
        + ", or leave the noise maps fixed (optimise_noise=False)",
    )


def _check(name: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        hint = nearest(str(value), list(known)) or "choose one of them, or leave it to the plan"
        raise UnknownName(f"{name}={value!r}", expected=f"one of {', '.join(known)}", do=hint)


def _feature_bytes(loss: Loss) -> float:
    """Bytes a pixel of the target's features, all taps together."""
    total = 0.0
    for part in parts_of(loss):
        if isinstance(part, Perceptual):
            x = next(part.features.parameters()).new_zeros(1, 3, 64, 64)
            with torch.no_grad():
                total += sum(m.numel() * m.element_size() for m in part.features(x, part.weights).values()) / 64**2
    return total


def _tile_needs(
    G: nn.Module, loss: Loss, size: tuple[int, int], batch: int
) -> tuple[Callable[[int], float], Callable[[int], float]]:
    """Bytes alive while a tile of so many pixels (of the whole batch) is drawn, and looked at: two functions."""
    p = next(G.parameters())
    ws = p.new_zeros(batch, G.num_ws, G.w_dim)

    def draw(edge: int) -> int:
        window = tuple(slice(0, min(edge, n)) for n in size)
        leaf = ws.clone().requires_grad_()
        maps = _maps_of(G, size, window, batch, p)
        return _live_peak(lambda: G.synthesis(leaf, maps, size, window=window).sum().backward())

    def look(edge: int) -> int:
        shape = tuple(min(edge, n) for n in size)
        tiled = TiledLoss(loss, shape, keep="recompute")
        x = p.new_zeros(batch, 3, *shape).requires_grad_()
        target = tiled.prepare(p.new_zeros(batch, 3, *shape))
        return _live_peak(lambda: sum(tiled(x, target).values()).backward())

    return _line(draw, size, batch), _line(look, size, batch)


def _maps_of(G: nn.Module, size: tuple[int, int], window: Window, batch: int, like: Tensor) -> dict[str, Tensor]:
    layers = needed(window, G.synthesis.canvas(size))
    shape = lambda name: [w.stop - w.start for w in layers[name]]
    return {name: like.new_zeros(batch, *shape(name)).requires_grad_() for name in G.synthesis.conv_names()}


def _line(measure: Callable[[int], int], size: tuple[int, int], batch: int) -> Callable[[int], float]:
    """area -> bytes, from two probes (one, in proportion, for a picture that is hardly larger than the smaller)."""
    area = lambda edge: math.prod(min(edge, n) for n in size) * batch
    small, large = 64, 160
    a, b = measure(small), measure(large)
    slope = (b - a) / (area(large) - area(small)) if area(large) > area(small) else a / area(small)
    return lambda pixels: max(a + slope * (pixels - area(small)), 0)


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors made while it is active and not yet freed; `.peak` is the most at once."""

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
    """Bytes of the tensors that `run` makes, at the moment when most of them are alive."""
    with _Live() as live:
        run()
    return live.peak
