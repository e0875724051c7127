"""Train a small StarGAN v2 (Choi et al. 2020) on the shipped world: one network for all four domains.

    hrlab train starganv2 --force         # trains on the four rendered sets, replaces the network in data/weights

The losses and their weights are the article's: adversarial, R1, style reconstruction, style diversification (its weight
falls to zero), cycle consistency. Three things are cheaper than in the authors' code: styles come from the mapping
network in even steps and from references in odd ones, not from both in each; R1 is lazy; and the networks are narrow.
As in the paper's comparison, its pictures are smaller than those of the other methods (Sec. IV-E: 256 against 1024 px).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import make_grid

from ..errors import SEED
from ..nets.starganv2 import Discriminator, StarGANv2
from ..worlds import portraits
from . import loop
from .checkpoints import Parts
from .picture_sets import PictureSet
from .recipe import Recipe
from .set_files import from_bytes
from .updates import average, descend, fallen, gradient_penalty

NAME = "starganv2_portraits64"


@dataclass(frozen=True)
class StarGANv2Recipe(Recipe):
    """How StarGAN v2 is trained; lengths are in content pictures seen."""

    config: dict = field(
        default_factory=lambda: dict(
            img_size=64,
            style_dim=32,
            latent_dim=16,
            num_domains=len(portraits.DOMAINS),
            max_conv_dim=64,
            w_hpf=0,
            hidden=128,
            width=16,
            domains=list(portraits.DOMAINS),
        )
    )
    total_images: int = 84_000
    batch: int = 8
    lr: float = 3e-4  # the authors' is 1e-4, for ten times as many pictures
    lr_fall: float = 0.25  # share of the run, at its end, over which the rates fall linearly to a tenth
    mapping_gain: float = 0.01  # times lr for the mapping network, as in the authors' code
    weight_decay: float = 1e-4
    lam_sty: float = 1.0
    lam_ds: float = 1.0  # falls linearly to 0 over the run
    lam_cyc: float = 1.0
    lam_reg: float = 1.0  # of R1
    r1_every: int = 4  # steps
    ema_images: int = 4_000  # half-life of the moving average
    seed: int = 0

    INTERVALS: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("total_images", "batch", "r1_every", "ema_images"), "whole [1, inf)"),
        **dict.fromkeys(("mapping_gain", "weight_decay", "lam_sty", "lam_ds", "lam_cyc", "lam_reg"), "[0, inf)"),
        "lr": "(0, inf)",
        "lr_fall": "[0, 1]",
        "seed": SEED,
    }


SHIPPED = StarGANv2Recipe()


class State:
    """Networks, their moving average and optimisers, at a step."""

    def __init__(self, recipe: StarGANv2Recipe, device: str | torch.device = "cpu") -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.nets = StarGANv2(**recipe.config)
            self.D = Discriminator(self.nets.channels, recipe.config["num_domains"])
            for net in (self.nets, self.D):
                net.apply(_he).to(device=device, memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.nets).requires_grad_(False)
        adam = lambda *groups: torch.optim.Adam(
            [{"params": list(net.parameters())} for net in groups],
            lr=recipe.lr,
            betas=(0.0, 0.99),
            weight_decay=recipe.weight_decay,
        )
        n = self.nets
        self.opt_G = adam(n.generator, n.style_encoder, n.mapping_network)
        self.opt_D = adam(self.D)
        self.step = 0

    @property
    def parts(self) -> Parts:
        """What a checkpoint holds."""
        return {"nets": self.nets, "ema": self.ema, "D": self.D, "opt_G": self.opt_G, "opt_D": self.opt_D}


def _he(module: nn.Module) -> None:
    """He initialisation, biases zero; the affine layers of AdaIN then start near gamma = beta = 0."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def reduced(data: Sequence[PictureSet], edge: int) -> list[Tensor]:
    """Each set as uint8 [n, 3, edge, edge], reduced by area means; `edge` divides its resolution."""
    out = []
    for one in data:
        factor = one.resolution // edge
        parts = [F.avg_pool2d(torch.tensor(one.images[i : i + 256]).float(), factor) for i in range(0, len(one), 256)]
        out.append(torch.cat([p.round().to(torch.uint8) for p in parts]))
    return out


def train(recipe: StarGANv2Recipe, pictures: Sequence[Tensor], state: State) -> Iterator[dict[str, float]]:
    """Advance `state` in place to the end of the recipe; yield {"step", "images", loss terms} after every step.

    pictures: one tensor a domain, uint8 [n, 3, R, R], in the order of the configuration's domains.
    """
    N, D, B = state.nets, state.D, recipe.batch
    device = next(N.parameters()).device
    amp = lambda: torch.autocast(device.type, torch.bfloat16)
    while state.step * B < recipe.total_images:
        g = torch.Generator().manual_seed(recipe.seed * 10_000_019 + state.step)
        draw = lambda y, g=g: _draw(pictures, y.cpu(), g).to(device)
        y_src, y = (torch.randint(len(pictures), (B,), generator=g).to(device) for _ in range(2))
        x, left = draw(y_src), 1 - state.step * B / recipe.total_images
        for group, gain in zip(
            (*state.opt_G.param_groups, *state.opt_D.param_groups), (1, 1, recipe.mapping_gain, 1), strict=True
        ):
            group["lr"] = recipe.lr * gain * fallen(left, recipe.lr_fall)
        # Two style guides for the same domains: latents in even steps, reference pictures in odd ones.
        latent = lambda g=g: torch.randn(B, N.latent_dim, generator=g).to(device)
        guides = [latent() if state.step % 2 == 0 else draw(y) for _ in range(2)]
        style = N.mapping_network if state.step % 2 == 0 else N.style_encoder
        terms = {}

        with torch.no_grad(), amp():
            fake = N.generator(x, style(guides[0], y))
        with amp():
            on_real, on_fake = D(x, y_src), D(fake.detach(), y)
        terms["D_real"], terms["D_fake"] = F.softplus(-on_real.float()).mean(), F.softplus(on_fake.float()).mean()
        loss = terms["D_real"] + terms["D_fake"]
        if state.step % recipe.r1_every == 0:
            terms["R1"] = 0.5 * gradient_penalty(lambda x, y=y_src: D(x, y), x, amp)
            loss = loss + recipe.lam_reg * recipe.r1_every * terms["R1"]
        descend(state.opt_D, loss)

        D.requires_grad_(False)
        with amp():
            s = style(guides[0], y)
            fake = N.generator(x, s)
            terms["adversarial"] = F.softplus(-D(fake, y).float()).mean()
            terms["style"] = (N.style_encoder(fake, y) - s).float().abs().mean()
            with torch.no_grad():
                other = N.generator(x, style(guides[1], y))
            terms["diversity"] = (fake - other).float().abs().mean()
            back = N.generator(fake, N.style_encoder(x, y_src))
            terms["cycle"] = (back - x).float().abs().mean()
        D.requires_grad_(True)
        loss = terms["adversarial"] + recipe.lam_sty * terms["style"] + recipe.lam_cyc * terms["cycle"]
        descend(state.opt_G, loss - recipe.lam_ds * left * terms["diversity"])
        average(state.ema, state.nets, 0.5 ** (B / min(recipe.ema_images, 0.05 * (state.step + 1) * B)))
        state.step += 1
        yield {"step": state.step, "images": state.step * B} | {k: float(v.detach()) for k, v in terms.items()}


def _draw(pictures: Sequence[Tensor], y: Tensor, g: torch.Generator) -> Tensor:
    """A random picture of each domain in y, half of them mirrored as in the authors' code: [B, 3, R, R] in [-1, 1]."""
    rows = [int(torch.randint(len(pictures[d]), (1,), generator=g)) for d in y]
    x = from_bytes(torch.stack([pictures[d][i] for d, i in zip(y.tolist(), rows, strict=True)]))
    coins = torch.rand(len(y), generator=g) < 0.5
    x = torch.where(coins[:, None, None, None], x.flip(3), x)
    return x.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def sheet(net: StarGANv2, pictures: Sequence[Tensor], n: int = 8) -> Tensor:
    """[1, 3, H, W]: a row of contents, then for each other domain a row of references and one of results."""
    device = next(net.parameters()).device
    show = lambda d, rows: from_bytes(pictures[d][rows]).to(device)
    rows = [content := show(0, slice(0, n))]
    for d, name in list(enumerate(net.domains))[1:]:
        rows += [reference := show(d, slice(n, 2 * n)), net.stylise(content, reference, name).clamp(-1, 1)]
    return make_grid(torch.cat(rows), nrow=n, padding=2)[None].cpu()


def run(
    data: Sequence[PictureSet],
    folder: str | Path = f"build/training/{NAME}",
    *,
    recipe: StarGANv2Recipe = SHIPPED,
    every: int = 4_000,
    device: str | torch.device = "cpu",
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> State:
    """Train in a folder to the end of the recipe, or resume; return the final state. See `loop.follow`.

    Args:
        data: rendered sets, one for each of the recipe's domains, in their order.
        folder: see `loop.follow`.
        recipe: of the training.
        every: images between two checkpoints, each with a row of the log and a sample sheet; 0 for one at the end only.
        device: of the networks.
        force: see `loop.follow`.
        tell: called with a line for each row of the log.

    Raises:
        InvalidValue, StoreError, NonFiniteLoss: see `loop.follow`.
    """
    pictures, state = reduced(data, recipe.config["img_size"]), State(recipe, device)
    named = zip(recipe.config["domains"], data, strict=True)
    loop.follow(
        folder,
        "StarGAN v2",
        recipe,
        state,
        train(recipe, pictures, state),
        data={f"{domain}.{k}": v for domain, one in named for k, v in one.what.items()},
        every=every,
        sheet=lambda: sheet(state.ema, pictures),
        force=force,
        tell=tell,
    )
    return state
