"""Train a small DualStyleGAN (Yang et al. 2022) on the shipped world, by the article's progressive fine-tuning.

    hrlab train dualstylegan cartoon --force      # stages "structure" and "style", replaces the network in data/weights

The face generator is `portraits_sg128`, frozen; the extrinsic path and a discriminator are trained. Stage I of the
article is the initial state: residual blocks near zero, colour maps the identity. Stage II ("structure") learns on
photographs to take the coarse look, too, from another person's extrinsic code; stage III ("style") moves to a drawn
domain with the article's losses. Weights and layer numbers are those of its published code, where they carry over.

Facial destylisation finds, for every drawing, the code of a face (intrinsic) and of the drawing (extrinsic). It needs
no optimisation here: the rendered sets store the latent of the person, and the domain's own generator gives it the same
meaning, so both codes are its w. At test time, the code of a picture has to be found by inversion.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import make_grid

from .. import features, weights
from ..errors import SEED, UnknownName, nearest
from ..nets.dualstylegan import DualStyleGAN
from ..store import fingerprint
from . import loop
from .checkpoints import Parts
from .gan import channels_last, pair
from .picture_sets import PictureSet
from .recipe import Recipe
from .updates import average, descend, fallen, gradient_penalty

SOURCE = "portraits_sg128"
STRUCTURE_IMAGES = 3_200  # of stage II, which all domains share
TAPS = {"features_7": 0.5, "features_14": 1.0}  # the VGG taps that the losses compare, and their weights
JITTER_FROM = 8  # intrinsic codes of paired pictures are random from this one on, so that no colours come from them


@dataclass(frozen=True)
class DualStyleGANRecipe(Recipe):
    """How one stage is trained; lengths are in generated pictures."""

    stage: str = "style"  # or "structure"
    total_images: int = 7_200
    batch: int = 8  # a multiple of 4
    lr: float = 0.005  # the authors' is 0.002, for about six times as many pictures
    lr_fall: float = 0.3  # share of the stage, at its end, over which the rates fall linearly to a tenth
    r1_gamma: float = 0.5  # portraits_sg128's own; the authors' 10 belongs to 1024 px
    r1_every: int = 16
    mixing_prob: float = 0.9  # style mixing of intrinsic codes that belong to no picture
    jitter: float = 0.1  # standard deviation of the noise added to extrinsic codes
    lam_perc: float = 1.0
    lam_cx: float = 0.25
    lam_fm: float = 0.25
    lam_id: float = 1.0
    lam_reg: float = 0.01
    ema_images: int = 600
    seed: int = 0

    INTERVALS: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("total_images", "batch", "r1_every", "ema_images"), "whole [1, inf)"),
        **dict.fromkeys(("lr_fall", "mixing_prob"), "[0, 1]"),
        **dict.fromkeys(("r1_gamma", "jitter", "lam_perc", "lam_cx", "lam_fm", "lam_id", "lam_reg"), "[0, inf)"),
        "lr": "(0, inf)",
        "seed": SEED,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage not in ("structure", "style"):
            do = nearest(self.stage, ["structure", "style"]) or "name one of these stages"
            raise UnknownName(f"stage {self.stage!r}", expected='"structure" or "style"', do=do)


SHIPPED = DualStyleGANRecipe()  # of stage III


class State:
    """Network, its moving average, discriminator and optimisers, at a step."""

    def __init__(
        self, recipe: DualStyleGANRecipe, begin: State | None = None, device: str | torch.device = "cpu"
    ) -> None:
        source, critic = pair(SOURCE)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.net = DualStyleGAN(generator=source.config)
        weights.load_strictly(self.net.generator, source.state_dict(), SOURCE)
        self.D = critic.requires_grad_(True).train()
        if begin is not None:  # the averaged network of the stage before
            self.net.load_state_dict(begin.ema.state_dict())
            self.D.load_state_dict(begin.D.state_dict())
        self.net.requires_grad_(True).generator.requires_grad_(False)
        for part in (self.net, self.D):
            part.to(device=device, memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.net).requires_grad_(False)
        adam = lambda parameters: torch.optim.Adam(parameters, lr=recipe.lr, betas=(0.0, 0.99))
        self.opt_G, self.opt_D = adam(self.trained), adam(self.D.parameters())
        self.step = 0

    @property
    def trained(self) -> list[nn.Parameter]:
        """The extrinsic path."""
        return [*self.net.style.parameters(), *self.net.res.parameters()]

    @property
    def parts(self) -> Parts:
        """What a checkpoint holds."""
        return {"net": self.net, "ema": self.ema, "D": self.D, "opt_G": self.opt_G, "opt_D": self.opt_D}


# --- losses of the article --------------------------------------------------------------------------------------------


def contextual(a: Tensor, b: Tensor, width: float = 0.2) -> Tensor:
    """Contextual loss (Mechrez et al. 2018, Eqs. 2 to 4, cosine distances) of feature maps [N, C, h, w]: a scalar.

    0 when every feature of b is clearly the nearest neighbour of some feature of a, at any position.
    """
    centre = b.mean((0, 2, 3), keepdim=True)
    u, v = (F.normalize((f - centre).flatten(2), dim=1) for f in (a, b))
    d = 1 - u.transpose(1, 2) @ v  # [N, positions of a, of b]
    d = d / (d.amin(2, keepdim=True) + 1e-5)
    cx = ((1 - d) / width).softmax(2)
    return -(cx.amax(1).mean(1) + 1e-5).log().mean()


def compared(fake: dict[str, Tensor], real: dict[str, Tensor]) -> dict[str, Tensor]:
    """The article's losses between two sets of VGG maps, in units of the real maps' mean: perc, fm, cx."""
    unit = {tap: real[tap].mean() for tap in TAPS}
    mean = lambda maps, tap: maps[tap].mean((2, 3)) / unit[tap]
    return {
        "perc": sum(share * (fake[t] - real[t]).abs().mean() / unit[t] for t, share in TAPS.items()),
        "fm": sum(F.mse_loss(mean(fake, t), mean(real, t)) for t in TAPS),
        "cx": contextual(F.avg_pool2d(fake["features_14"], 2), F.avg_pool2d(real["features_14"], 2)),
    }


# --- steps ------------------------------------------------------------------------------------------------------------


def train(recipe: DualStyleGANRecipe, data: PictureSet, state: State) -> Iterator[dict[str, float]]:
    """Advance `state` in place to the end of the stage; yield {"step", "images", loss terms} after every step.

    data: pictures with their latents: photographs for "structure", drawings for "style".
    """
    net, D, B, G = state.net, state.D, recipe.batch, state.net.generator
    device = next(net.parameters()).device
    vgg, identity = features.vgg16("shipped", tap="relu").to(device), weights.load_identity(device=device)
    amp = lambda: torch.autocast(device.type, torch.bfloat16)
    while state.step * B < recipe.total_images:
        g = torch.Generator().manual_seed(recipe.seed * 10_000_019 + state.step)
        left = 1 - state.step * B / recipe.total_images
        for optimiser in (state.opt_G, state.opt_D):
            optimiser.param_groups[0]["lr"] = recipe.lr * fallen(left, recipe.lr_fall)
        paired = recipe.stage == "style" and state.step % 2 == 1
        with torch.no_grad():
            picture, z = (part.to(device) for part in data.batch(torch.randint(len(data), (B,), generator=g)))
            target = channels_last(picture)
            w = G.mapping.w(z)[:, None].repeat(1, net.num_ws, 1)
            ex = w + recipe.jitter * torch.randn(w.shape, generator=g).to(device)
            ws = _intrinsic(G, w, paired, recipe, g)
            noise = {k: torch.randn(B, *v.shape, generator=g).to(device) for k, v in G.noise_maps().items()}
            with amp():
                face = G.synthesis(ws, noise).clamp(-1, 1)
                if recipe.stage == "structure":  # the mixed face, Sec. 3.3 of the article: l falls from 7 to 5
                    mixed = 7 - min(2, int(3 * (1 - left)))
                    target = G.synthesis(torch.cat([ws[:, :mixed], w[:, mixed:]], dim=1), noise)
                    ex = w
        with amp():
            fake = net.synthesis(ws, ex, noise=noise)
        terms = _discriminator_step(state, recipe, channels_last(picture), fake.detach(), amp)
        D.requires_grad_(False)
        with amp():
            terms["adversarial"] = F.softplus(-D(channels_last(fake)).float()).mean()
            maps = {
                "fake": vgg(fake.float(), TAPS),
                "real": {k: v.detach() for k, v in vgg(target.float(), TAPS).items()},
            }
        D.requires_grad_(True)
        terms |= compared(*({k: v.float() for k, v in maps[who].items()} for who in ("fake", "real")))
        loss = terms["adversarial"]
        if paired or recipe.stage == "structure":
            loss = loss + recipe.lam_perc * terms["perc"]
        if recipe.stage == "style":
            with amp():
                terms["id"] = 1 - (identity.embed(fake) * identity.embed(face)).sum(1).mean()
            terms["reg"] = sum(p.norm() for p in net.res.parameters())
            loss = loss + recipe.lam_cx * terms["cx"] + recipe.lam_fm * terms["fm"]
            loss = loss + recipe.lam_id * terms["id"] + recipe.lam_reg * terms["reg"]
        descend(state.opt_G, loss)
        average(state.ema, net, 0.5 ** (B / recipe.ema_images))
        state.step += 1
        yield {"step": state.step, "images": state.step * B} | {k: float(v.detach()) for k, v in terms.items()}


def _intrinsic(G: nn.Module, w: Tensor, paired: bool, recipe: DualStyleGANRecipe, g: torch.Generator) -> Tensor:
    """Codes of the face: if paired, the picture's own before `JITTER_FROM`; else random people's, with style mixing."""
    drawn = lambda n: G.mapping.w(torch.randn(n, G.z_dim, generator=g).to(w.device))
    if paired:
        fine = drawn(len(w) * (w.shape[1] - JITTER_FROM)).unflatten(0, (len(w), -1))
        return torch.cat([w[:, :JITTER_FROM], fine], dim=1)
    ws = drawn(len(w))[:, None].repeat(1, w.shape[1], 1)
    if float(torch.rand([], generator=g)) < recipe.mixing_prob:
        cut = int(torch.randint(1, w.shape[1], (1,), generator=g))
        ws = torch.cat([ws[:, :cut], ws.flip(0)[:, cut:]], dim=1)
    return ws


def _discriminator_step(
    state: State, recipe: DualStyleGANRecipe, real: Tensor, fake: Tensor, amp: Callable
) -> dict[str, Tensor]:
    with amp():
        on_real, on_fake = state.D(real).float(), state.D(channels_last(fake)).float()
    terms = {"D_real": F.softplus(-on_real).mean(), "D_fake": F.softplus(on_fake).mean()}
    loss = terms["D_real"] + terms["D_fake"]
    if state.step % recipe.r1_every == 0:
        terms["R1"] = gradient_penalty(state.D, real, amp)
        loss = loss + recipe.r1_gamma / 2 * recipe.r1_every * terms["R1"]
    descend(state.opt_D, loss)
    return terms


@torch.inference_mode()
def sheet(net: DualStyleGAN, data: PictureSet, n: int = 8) -> Tensor:
    """[1, 3, H, W]: faces, portraits, and faces in the portraits' style with the default and with full weights."""
    G = net.generator
    portrait, z = (part.to(G.w_avg.device) for part in data.batch(torch.arange(n)))
    w = lambda z: G.mapping.w(z)[:, None].repeat(1, net.num_ws, 1)
    ws, ex = w(torch.randn(n, G.z_dim, generator=torch.Generator().manual_seed(1)).to(z.device)), w(z)
    rows = [G.synthesis(ws), portrait, net.stylise(ws, ex), net.synthesis(ws, ex)]
    return make_grid(torch.cat(rows).clamp(-1, 1), nrow=n, padding=2)[None].cpu()


def run(
    data: PictureSet,
    folder: str | Path,
    recipe: DualStyleGANRecipe = SHIPPED,
    *,
    begin: State | None = None,
    every: int = 1_600,
    device: str | torch.device = "cpu",
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> State:
    """Train one stage in a folder to its end, or resume; return the final state. See `loop.follow`.

    Args:
        data: pictures with their latents: photographs for stage "structure", drawings for "style".
        folder: see `loop.follow`.
        recipe: of the training.
        begin: the final state of the stage before; None begins at the face generator, with a random style path.
        every: images between two checkpoints, each with a row of the log and a sample sheet; 0 for one at the end only.
        device: of the networks.
        force: see `loop.follow`.
        tell: called with a line for each row of the log.

    Raises:
        InvalidValue, StoreError, NonFiniteLoss: see `loop.follow`.
    """
    state = State(recipe, begin, device)
    begun = state.net if begin else state.net.generator  # the rest starts at random, as the seed says
    loop.follow(
        folder,
        "DualStyleGAN",
        recipe,
        state,
        train(recipe, data, state),
        data=data.what,
        start=f"{SOURCE} ({fingerprint(begun.state_dict())[:8]}, {fingerprint(state.D.state_dict())[:8]})",
        every=every,
        sheet=lambda: sheet(state.ema, data),
        force=force,
        tell=tell,
    )
    return state
