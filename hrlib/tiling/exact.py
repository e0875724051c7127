"""The same losses, pictures and gradients, tile by tile: inversion at any size in bounded memory.

    plan = budget.plan(G, loss, x.shape[2:], memory="4GB")     # how much memory it takes; an error if it cannot fit
    print(plan)
    result = optim.solve(inversion.invert(x=x, **plan.apply(G, loss), num_steps=200))

Nothing is approximated. Eq. (3) is a sum over positions, so a picture's loss, and its gradient, is the sum over its
tiles. Each tile of the loss also sees a halo as wide as the network's reach (90 pixels for features_28), and starts on
a multiple of its stride, so that pooling windows lie where they lie in the whole picture; each tile of the generator
(`nets.windows`) computes exactly the rows it needs. Results differ from untiled ones by rounding only.

Held in memory at full size: the picture, its gradient and the target; the noise maps and Adam's moments. Everything
else is only ever as large as a tile.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import store
from ..errors import InvalidValue, UnknownName, nearest, number, sides
from ..losses import MSE, Loss, Perceptual, Sum, Target
from ..nets.windows import Window, within

KEEP = ("memory", "file", "recompute", "half")  # where the target's features stay between steps


def tiles(size: tuple[int, int], tile: tuple[int, int]) -> list[Window]:
    """The windows of a grid over a picture (H, W), row by row from the top left; the last ones may be smaller."""
    (height, width), tile = size, sides("tile", tile)
    return [
        (slice(y, min(y + tile[0], height)), slice(x, min(x + tile[1], width)))
        for y in range(0, height, tile[0])
        for x in range(0, width, tile[1])
    ]


# --- losses -----------------------------------------------------------------------------------------------------------


def parts_of(loss: Loss) -> tuple[Loss, ...]:
    """The terms of a loss that can be tiled: each is a sum over positions, or `InvalidValue` is raised."""
    parts = tuple(loss.losses) if isinstance(loss, Sum) else (loss,)
    for part in parts:
        if isinstance(part, MSE):
            continue
        if not isinstance(part, Perceptual):
            raise InvalidValue(
                f"a tiled {type(part).__name__}",
                expected="Perceptual, MSE or a sum of them: losses that are sums over positions",
                do="use one of these, or invert without tiles",
            )
        if part.resize is not None:
            raise InvalidValue(
                f"a tiled loss with resize={part.resize}",
                expected="resize=None: the loss sees the picture at full resolution (Sec. III-B)",
                do="use this loss without tiles: its resized input is small",
            )
        part.features.reach(part.weights)  # refuses networks that look at the whole picture at once
    return parts


def reach_of(loss: Loss) -> tuple[int, int]:
    """(stride, halo) of a loss in pixels, each the largest among its terms; (1, 0) for MSE."""
    reaches = [p.features.reach(p.weights) for p in parts_of(loss) if isinstance(p, Perceptual)]
    return max((s for s, _ in reaches), default=1), max((h for _, h in reaches), default=0)


def haloed(window: Window, size: tuple[int, int], *, stride: int, halo: int) -> Window:
    """What a tile of the loss must see: its window and halo in the picture, starting on a multiple of the stride."""
    return tuple(
        slice(max(0, w.start - halo) // stride * stride, min(n, w.stop + halo))
        for w, n in zip(window, size, strict=True)
    )


def _owned(window: Window, seen: Window, size: tuple[int, int], stride: int) -> Window:
    """The positions that belong to `window` in a map of this stride computed from `seen`."""
    return tuple(
        slice((w.start - s.start) // stride, None if w.stop == n else (w.stop - s.start) // stride)
        for w, s, n in zip(window, seen, size, strict=True)
    )


def _owned_maps(loss: Perceptual, x: Tensor, window: Window, seen: Window, size: tuple[int, int]) -> dict[str, Tensor]:
    """{tap: the window's part of the map}; x: the part of the picture that the tile sees, [N, 3, h, w]."""
    return {
        tap: m[:, :, *_owned(window, seen, size, loss.features.reach([tap])[0])]
        for tap, m in loss.features(x, loss.weights).items()
    }


class TargetFeatures:
    """The target's features, one dict of maps per tile, kept in memory or in files.

    keep: "memory" (unchanged), "file" (memory-mapped files in a temporary folder below `folder`), "half" (in memory at
        16 bits: not exact), "recompute" (not kept).
    """

    def __init__(self, keep: str, folder: str | Path | None) -> None:
        self.keep, self.tiles = keep, []
        with store.writing(folder or tempfile.gettempdir()):
            self.folder = tempfile.TemporaryDirectory(prefix="hrlib-features-", dir=folder) if keep == "file" else None

    def append(self, maps: dict[str, Tensor]) -> None:
        """Keep the maps of the next tile."""
        if self.keep == "file":
            path = Path(self.folder.name) / f"{len(self.tiles)}.safetensors"
            with store.writing(path):
                save_file({k: v.cpu().contiguous() for k, v in maps.items()}, path)
            self.tiles.append(path)
        elif self.keep != "recompute":
            # cloned, since a view would keep the halo's features in memory
            self.tiles.append({k: v.half() if self.keep == "half" else v.clone() for k, v in maps.items()})

    def of_tile(self, k: int, like: Tensor) -> dict[str, Tensor]:
        """The maps of tile k, with the dtype of `like` and on its device."""
        maps = load_file(self.tiles[k]) if self.keep == "file" else self.tiles[k]
        return {tap: m.to(like) for tap, m in maps.items()}


@dataclass(frozen=True)
class TiledTarget(Target):
    """A target prepared by a `TiledLoss`: the image, and the features for each perceptual term by its position."""

    features: dict[int, TargetFeatures] = field(default_factory=dict, repr=False)


class TiledLoss(Loss):
    """The value and the gradient of `loss`, computed tile by tile.

    With a `share` below 1, a step sees only that share of the tiles, drawn anew each time, and its value and gradient
    are multiplied by 1 / share: right on average, at a fraction of the cost, and noisy. Values without a gradient, such
    as those that choose the best iterate at the end, still see all tiles.

    Sum its terms with equal weights, as every loop of this library does: the gradient of that sum is computed along
    with the terms, so that each tile is processed once.

    Args:
        loss: `Perceptual` on a VGG16 without resize, `MSE`, or a sum of these.
        tile: (height, width) of the tiles in pixels, rounded up to multiples of the loss's stride.
        keep: where the target's features stay between steps: "memory", "file", "recompute", or "half", which rounds
            them to 16 bits and is therefore not exact.
        folder: where "file" creates its temporary folder.
        share: of the tiles that a step sees, in (0, 1]; at least one tile.

    Raises:
        InvalidValue: a loss that is not a sum over positions or that resizes, a tile smaller than a pixel, or a share
            out of range.
        UnknownName: an unknown `keep`.
    """

    def __init__(
        self,
        loss: Loss,
        tile: tuple[int, int],
        *,
        keep: str = "memory",
        folder: str | Path | None = None,
        share: float = 1.0,
    ) -> None:
        super().__init__()
        if keep not in KEEP:
            hint = nearest(str(keep), list(KEEP)) or "leave it to budget.plan"
            raise UnknownName(f"keep={keep!r}", expected=f"one of {', '.join(KEEP)}", do=hint)
        self.loss, self.keep, self.folder, self.share = loss, keep, folder, number("share", share, "(0, 1]")
        self.stride, self.halo = reach_of(loss)
        self.tile = tuple(-(-n // self.stride) * self.stride for n in sides("tile", tile))

    def describe(self) -> str:
        """The loss's description, and whether its target is rounded; not the tiles, which may change on resuming."""
        half = ", target features in half precision" * (self.keep == "half")
        return self.loss.describe() + half + f", {self.share} of the tiles a step" * (self.share < 1)

    def windows(self, size: tuple[int, int]) -> list[tuple[Window, Window]]:
        """The (own window, window with halo) of every tile of a picture (H, W)."""
        return [(w, haloed(w, size, stride=self.stride, halo=self.halo)) for w in tiles(size, self.tile)]

    def seen(self, image: Tensor) -> list[tuple[int, Window, Window]]:
        """The tiles of a step, (number, own window, window with halo); drawn by the picture's own numbers, so that a
        resumed run draws the same."""
        every = [(k, *pair) for k, pair in enumerate(self.windows(image.shape[2:]))]
        count = max(1, round(self.share * len(every)))
        if count == len(every) or not image.requires_grad:
            return every
        seed = int(image.detach().double().sum().cpu().view(torch.int64)) % 2**63
        return [every[k] for k in torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:count]]

    @torch.no_grad()
    def _prepare(self, image: Tensor) -> TiledTarget:
        features = {}
        for i, part in enumerate(parts_of(self.loss)):
            if isinstance(part, Perceptual):
                part.features.check_size(*image.shape[2:])
                features[i] = TargetFeatures(self.keep, self.folder)
                if self.keep != "recompute":
                    for window, seen in self.windows(image.shape[2:]):
                        features[i].append(_owned_maps(part, image[:, :, *seen], window, seen, image.shape[2:]))
        return TiledTarget(self, image, features=features)

    def _terms(self, pred: Tensor, target: TiledTarget) -> dict[str, Tensor]:
        names: list[str] = []
        values = _TiledTerms.apply(pred, self, self.seen(pred), target, names)
        return dict(zip(names, values, strict=True))

    def terms_of_tile(self, k: int, x: Tensor, window: Window, seen: Window, target: TiledTarget) -> dict[str, Tensor]:
        """What tile k contributes to each term; x: the part of the picture that it sees, [N, 3, h, w]."""
        size, terms = target.image.shape[2:], {}
        for i, part in enumerate(parts_of(self.loss)):
            if isinstance(part, MSE):
                ours, theirs = x[:, :, *within(window, seen)], target.image[:, :, *window]
                name, value = "mse", part.weight * (ours - theirs).square().sum() / target.image.numel()
            else:
                maps = _owned_maps(part, x, window, seen, size)
                if self.keep == "recompute":
                    with torch.no_grad():
                        goal = _owned_maps(part, target.image[:, :, *seen], window, seen, size)
                else:
                    goal = target.features[i].of_tile(k, x)
                lambdas = part.weights.items()
                squares = [lam**2 * (maps[tap] - goal[tap]).square().sum() for tap, lam in lambdas]
                name, value = part.name, torch.stack(squares).sum() / len(x)  # Eq. (3)
            if name in terms:
                raise InvalidValue(
                    f"two terms named {name!r}",
                    expected="a different name for each term",
                    do="rename one of them: Perceptual(..., name=...)",
                )
            terms[name] = value
        return terms


class _TiledTerms(torch.autograd.Function):
    """The terms of a `TiledLoss`, and the gradient of their sum with respect to the picture."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, loss: TiledLoss, chosen: list, target: TiledTarget, names: list[str]
    ) -> Tensor:
        gradient = torch.zeros_like(image) if ctx.needs_input_grad[0] else None
        sums: dict[str, float] = {}
        times = len(loss.windows(image.shape[2:])) / len(chosen)  # 1 unless the loss has a share
        for k, window, seen in chosen:
            x = image[:, :, *seen].detach().requires_grad_(gradient is not None)
            with torch.set_grad_enabled(gradient is not None):
                terms = loss.terms_of_tile(k, x, window, seen, target)
                if gradient is not None:
                    gradient[:, :, *seen] += torch.autograd.grad(sum(terms.values()), x)[0]
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        names += sums
        ctx.gradient = gradient if gradient is None or times == 1 else gradient.mul_(times)
        return image.new_tensor([times * value for value in sums.values()])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        if not bool((grad == grad[0]).all()):
            raise InvalidValue(
                f"terms of a tiled loss weighted by {grad.tolist()}",
                expected="one weight for all terms, since only the gradient of their sum was computed",
                do="put the weights into the losses, as in MSE(0.1)",
            )
        return (ctx.gradient if float(grad[0]) == 1 else ctx.gradient * grad[0]), None, None, None, None


# --- synthesis --------------------------------------------------------------------------------------------------------


class TiledGenerator:
    """A Style-INR-GAN whose `synthesis` works tile by tile; all other attributes are the generator's.

    The forward pass stores no activations. The backward pass draws each tile again, and adds up the gradients with
    respect to ws and to the tile's parts of the noise maps.

    Args:
        G: a generator that draws any size (`any_size`).
        tile: (height, width) of the tiles in pixels.

    Raises:
        InvalidValue: a generator of one size, or a tile smaller than a pixel.
    """

    def __init__(self, G: nn.Module, tile: tuple[int, int]) -> None:
        if not G.any_size:
            raise InvalidValue(
                f"tiles of a StyleGAN2 of {G.resolution}x{G.resolution}",
                expected="a Style-INR-GAN, which draws any size (Sec. III-A)",
                do="load a Style-INR-GAN, or invert without tiles",
            )
        self.G, self.tile = G, sides("tile", tile)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.G, name)

    def synthesis(self, ws: Tensor, noise: Any = "const", size: tuple[int, int] | None = None) -> Tensor:
        """[N, num_ws, w_dim] -> image [N, 3, H, W]; as the generator's own, but without canvas and grid."""
        size = tuple(size or (self.G.resolution, self.G.resolution))
        maps = self.G.synthesis.resolved(noise, len(ws), size)
        return _TiledSynthesis.apply(self.G.synthesis, self.tile, size, list(maps), ws, *maps.values())


class _TiledSynthesis(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, net: nn.Module, tile: tuple, size: tuple, names: list[str], ws: Tensor, *maps: Tensor):
        ctx.net, ctx.tile, ctx.size, ctx.names = net, tile, size, names
        ctx.save_for_backward(ws, *maps)
        image, noise = ws.new_empty(len(ws), 3, *size), dict(zip(names, maps, strict=True)) or "none"
        for window in tiles(size, tile):
            image[:, :, *window] = net(ws, noise, size, window=window)
        return image

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ws, *maps = ctx.saved_tensors
        wanted = ctx.needs_input_grad[4:]
        gradients = [torch.zeros_like(v) if w else None for v, w in zip((ws, *maps), wanted, strict=True)]
        for window in tiles(ctx.size, ctx.tile):
            if not bool(grad[:, :, *window].any()):  # where a loss of random tiles did not look
                continue
            layers = ctx.net.parts(ctx.size, window)
            places = [(...,), *((..., *layers[name]) for name in ctx.names)]
            leaves = [
                v[place].detach().requires_grad_(w) for v, place, w in zip((ws, *maps), places, wanted, strict=True)
            ]
            with torch.enable_grad():
                noise = dict(zip(ctx.names, leaves[1:], strict=True)) or "none"
                part = ctx.net(leaves[0], noise, ctx.size, window=window)
            inputs = [i for i, w in enumerate(wanted) if w]
            of_tile = torch.autograd.grad(part, [leaves[i] for i in inputs], grad[:, :, *window])
            for i, gradient in zip(inputs, of_tile, strict=True):
                gradients[i][places[i]] += gradient
        return None, None, None, None, *gradients
