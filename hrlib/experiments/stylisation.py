"""One cross-domain synthesis as a run of a sweep: a content, a reference, a way of mixing them, LSO or none, measured.

A run is a `Settings`. A column is a measure and what it is measured against::

    "content:identity_thin"     a measure of `metrics.METRICS` against the content picture,
    "mixed:style_thin"          ... the mixed image G_m(w_m) of the same run, before LSO,
    "reference:colour"          ... the reference picture, in the target domain
    "loss"                      the run's loss (d_h) between result and content, without eps
    "pose_error"                angle in degrees between the head's pose and the content's, for rendered contents
    "background"                root mean square of the change from the mixed image outside both heads, on the [0, 1]
                                scale, for rendered pictures
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import devices, directions, gallery, inversion, lso, metrics, mixing, optim, pose, weights
from ..errors import InvalidValue, UnknownName, nearest, number
from ..worlds import portraits
from ..worlds.pictures import DRAWN, drawn, picture
from .inversions import CACHED, generator_of, loss_of, png
from .sweep import Measured, check_numbers

METHODS = ("swap_layers", "swap_codes", "blend_layers", "interpolate")
AGAINST = ("content", "mixed", "reference")
OTHERS = ("loss", "pose_error", "background")
WITHIN = ("content", "style")  # the settings in which the runs of one row of a table differ
MARGIN = 0.05  # of the picture's side: heads are widened by this much before the rest counts as background
RANGES = {name: lso.RANGES[name] for name in ("lam_reg", "lr", "seed")} | {  # `mixing` checks the lambdas
    "num_steps": "whole [0, inf)",
    "directions": "whole [0, inf)",
}
Record = TypeVar("Record", bound="Mix")


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How content and references are mixed and optimised: the settings that syntheses and comparisons share.

    content: a picture's name. contents: the gallery file that holds its code in the source generator. styles: the
    gallery file that holds the references' codes in the target generator.
    source, target: the two generators, by catalogue name or file.
    method: of `METHODS`. low, high: lambda of the coarse blocks and of the fine ones, Eq. (6) and (7), in [0, 1].
    from_block: where swapping begins, or the middle of a smooth blend.
    num_steps: of LSO; 0 leaves the mixed image as it is. layers: the codes that LSO moves: "early", "all" or indices.
    directions: K of Eq. (9); 0 is Eq. (8). shared, lr, seed: as in `lso.optimise`. lam_reg: of Eq. (8), by default 0,
    without regularisation (see `lso.scaled_lam_reg`). optimise_noise: by default False, unlike in `lso.optimise`.
    loss, perceptual: d_h, for `losses.named`, and its weights: "shipped", "imagenet" or a file.
    device: "auto" takes the CUDA device of the worker when it has one.

    Raises:
        InvalidValue: a number out of range.
    """

    content: str = ""
    contents: str = ""
    styles: str = ""
    source: str = "portraits_inr128"
    target: str = ""
    method: str = "interpolate"
    low: float = mixing.LOW
    high: float = mixing.HIGH
    from_block: str = "b32"
    num_steps: int = 50
    layers: str | Sequence[int] = "early"
    directions: int = 0
    shared: bool = True
    lam_reg: float = 0.0
    optimise_noise: bool = False
    lr: float = 0.1
    seed: int = 0
    loss: str = "vgg_high"
    perceptual: str = "shipped"
    device: str = "auto"

    def __post_init__(self) -> None:
        check_numbers(self, RANGES)

    def changed(self: Record, changes: Mapping[str, Any]) -> Record:
        """These settings with some replaced; `UnknownName`, with the nearest spelling, for one that does not exist."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                hint = nearest(name, known) or "use the name of a setting"
                raise UnknownName(f"setting {name!r}", expected=f"one of {', '.join(known)}", do=hint)
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Settings(Mix):
    """One synthesis: the settings of `Mix`, and

    style: the name of the reference, in the gallery `styles`. columns: what to measure (see the head of this file).
    """

    style: str = ""
    columns: Sequence[str] = ()


def grid(
    pairs: Sequence[tuple[str, str]], variants: Sequence[Mapping[str, Any]], settings: Settings = Settings()
) -> list[Settings]:
    """Every variant of every pair (content, style) as runs for `perform`, variant by variant; all names are checked.

    Args:
        variants: changes of `settings`, one for each row of a table.
        settings: what all runs share.

    Raises:
        UnknownName: a setting, method, column, loss, tap, layer, picture or generator that does not exist.
        InvalidValue: a number out of range.
        LayoutMismatch: generators that cannot be mixed, or a gallery of another generator.
    """
    runs = []
    for variant in variants:
        row = settings.changed(variant)
        _check(row, pairs)
        runs += [replace(row, content=content, style=style) for content, style in pairs]
    return runs


def _check(s: Settings, pairs: Sequence[tuple[str, str]]) -> None:
    for column in s.columns:
        against, colon, metric = column.partition(":")
        if not colon and column in OTHERS:
            continue
        if against not in AGAINST or not colon:
            known = [*(f"{a}:{m}" for a in AGAINST for m in metrics.METRICS), *OTHERS]
            raise UnknownName(
                f"column {column!r}",
                expected=f"'AGAINST:METRIC' with one of {', '.join(AGAINST)}, or one of {', '.join(OTHERS)}",
                do=nearest(column, known) or 'write for instance "content:lpips_thin"',
            )
        metrics.check_columns([metric])
    check_given(s, "target")
    G_m = _mixed(s, "cpu")
    number("directions", s.directions, f"whole [0, {G_m.w_dim}]")
    loss_of(s.loss, s.perceptual, None, 0, "cpu")
    lso.checked_layers(_layers(s.layers, G_m.num_ws), G_m.num_ws)
    check_codes(s, {content for content, _ in pairs}, {style for _, style in pairs})


def check_given(s: Mix, *names: str) -> None:
    """Raise `InvalidValue` for settings of these names that are still empty."""
    if empty := [name for name in names if not getattr(s, name)]:
        raise InvalidValue(
            f"settings without a value: {', '.join(empty)}",
            expected="a gallery file or a generator for each",
            do="set them in `settings` or in the variant",
        )


def check_codes(s: Mix, contents: Iterable[str], styles: Iterable[str]) -> None:
    """Raise unless the galleries are those of the generators, and hold these contents and references."""
    check_given(s, "contents", "styles")
    for file, generator, names in ((s.contents, s.source, contents), (s.styles, s.target, styles)):
        found = codes(file, generator)
        for name in names:
            found[name]


def perform(s: Settings) -> Measured:
    """Mix one content with one reference, run LSO if `s.num_steps` is not 0, and measure.

    Returns:
        {column: value, or None where it cannot be measured}, and the result as image.png (8 bits; it is measured
        before it is rounded).
    """
    start = Mixed(s, [s.style])
    mixed, result = start.image().clamp(-1, 1), start.optimised().clamp(-1, 1)
    return Measured({c: _measured(c, result, mixed, start, s) for c in s.columns}, {"image.png": png(result)})


def estimate(s: Settings) -> float:
    """Seconds that `perform` will take here, from the second and third step of LSO; loading is not counted."""
    start, steps = Mixed(s, [s.style]), s.num_steps
    begun = time.perf_counter()
    if steps:
        run = start.optimise()
        next(run)
        begun = time.perf_counter()
        count = sum(1 for _ in itertools.islice(run, 2))
        run.close()
        steps /= max(count, 1)
    else:
        start.image()
        steps = 1
    return steps * (time.perf_counter() - begun)


# --- one run ----------------------------------------------------------------------------------------------------------


class Mixed:
    """One content mixed with some references, before LSO.

    G: the mixed generator, Eq. (6). ws: the mixed codes [N, num_ws, w_dim], Eq. (7), one for each reference.
    x: the content [N, 3, R, R]. loss: d_h.
    """

    def __init__(self, s: Mix, references: Sequence[str]) -> None:
        self.settings, self.device = s, str(devices.choose(s.device))
        self.G = _mixed(s, self.device)
        styles = codes(s.styles, s.target)
        w_t = torch.cat([styles[name] for name in references]).to(self.device)
        w_s = codes(s.contents, s.source)[s.content].to(self.device).expand_as(w_t)
        _, lam = _lambdas(s.method, s.low, s.high, s.from_block, self.G.resolution)
        self.ws = mixing.lerp_ws(w_s, w_t, lam, code_blocks=self.G.code_blocks)  # Eq. (7)
        x = content_picture(s.content, self.G.resolution).to(self.device)
        self.x = x.expand(len(references), -1, -1, -1)
        self.loss = loss_of(s.loss, s.perceptual, None, 0, self.device)

    @torch.no_grad()
    def image(self) -> Tensor:
        """The mixed images G_m(w_m), [N, 3, R, R]."""
        return self.G.synthesis(self.ws)

    def optimise(self) -> optim.Run[inversion.Result]:
        """LSO with the run's settings, Eq. (8) or (9); `num_steps` must not be 0."""
        s = self.settings
        e = directions.closed_form(self.G)[1][:, : s.directions].to(self.G.w_avg) if s.directions else None
        return lso.optimise(
            self.G,
            self.ws,
            self.x,
            self.loss,
            lam_reg=s.lam_reg,
            layers=_layers(s.layers, self.G.num_ws),
            directions=e,
            shared=s.shared,
            num_steps=s.num_steps,
            optimise_noise=s.optimise_noise,
            lr=s.lr,
            seed=s.seed,
        )

    def optimised(self) -> Tensor:
        """The images after LSO, [N, 3, R, R], or the mixed ones when the run has no steps."""
        return optim.solve(self.optimise()).image if self.settings.num_steps else self.image()


def _layers(layers: str | Sequence[int], num_ws: int) -> list[int]:
    if isinstance(layers, str):
        if layers not in ("early", "all"):
            expected = '"early", "all" or indices of codes'
            raise UnknownName(f"layers {layers!r}", expected=expected, do='use "early" for those of Sec. III-C')
        return lso.early_layers(num_ws) if layers == "early" else list(range(num_ws))
    return list(layers)


def _lambdas(
    method: str, low: float, high: float, from_block: str, resolution: int
) -> tuple[mixing.Lambdas, mixing.Lambdas]:
    """Lambdas of the generators, Eq. (6), and of the codes, Eq. (7)."""
    swap = mixing.swap_lambdas(resolution, from_block)
    known = {
        "swap_layers": (swap, 0.0),
        "swap_codes": (swap, swap),
        "blend_layers": (mixing.logistic_lambdas(resolution, from_block), 0.0),
        "interpolate": (mixing.paper_lambdas(resolution, low, high),) * 2,
    }
    if method not in known:
        hint = nearest(method, list(METHODS)) or 'use "interpolate" for Eq. (6) and (7)'
        raise UnknownName(f"method {method!r}", expected=f"one of {', '.join(METHODS)}", do=hint)
    return known[method]


def _mixed(s: Mix, device: str) -> nn.Module:
    """The mixed generator, which runs that differ in other settings share."""
    return _mixed_of(s.source, s.target, s.method, s.low, s.high, s.from_block, device)


@weights.cached(CACHED)
def _mixed_of(
    source: str, target: str, method: str, low: float, high: float, from_block: str, device: str
) -> nn.Module:
    G_s, G_t = generator_of(source, device), generator_of(target, device)
    lam, _ = _lambdas(method, low, high, from_block, G_s.resolution)
    return mixing.lerp_generators(G_s, G_t, lam)  # Eq. (6)


@weights.cached(64)
def content_picture(name: str, resolution: int) -> Tensor:
    """A picture by name, [1, 3, R, R] in [-1, 1], kept by the process that uses it."""
    return picture(name, resolution)


def codes(file: str, generator: str) -> gallery.Gallery:
    """The gallery in a file, named as in the settings; `LayoutMismatch` unless it is the generator's.

    It is read again when the file changes.
    """
    return _read(file.removeprefix("file:"), generator)


@weights.cached(CACHED)
def _read(path: str, generator: str) -> gallery.Gallery:
    return gallery.load(path, generator_of(generator, "cpu"))


# --- measures ---------------------------------------------------------------------------------------------------------


def _measured(column: str, result: Tensor, mixed: Tensor, start: Mixed, s: Settings) -> float | None:
    against, colon, metric = column.partition(":")
    if colon:
        other = {"content": lambda: start.x, "mixed": lambda: mixed}.get(against)
        other = other() if other else content_picture(s.style, start.G.resolution).to(start.device)
        return float(metrics.METRICS[metric][1](result, other)[0])
    if column == "loss":
        return float(sum(start.loss(result, start.x).values()))
    if column == "pose_error":
        return pose_error(result, s.content)
    outside = background(s.content, s.style, start.G.resolution)
    if outside is None:
        return None
    change = ((result - mixed) / 2).square().mean(1, keepdim=True).cpu()  # on the [0, 1] scale
    return float((change * outside).sum() / outside.sum()) ** 0.5


def pose_error(x: Tensor, content: str) -> float | None:
    """Angle in degrees between the pose read off x [1, 3, H, W] and that of a rendered content; None for any other."""
    people = drawn(content)
    return None if people is None else float(np.asarray(pose.error(x, people.pose))[0])


@functools.lru_cache(256)
def background(content: str, style: str, resolution: int) -> Tensor | None:
    """[1, 1, R, R]: 1 further than `MARGIN` from the heads of content and reference; None unless both are rendered."""
    heads = []
    for name in (content, style):
        people, kind = drawn(name), name.partition(":")[0]
        if people is None:
            return None
        heads.append(portraits.render_with_truth(people, resolution, 1, domain=DRAWN[kind]).head_mask)
    reach = max(1, round(MARGIN * resolution))
    near = F.max_pool2d(torch.stack(heads).amax(0), 2 * reach + 1, stride=1, padding=reach)
    return (near < 0.01).float()
