"""One cross-domain synthesis as a run of a sweep: content, reference, a way of mixing, LSO or none, measured.

The rows of Fig. 2, 7, 13, 14, 16 and 17. A run's settings are `DEFAULTS` with changes; a column is a measure and what
it is measured against::

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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import devices, directions, gallery, lso, metrics, mixing, optim, pose, weights
from ..errors import UnknownName, nearest, number
from ..worlds import portraits
from ..worlds.pictures import DRAWN, drawn, picture
from .inversions import CACHED, generator_of, loss_of, png
from .sweep import Outcome

METHODS = ("swap_layers", "swap_codes", "blend_layers", "interpolate")
AGAINST = ("content", "mixed", "reference")
OTHERS = ("loss", "pose_error", "background")
WITHIN = ("content", "style")  # what tells the runs of one row of a table apart
MARGIN = 0.05  # of the picture's side by which heads are widened before the rest counts as background
DEFAULTS: Mapping[str, Any] = {
    "content": "",  # a picture's name, and the gallery that has its code in the source generator
    "contents": "",
    "style": "",  # the reference, and the gallery that has its code in the target generator
    "styles": "",
    "source": "portraits_inr128",
    "target": "",
    "method": "interpolate",  # of METHODS
    "low": mixing.LOW,  # lambda of the coarse blocks, and of the fine ones
    "high": mixing.HIGH,
    "from_block": "b32",  # where swapping begins, or the middle of a smooth blend
    "num_steps": 50,  # of LSO; 0 leaves the mixed image as it is
    "layers": "early",  # or "all", or indices of codes
    "directions": 0,  # K of Eq. (9); 0 is Eq. (8)
    "shared": True,
    "lam_reg": 0.0,
    "optimise_noise": False,
    "lr": 0.1,
    "seed": 0,
    "loss": "vgg_high",  # for losses.named
    "perceptual": "shipped",
    "columns": (),
    "device": "auto",
}

RANGES = {name: lso.RANGES[name] for name in ("lam_reg", "lr", "seed")} | {  # lambdas are checked by `mixing`
    "num_steps": "whole [0, inf)",
    "directions": "whole [0, inf)",
}


def grid(pairs: Sequence[tuple[str, str]], variants: Sequence[Mapping[str, Any]], **fixed: Any) -> list[dict[str, Any]]:
    """Every variant of every pair (content, style) as runs for `perform`, variant by variant; all names are checked.

    variants: changes of `DEFAULTS`, one a row of a table. fixed: changes that all share.

    Raises:
        UnknownName: a setting, method, column, loss, tap, layer, picture or generator that there is not.
        InvalidValue: a number out of range.
        LayoutMismatch: generators that cannot be mixed, or a gallery of another generator.
    """
    runs = []
    for variant in variants:
        for name in (changes := {**fixed, **variant}):
            if name not in DEFAULTS:
                raise UnknownName(
                    f"setting {name!r}",
                    expected=f"one of {list(DEFAULTS)}",
                    do=nearest(name, list(DEFAULTS)) or "see it",
                )
        row = {**DEFAULTS, **changes}
        row |= {name: number(name, row[name], interval) for name, interval in RANGES.items()}
        row["columns"] = list(row["columns"])
        _check(row, pairs)
        runs += [{**row, "content": content, "style": style} for content, style in pairs]
    return runs


def _check(row: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> None:
    for column in row["columns"]:
        against, colon, metric = column.partition(":")
        if not colon and column in OTHERS:
            continue
        if against not in AGAINST or not colon:
            known = [*(f"{a}:{m}" for a in AGAINST for m in metrics.METRICS), *OTHERS]
            raise UnknownName(
                f"column {column!r}",
                expected=f"'AGAINST:METRIC' with one of {', '.join(AGAINST)}, or one of {', '.join(OTHERS)}",
                do=nearest(column, known) or "see hrlib/experiments/stylisation.py",
            )
        metrics.check_columns([metric])
    G_m = _mixed(*_mixing(row), "cpu")
    number("directions", row["directions"], f"whole [0, {G_m.w_dim}]")
    loss_of(row["loss"], row["perceptual"], None, 0, "cpu")
    lso.checked_layers(_layers(row["layers"], G_m.num_ws), G_m.num_ws)
    for which, generator, names in (
        ("contents", "source", {c for c, _ in pairs}),
        ("styles", "target", {s for _, s in pairs}),
    ):
        found = codes(row[which], row[generator])
        for name in names:
            found[name]


def perform(*, columns: Sequence[str], **settings: Any) -> Outcome:
    """Mix one content with one reference, optimise if asked to, and measure; the settings are those of `grid`.

    Returns:
        {column: value, or None where it cannot be measured}, and the result as image.png (8 bits; it is measured
        before it is rounded).
    """
    start = Start(settings)
    mixed, result = start.image().clamp(-1, 1), start.optimised(settings).clamp(-1, 1)
    return Outcome({c: _measured(c, result, mixed, start, settings) for c in columns}, {"image.png": png(result)})


def estimate(*, columns: Sequence[str], **settings: Any) -> float:
    """Seconds that `perform` will take here, from the second and third step of LSO; loading is not counted."""
    start, steps = Start(settings), settings["num_steps"]
    begun = time.perf_counter()
    if steps:
        run = lso.optimise(start.G, start.ws, start.x, start.loss, **options(start.G, settings))
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


class Start:
    """What a run begins with: the mixed generator G and codes ws, the content x [N, 3, R, R], the loss.

    N is 1, or with a list of references in s["style"], as many.
    """

    def __init__(self, s: Mapping[str, Any]) -> None:
        mix, where = _mixing(s), str(devices.choose(s["device"]))
        self.device = where
        self.G = _mixed(*mix, where)
        w_s = codes(s["contents"], s["source"])[s["content"]].to(where)
        styles = codes(s["styles"], s["target"])
        names = [s["style"]] if isinstance(s["style"], str) else s["style"]
        w_t = torch.cat([styles[name] for name in names]).to(where)
        w_s = w_s.expand_as(w_t)
        self.ws = mixing.lerp_ws(w_s, w_t, _lambdas(*mix[2:], self.G.resolution)[1])  # Eq. (7)
        self.x = content_picture(s["content"], self.G.resolution).to(where).expand(len(names), -1, -1, -1)
        self.loss = loss_of(s["loss"], s["perceptual"], None, 0, where)

    @torch.no_grad()
    def image(self) -> Tensor:
        """The mixed images G_m(w_m)."""
        return self.G.synthesis(self.ws)

    def optimised(self, s: Mapping[str, Any]) -> Tensor:
        """The images after LSO with the settings of a run, or the mixed ones where it has no steps."""
        if not s["num_steps"]:
            return self.image()
        return optim.solve(lso.optimise(self.G, self.ws, self.x, self.loss, **options(self.G, s))).image


def options(G: nn.Module, s: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `lso.optimise` in the settings of a run."""
    kept = ("num_steps", "lam_reg", "optimise_noise", "shared", "lr", "seed")
    e = directions.closed_form(G)[1][:, : s["directions"]].to(G.w_avg) if s["directions"] else None
    return {name: s[name] for name in kept} | {"layers": _layers(s["layers"], G.num_ws), "directions": e}


def _layers(layers: str | Sequence[int], num_ws: int) -> list[int]:
    if isinstance(layers, str):
        if layers not in ("early", "all"):
            raise UnknownName(f"layers {layers!r}", expected='"early", "all" or indices of codes', do="use one of them")
        return lso.early_layers(num_ws) if layers == "early" else list(range(num_ws))
    return list(layers)


def _mixing(s: Mapping[str, Any]) -> tuple[str, str, str, float, float, str]:
    return s["source"], s["target"], s["method"], s["low"], s["high"], s["from_block"]


def _lambdas(method: str, low: float, high: float, from_block: str, resolution: int) -> tuple[Any, Any]:
    """Lambdas of the generators and of the codes."""
    swap = mixing.swap_lambdas(resolution, from_block)
    known = {
        "swap_layers": (swap, 0.0),  # Fig. 2a
        "swap_codes": (swap, swap),  # Fig. 2b
        "blend_layers": (mixing.logistic_lambdas(resolution, from_block), 0.0),
        "interpolate": (mixing.paper_lambdas(resolution, low, high),) * 2,  # Fig. 2c, Eq. (6) and (7)
    }
    if method not in known:
        hint = nearest(method, list(METHODS))
        raise UnknownName(f"method {method!r}", expected=f"one of {', '.join(METHODS)}", do=hint or "pick one")
    return known[method]


@weights.kept(CACHED)
def _mixed(source: str, target: str, method: str, low: float, high: float, from_block: str, device: str) -> nn.Module:
    G_s, G_t = generator_of(source, device), generator_of(target, device)
    return mixing.lerp_generators(G_s, G_t, _lambdas(method, low, high, from_block, G_s.resolution)[0])  # Eq. (6)


@weights.kept(64)
def content_picture(name: str, resolution: int) -> Tensor:
    """`lab.picture`, kept by the process that asks for it."""
    return picture(name, resolution)


def codes(file: str, generator: str) -> gallery.Gallery:
    """The gallery in a file named as in the settings, checked to be the generator's; read again when it changes."""
    return _read(file.removeprefix("file:"), generator)


@weights.kept(CACHED)
def _read(path: str, generator: str) -> gallery.Gallery:
    return gallery.load(path, generator_of(generator, "cpu"))


# --- measures ---------------------------------------------------------------------------------------------------------


def _measured(column: str, result: Tensor, mixed: Tensor, start: Start, s: Mapping[str, Any]) -> float | None:
    against, colon, metric = column.partition(":")
    if colon:
        other = {"content": lambda: start.x, "mixed": lambda: mixed}.get(against)
        other = other() if other else content_picture(s["style"], start.G.resolution).to(start.device)
        return float(metrics.METRICS[metric][1](result, other)[0])
    if column == "loss":
        return float(sum(start.loss(result, start.x).values()))
    if column == "pose_error":
        return pose_error(result, s["content"])
    outside = background(s["content"], s["style"], start.G.resolution)
    if outside is None:
        return None
    change = ((result - mixed) / 2).square().mean(1, keepdim=True).cpu()  # on the [0, 1] scale
    return float((change * outside).sum() / outside.sum()) ** 0.5


def pose_error(x: Tensor, content: str) -> float | None:
    """Angle in degrees between the pose that is read off x [1, 3, H, W] and that of a rendered content; else None."""
    people = drawn(content)
    return None if people is None else float(np.asarray(pose.error(x, people.pose))[0])


@functools.lru_cache(256)
def background(content: str, style: str, resolution: int) -> Tensor | None:
    """[1, 1, R, R]: 1 where neither the content's nor the reference's head is near, by `MARGIN`; None unless drawn."""
    heads = []
    for name in (content, style):
        people, kind = drawn(name), name.partition(":")[0]
        if people is None:
            return None
        heads.append(portraits.render_with_truth(people, resolution, 1, domain=DRAWN[kind]).head_mask)
    reach = max(1, round(MARGIN * resolution))
    near = F.max_pool2d(torch.stack(heads).amax(0), 2 * reach + 1, stride=1, padding=reach)
    return (near < 0.01).float()
