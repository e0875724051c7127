"""An INR head for a trained StyleGAN2 or MobileStyleGAN: the paper's generator without the paper's GPUs.

Style-INR-GAN (Sec. III-A) differs from StyleGAN2 only in its last step. So mapping network, constant, convolutions and
noise are copied and frozen, and the head learns to draw the generator's own pictures. There is no data set and no
discriminator: one pass of the generator gives the features that the head reads and the picture that it should draw.

What can be lost: StyleGAN2 adds up one RGB picture from each block, and the head sees only the last features. It cannot
draw what an earlier block gave to its toRGB but not to the next block. `measure` says how much that is.

How the head starts: the last toRGB is a modulated linear map, and so is a part of the head. Its affine layer is copied,
and because lrelu(a) - lrelu(-a) = 1.2 a with slope 0.2, six of the hidden units carry the three colours through both
hidden layers exactly. So the head draws the last block's RGB before its first step, and learns the rest.

MobileStyleGAN makes RGB once, from its last features. There the head that has not made a step draws the network's own
picture, and no step can improve it; `run` then only measures and saves, unless it is asked for steps.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import make_grid

from .. import fid, metrics, weights
from ..errors import SEED, InvalidValue, LayoutMismatch, number
from ..nets import Generator, MobileGenerator, MobileINR, StyleINR
from ..nets.mobile_inr import MobileINRHead
from ..nets.style_inr import pixel_grid
from ..nets.stylegan2 import SQRT2
from ..store import destination, fingerprint
from . import loop, shipping
from .checkpoints import Parts
from .gan_measures import pooled_features
from .picture_sets import PictureSet
from .recipe import MOST, Recipe
from .updates import descend

PAIR_GAIN = 1.2  # lrelu(a) - lrelu(-a) = (1 + 0.2) a


@dataclass(frozen=True)
class InrHeadRecipe(Recipe):
    """How a head is trained.

    steps, batch: each step draws a batch of pictures; no step keeps the head as `attach` makes it.
    points, updates: the head works point by point and the features are costly, so each step updates the head `updates`
        times, at `points` pixels of every picture that no other update of the step used.
    lr: Adam's learning rate at the start; it falls linearly to zero.
    hidden: width of the MLP.
    mixing_prob: share of batches with style mixing at a random layer, because inversion visits W+.
    psi_min: every picture is truncated with a psi from [psi_min, 1], because inversions start at the mean code.
    canvas_prob: share of batches on a random canvas of 1/2 to 3/2 of the native edge in each direction; the frozen
        blocks and their toRGBs work there just as well.
    """

    steps: int = 1000
    batch: int = 8
    points: int = 2048
    updates: int = 4
    lr: float = 0.01
    hidden: int = 64
    mixing_prob: float = 0.5
    psi_min: float = 0.5
    canvas_prob: float = 0.25
    seed: int = 0

    INTERVALS: ClassVar[dict[str, str]] = {
        "steps": "whole [0, inf)",
        **dict.fromkeys(("batch", "points", "updates"), "whole [1, inf)"),
        **dict.fromkeys(("mixing_prob", "psi_min", "canvas_prob"), "[0, 1]"),
        "lr": "(0, inf)",
        "hidden": "whole [6, 4096]",  # see `attach`
        "seed": SEED,
    }


WITH_HEAD = {Generator: StyleINR, MobileGenerator: MobileINR}


def recipe_for(G: nn.Module, *, steps: int | None = None, hidden: int | None = None, seed: int = 0) -> InrHeadRecipe:
    """The recipe for a generator: 1000 steps and 64 hidden units for a StyleGAN2, none and 32 for a MobileStyleGAN,
    whose megapixels are drawn one at a time."""
    mobile = isinstance(G, MobileGenerator)
    own = dict(steps=0, hidden=32, batch=1, updates=16) if mobile else {}
    given = {k: v for k, v in dict(steps=steps, hidden=hidden).items() if v is not None}
    return InrHeadRecipe(**own | given, seed=seed)


def attach(G: Generator | MobileGenerator, *, hidden: int = 64) -> StyleINR | MobileINR:
    """A generator with copies of G's mapping, constant, convolutions and noise maps, frozen, and a head to train.

    The head starts exactly as G's last toRGB (without its clamp). G is not changed.

    Raises:
        LayoutMismatch: G is neither a StyleGAN2 nor a MobileStyleGAN (a Style-INR-GAN already has a head).
        InvalidValue: there are fewer hidden units than the colours need.
    """
    if type(G) not in WITH_HEAD:
        raise LayoutMismatch(
            f"a {type(G).__name__}",
            expected="a StyleGAN2 or MobileStyleGAN generator",
            do="name one without a head, such as portraits_sg128",
        )
    if hidden < 6:
        raise InvalidValue(f"hidden = {hidden}", expected="at least 6, two for each colour", do="use 32 or more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        S = WITH_HEAD[type(G)](inr_hidden=hidden, **G.config)
    shared = {k: v for k, v in G.state_dict().items() if ".torgb." not in k}
    head = {k: v for k, v in S.state_dict().items() if k.startswith("synthesis.inr.")}
    weights.load_strictly(S, shared | head, "the generator")
    _start_as_torgb(S.synthesis.inr, getattr(G.synthesis, f"b{G.synthesis.resolutions[-1]}").torgb)
    S.to(G.w_avg.device).eval().requires_grad_(False)
    S.synthesis.inr.requires_grad_(True)
    return S


@torch.no_grad()
def _start_as_torgb(inr: nn.Module, torgb: nn.Module) -> None:
    """Write toRGB into the first six units of both hidden layers; the others start random, with zero weight."""
    inr.affine.load_state_dict(torgb.affine.state_dict())
    sign = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])[:, None]
    rgb = torch.zeros(3, inr.fc0.weight.shape[1])  # [3, C + 2]: what the head samples -> RGB
    if isinstance(inr, MobileINRHead):  # the head's own convolution makes RGB its first three channels
        low, high = torgb.weight[:3], torgb.weight[3:]  # averages; three details of each colour
        details = slice(len(inr.weight) // 4, len(inr.weight) // 4 + 9)
        inr.weight[:3], inr.weight[details] = low, high
        inr.bias[:3], inr.bias[details] = torgb.bias[:3], torgb.bias[3:]
        rgb[:, :3] = torch.eye(3)
    else:
        rgb[:, :-2] = torgb.weight[:, :, 0, 0].cpu() * torgb.gain
        inr.fc2.bias.copy_(torgb.bias)
    through = torch.eye(3).repeat(2, 2) * sign * sign.T / PAIR_GAIN  # [6, 6]: each unit is its own pair's +-difference
    # Linear multiplies by its gain, and by sqrt 2 before the leaky ReLU.
    inr.fc0.weight[:6] = rgb.repeat(2, 1) * sign / (inr.fc0.gain * SQRT2)
    inr.fc1.weight[:6] = 0
    inr.fc1.weight[:6, :6] = through / (inr.fc1.gain * SQRT2)
    inr.fc2.weight.zero_()
    inr.fc2.weight[:, :6] = through[:3] / inr.fc2.gain


# --- samples ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def drawn(
    G: Generator,
    n: int,
    rng: torch.Generator,
    *,
    mixing_prob: float = 0.0,
    psi_min: float = 1.0,
    size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """n samples of G, each with its own z and noise maps: what the head reads, and what it should draw.

    Returns (features [n, C, h, w], the last codes [n, w_dim], pictures [n, 3, H, W]); a StyleGAN2's features have the
    size of its pictures. All draws come from `rng`, on the CPU. G's last blocks accept any canvas `size`, though they
    were not trained on it.
    """
    device = G.w_avg.device
    w = G.mapping.w(torch.randn(n, G.z_dim, generator=rng).to(device))
    psi = psi_min + (1 - psi_min) * torch.rand(n, 1, generator=rng)
    ws = G.w_avg.lerp(w, psi.to(device)).unsqueeze(1).repeat(1, G.num_ws, 1)
    if float(torch.rand([], generator=rng)) < mixing_prob:
        cut = int(torch.randint(1, G.num_ws, (1,), generator=rng))
        ws = torch.cat([ws[:, :cut], ws.flip(0)[:, cut:]], dim=1)
    sizes = G.synthesis.layer_sizes(size)
    noise = {name: torch.randn(n, *shape, generator=rng).to(device) for name, shape in sizes.items()}
    for _, x, picture in G.synthesis.blocks(ws, noise, size):
        pass
    return x, ws[:, -1], picture


# --- training ---------------------------------------------------------------------------------------------------------


class State:
    """The network with its head, and the optimiser, at a step; on the generator's device."""

    def __init__(self, recipe: InrHeadRecipe, G: Generator) -> None:
        self.S = attach(G, hidden=recipe.hidden)
        self.opt = torch.optim.Adam(self.S.synthesis.inr.parameters(), lr=recipe.lr, betas=(0.9, 0.99))
        self.step = 0

    @property
    def parts(self) -> Parts:
        """What a checkpoint holds: the frozen rest is the generator's."""
        return {"inr": self.S.synthesis.inr, "opt": self.opt}


def train(recipe: InrHeadRecipe, G: Generator, state: State) -> Iterator[dict[str, float]]:
    """Advance `state` in place to the recipe's end; yield {"step", "images", "mse", "lr"} after every step.

    mse: mean squared difference to the generator's pictures, on the scale [-1, 1], over the updates of this step. All
    draws depend on (seed, step), so a resumed run is the same run.
    """
    inr, R = state.S.synthesis.inr, G.resolution
    cell = R // G.synthesis.resolutions[-1]
    while state.step < recipe.steps:
        rng = torch.Generator().manual_seed(recipe.seed * 10_000_019 + state.step)
        size = (R, R)
        if float(torch.rand([], generator=rng)) < recipe.canvas_prob:
            edges = torch.randint(R // 2, 3 * R // 2 + 1, (2,), generator=rng)
            size = tuple((edges // cell * cell).tolist())  # whole cells of the last features
        x, w, picture = drawn(G, recipe.batch, rng, mixing_prob=recipe.mixing_prob, psi_min=recipe.psi_min, size=size)
        everywhere, wanted = pixel_grid(size, device=x.device).flatten(0, 1), picture.flatten(2)
        order = torch.randperm(len(everywhere), generator=rng).to(x.device)
        lr = state.opt.param_groups[0]["lr"] = recipe.lr * (1 - state.step / recipe.steps)
        errors = []
        for points in order.split(recipe.points)[: recipe.updates]:
            error = F.mse_loss(inr(x, w, everywhere[points][None]).flatten(2), wanted[:, :, points])
            descend(state.opt, error)
            errors.append(error.detach())
        state.step += 1
        mse = float(torch.stack(errors).mean())
        yield {"step": state.step, "images": state.step * recipe.batch, "mse": mse, "lr": lr}


def at_once(G: nn.Module) -> int:
    """Pictures drawn at once outside the training: at 1024 pixels, one takes as much memory as many small ones."""
    return 8 if G.resolution <= 512 else 1


@torch.no_grad()
def sheet(G: Generator, state: State) -> Tensor:
    """[1, 3, H, W]: some of G's pictures over the head's."""
    n = at_once(G)
    x, w, picture = drawn(G, n, torch.Generator().manual_seed(1))
    both = torch.cat([picture, state.S.synthesis.inr(x, w, None)]).clamp(-1, 1).cpu()
    return make_grid(both, nrow=n, padding=2)[None].clamp(-1, 1)


# --- what was lost ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(
    G: Generator, S: StyleINR, *, n: int = 256, seed: int = 1_000_003, data: PictureSet | None = None
) -> dict[str, float]:
    """What the head loses against G, on n unseen samples (no truncation, no mixing, native canvas).

    Returns "psnr" [dB], its standard deviation "psnr_sd" and 5th percentile "psnr_low", and "lpips" (thin) of the
    head's pictures against G's; "psnr_canvas", the mean of eight others on two canvases that are not square; "frechet",
    the distance between n pictures of the head and n others of G in pooled thin VGG16 features, and "frechet_floor",
    the same for G's own pictures, which the finite sample explains. With `data`, "frechet_data" and
    "frechet_data_generator" are the distances of the head's and of G's pictures from (at most n of) its pictures.
    """
    rng, most = torch.Generator().manual_seed(seed), at_once(G)
    psnr, lpips, pooled = [], [], {"other": [], "generator": [], "head": []}
    for first in range(0, n, most):
        b = min(most, n - first)
        pooled["other"].append(pooled_features(drawn(G, b, rng)[2].clamp(-1, 1)).cpu())
        x, w, picture = drawn(G, b, rng)
        ours, theirs = S.synthesis.inr(x, w, None).clamp(-1, 1), picture.clamp(-1, 1)
        psnr.extend(metrics.psnr(ours, theirs))
        lpips.extend(metrics.lpips(ours, theirs, "thin"))
        pooled["head"].append(pooled_features(ours).cpu())
        pooled["generator"].append(pooled_features(theirs).cpu())
    sets = {k: torch.cat(v) for k, v in pooled.items()}
    psnrs = torch.tensor(psnr)
    found = {
        "psnr": float(psnrs.mean()),
        "psnr_sd": float(psnrs.std()),
        "psnr_low": float(psnrs.quantile(0.05)),
        "lpips": float(torch.tensor(lpips).mean()),
        "psnr_canvas": _psnr_elsewhere(G, S, rng),
        "frechet": fid.frechet_distance(sets["other"], sets["head"]),
        "frechet_floor": fid.frechet_distance(sets["other"], sets["generator"]),
    }
    if data is not None:
        index = torch.arange(min(n, len(data)))
        real = torch.cat([pooled_features(data.batch(part)[0].to(G.w_avg.device)).cpu() for part in index.split(8)])
        found["frechet_data"] = fid.frechet_distance(real, sets["head"])
        found["frechet_data_generator"] = fid.frechet_distance(real, sets["generator"])
    return found


def _psnr_elsewhere(G: Generator, S: StyleINR, rng: torch.Generator) -> float:
    """The head's mean PSNR against G on `canvases`, four samples on each, drawn by the whole network."""
    found = []
    for size in canvases(G.resolution):
        for _ in range(4):
            x, w, picture = drawn(G, 1, rng, size=size)
            found.extend(metrics.psnr(S.synthesis.inr(x, w, None).clamp(-1, 1), picture.clamp(-1, 1)))
    return float(torch.tensor(found).mean())


def canvases(R: int) -> list[tuple[int, int]]:
    """Two sizes (H, W) that are not square: upright and smaller, and wide."""
    return [(5 * R // 8, R // 2), (3 * R // 4, 5 * R // 4)]


# --- from a checkpoint to a file --------------------------------------------------------------------------------------


def run(
    source: str,
    out: Path,
    folder: Path,
    recipe: InrHeadRecipe | None = None,
    *,
    device: str | torch.device = "cpu",
    n: int | None = None,
    data: PictureSet | None = None,
    every: int = 50,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train a head for `source` (catalogue name, our file, .pkl or .pt), save the network as `out`, measure it.

    Args:
        source: a StyleGAN2 or a MobileStyleGAN.
        out: the file; .safetensors is appended if it is missing. Its card, .md, is written beside it; a file in
            data/weights enters the catalogue.
        folder: for this run only; an interrupted run resumes there (see `loop.follow`).
        recipe: of the training; None for `recipe_for` the generator.
        device: "cpu" or "cuda".
        n: pictures that `measure` compares, 2 or more; None for 256, and for 20 at 1024 pixels.
        data: see `measure`.
        every: steps between two checkpoints.
        force: replace `out` and its card, and another run in the folder.
        tell: called with a line for each row of the log.

    Returns:
        `measure`'s numbers.

    Raises:
        InvalidValue: a number is out of range.
        StoreError: `out` or its card exists, the folder holds something else, or they cannot be written.
    """
    every = number("every", every, "whole [1, inf)")
    out = shipping.free(destination(out, ".safetensors"), force=force, source=weights.path(source))
    G = weights.load_generator(source, device=device)
    n = number("n", (256 if G.resolution <= 512 else 20) if n is None else n, f"whole [2, {MOST}]")
    recipe = recipe or recipe_for(G)
    state = State(recipe, G)
    last = loop.follow(
        folder,
        "INR head",
        recipe,
        state,
        train(recipe, G, state),
        data={},
        start=fingerprint(G.state_dict())[:16],
        every=every * recipe.batch,
        sheet=lambda: sheet(G, state),
        force=force,
        tell=tell,
    )
    found = measure(G, state.S, n=n, data=data)
    sentence = f"INR head trained on the samples of {Path(source).name}"
    text = card(out, source, state.S, recipe, found, n=n, seconds=last.get("seconds", 0.0))
    shipping.ship(state.S, out, card=text, sentence=sentence, half=False)
    return found


def card(
    out: Path, source: str, S: StyleINR, recipe: InrHeadRecipe, found: dict[str, float], *, n: int, seconds: float
) -> str:
    """The model card of the file `out`, Markdown: the recipe and what was lost."""
    r, mobile = recipe, isinstance(S, MobileINR)
    kind = "MobileStyleGAN" if mobile else "StyleGAN2"
    where = "a CUDA GPU" if next(S.parameters()).is_cuda else f"one process on a {platform.machine()} CPU"
    shared = Path(source).name
    is_shipped = out.resolve().parent == shipping.shipped().resolve()
    to = f"data/weights/{out.name}" if is_shipped else out.name
    command = f"hrlab train style-inr --from {shared} --out {to} --steps {r.steps} --hidden {r.hidden}"
    command += " --force" * is_shipped
    parameters = f"{sum(p.numel() for p in S.synthesis.inr.parameters()):,} parameters"
    trained = f"the head ({parameters}) was trained" if r.steps else f"the head ({parameters}) draws what they drew"
    training = f"""
- **Data:** none. The head learnt to draw the {kind}'s own samples ({r.steps * r.batch:,} of them, random z, style
  mixing in {r.mixing_prob:.0%} of the batches, truncation {r.psi_min} to 1, random noise, {r.canvas_prob:.0%} on other
  canvases) from its last features. Mean squared error, Adam, lr {r.lr} falling to zero."""
    to_data = ""
    if "frechet_data" in found:
        ours, theirs = found["frechet_data"], found["frechet_data_generator"]
        to_data = (
            f"- **Frechet distance to {n} pictures of the data:** {theirs:.3f} without, {ours:.3f} with the head.\n"
        )
    limits = "what the StyleGAN2's coarser toRGB layers drew, and its last features do not show, is lost."
    if mobile:
        limits = (
            "as the MobileStyleGAN's. It makes RGB once, linearly, from its last features, so the head can be exactly\n"
            "  that step, and without training steps it is; its other hidden units are there for whoever trains it on."
        )
    sizes = " and ".join(f"{w}x{h}" for h, w in canvases(S.resolution))
    return f"""# {out.stem}

An INR head (Sec. III-A) on the {kind} `{shared}`: any canvas, the same codes and noise maps.

- **Origin:** mapping, constant, convolutions and noise are the {kind}'s own, unchanged; its toRGB layers are gone;
  {trained}.{training if r.steps else ""}
- **Command:** `{command}`, seed {r.seed}.
- **Hardware and time:** {where}, {seconds / 60:.1f} minutes.
- **What was lost,** on {n} samples that training never saw, against the {kind}'s picture of the same codes and
  noise: PSNR {found["psnr"]:.1f} dB (5th percentile {found["psnr_low"]:.1f} dB, standard deviation
  {found["psnr_sd"]:.1f} dB), LPIPS (thin) {found["lpips"]:.4f}; PSNR {found["psnr_canvas"]:.1f} dB on eight others, of
  {sizes} pixels.
- **Frechet distance to {n} other pictures of the {kind}** (pooled features of `vgg16_thin`): {found["frechet"]:.3f};
  its own pictures of these codes are at {found["frechet_floor"]:.3f}.
{to_data}- **Limits:** {limits}
- **Licence:** as the {kind}'s.
"""
