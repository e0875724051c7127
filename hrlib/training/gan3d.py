"""Train a small 3D-aware GAN, CIPS-3D, on the shipped portraits (Sec. IV-F-b); cheap enough for one core.

    hrlab train gan3d --force             # renders heads, trains, replaces the pair in data/weights

No step uses the true pose of a picture. The authors train adversarially for days on eight GPUs. Here most of the
training is regression, as for the other shipped generators (gan.py), in three stages:

1. Rays: the latent z of a head is its (Gaussianised) identity, expression and light. G's view of z, from the pose that
   `hrlib.pose.read` reads off the picture, is regressed on the picture at pixels drawn mostly from the head, and its
   opacity on the mask. Each person is seen once, but similar ones from many sides, so a solid head emerges.
2. Whole pictures: the same, with the shipped VGG loss.
3. Adversarial: every few steps, StyleGAN2's discriminator, which does not know the camera, compares the pictures with
   views of other latents, or of z ~ N(0, I), from other pictures' poses; the regression of stage 1 stays as an anchor.

Regression alone leaves a fog, since averages of colours along a ray are the safe answer, and its depths lie behind the
true surface. So densities are multiplied between stages 2 and 3, and stage 3 does not train their layer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid

from .. import losses
from ..errors import SEED
from ..nets import cameras
from ..nets.cips3d import CIPS3D
from ..nets.stylegan2_discriminator import Discriminator
from . import loop
from .checkpoints import Parts
from .human_heads import EDGE, HumanHeads
from .recipe import Recipe
from .updates import average, descend, fallen, gradient_penalty

NAME = "portraits_3d64"
PEOPLE, Z_DIM = 6_000, 48
FOV = 2 * math.degrees(math.atan(1 / 5.65))  # of the portraits' camera, whose picture is 2 wide at a distance of 5.65


@dataclass(frozen=True)
class Gan3dRecipe(Recipe):
    """How CIPS-3D is trained; lengths are in pictures seen."""

    config: dict = field(
        default_factory=lambda: dict(
            z_dim=Z_DIM,
            z_dim_inr=Z_DIM,
            nerf_hidden=64,
            nerf_layers=2,
            rgb_dim=32,
            nerf_style=64,
            inr_hidden=48,
            inr_style=64,
            inr_blocks=4,
            nerf_mapping=3,
            inr_mapping=3,
            resolution=EDGE,
            centres=True,
            camera=dict(
                fov=FOV,
                ray_start=0.86,
                ray_end=1.16,
                num_steps=10,
                h_stddev=0.26,
                v_stddev=0.10,
                hierarchical_sample=False,
                last_back=True,
            ),
        )
    )
    critic: dict = field(default_factory=lambda: {64: 16, 32: 32, 16: 48, 8: 64, 4: 64})  # channels
    ray_images: int = 48_000  # stage 1
    whole_images: int = 2_400  # stage 2
    total_images: int = 56_800
    batch: int = 8
    rays: int = 512  # pixels of a picture in stage 1
    lr: float = 2e-3
    lr_adversarial: float = 1e-3
    lr_fall: float = (
        0.2  # share of the regression, and of the rest, at their ends, over which the rates fall to a tenth
    )
    frequency: float = 0.6  # times the first layer's usual weights
    mapping_gain: float = 2.0  # times lr for the mapping networks
    film_gain: float = 0.2  # times lr for the sine layers, whose small weights are multiplied by about 30
    density_gain: float = 10.0  # times lr for the layer of the densities, which are large numbers
    lam_mask: float = 0.2
    lam_vgg: float = 0.1
    lam_adversarial: float = 0.05
    adversarial_every: int = 4  # steps of stage 3
    sharpen: float = 2.0  # times all densities when stage 3 begins
    fresh: float = 0.5  # share of z ~ N(0, I) among the adversarial views
    r1_gamma: float = 1.0
    r1_every: int = 4  # steps of the discriminator
    ema_images: int = 1_000  # half-life of the moving average
    seed: int = 0

    INTERVALS: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("total_images", "batch", "rays"), "whole [1, inf)"),
        **dict.fromkeys(("adversarial_every", "r1_every", "ema_images"), "whole [1, inf)"),
        **dict.fromkeys(("ray_images", "whole_images"), "whole [0, inf)"),
        **dict.fromkeys(("lr", "lr_adversarial", "frequency", "sharpen"), "(0, inf)"),
        **dict.fromkeys(("mapping_gain", "film_gain", "density_gain"), "[0, inf)"),
        **dict.fromkeys(("lam_mask", "lam_vgg", "lam_adversarial", "r1_gamma"), "[0, inf)"),
        **dict.fromkeys(("lr_fall", "fresh"), "[0, 1]"),
        "seed": SEED,
    }


SHIPPED = Gan3dRecipe()


class State:
    """Networks, the moving average and optimisers, at a step."""

    def __init__(self, recipe: Gan3dRecipe, device: str | torch.device = "cpu") -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.G = CIPS3D(**recipe.config).to(device)
            self.D = Discriminator(resolution=EDGE, channels=recipe.critic).to(device)
        with torch.no_grad():
            self.G.siren.final_layer.weight *= 150  # a sample is 0.03 long: it is opaque at densities about 100
            self.G.siren.network[0].linear.weight *= recipe.frequency
        self.ema = copy.deepcopy(self.G).requires_grad_(False)
        siren = self.G.siren
        density = list(siren.final_layer.parameters())
        film = [p for part in (siren.network, siren.color_layer_sine) for p in part.parameters()]
        mapping = [p for part in (self.G.mapping_network_nerf, self.G.mapping_network_inr) for p in part.parameters()]
        ours = {id(p) for p in (*density, *film, *mapping)}
        rest = [p for p in self.G.parameters() if id(p) not in ours]
        groups = [{"params": part} for part in (rest, mapping, film, density)]
        self.opt_G = torch.optim.Adam(groups, lr=recipe.lr, betas=(0.9, 0.99))
        self.opt_D = torch.optim.Adam(self.D.parameters(), lr=recipe.lr_adversarial, betas=(0.0, 0.99))
        self.step = 0

    @property
    def parts(self) -> Parts:
        """What a checkpoint holds."""
        return {"G": self.G, "ema": self.ema, "D": self.D, "opt_G": self.opt_G, "opt_D": self.opt_D}


def train(recipe: Gan3dRecipe, data: HumanHeads, state: State) -> Iterator[dict[str, float]]:
    """Advance `state` in place to the end of the recipe; yield {"step", "images", loss terms} after every step."""
    G, D, B = state.G, state.D, recipe.batch
    device = next(G.parameters()).device
    regression = recipe.ray_images + recipe.whole_images
    vgg = losses.named("vgg_conv", weights="shipped") if recipe.total_images > recipe.ray_images else None
    while (seen := state.step * B) < recipe.total_images:
        g = torch.Generator().manual_seed(recipe.seed * 10_000_019 + state.step)
        row = torch.randint(len(data), (B,), generator=g)
        x, mask = (part.to(device) for part in data.batch(row))
        z, camera = data.z[row].to(device), cameras.orbit(*data.poses[row].to(device).T)
        third = seen >= regression
        _set_rates(state, recipe, seen)
        if third and seen - B < regression:
            sharpen(G, recipe.sharpen)
            sharpen(state.ema, recipe.sharpen)
        whole = recipe.ray_images <= seen < regression
        rays = None if whole else _rays(mask, recipe.rays, g)
        count = EDGE**2 if whole else recipe.rays
        draws = lambda n, count, g=g: {k: v.to(device) for k, v in G.draws(n, count, generator=g).items()}
        terms = {}

        view = G.synthesis(G.mapping(z), camera, draws=draws(B, count), rays=rays)
        pick = lambda y, rays=rays: (
            y if rays is None else y.flatten(2).gather(2, rays[:, None].expand(-1, y.shape[1], -1))
        )
        x_, mask_ = (pick(y).reshape(v.shape) for y, v in ((x, view.image), (mask, view.opacity)))
        terms["mse"] = F.mse_loss(view.image, x_)
        terms["aux"] = F.mse_loss(view.aux, x_)
        terms["mask"] = F.mse_loss(view.opacity, mask_)
        loss = terms["mse"] + 0.25 * terms["aux"] + recipe.lam_mask * terms["mask"]
        if whole:
            terms["vgg"] = sum(vgg(view.image, x).values())
            loss = loss + recipe.lam_vgg * terms["vgg"]
        if third and state.step % recipe.adversarial_every == 0:
            fresh = torch.rand(B, generator=g) < recipe.fresh
            z = torch.where(fresh[:, None], torch.randn(B, z.shape[1], generator=g), data.z[row.roll(1)]).to(device)
            other = data.poses[torch.randint(len(data), (B,), generator=g)].to(device)
            fake = G.synthesis(G.mapping(z), cameras.orbit(*other.T), draws=draws(B, EDGE**2)).image
            terms |= _critic_step(state, recipe, x, fake.detach())
            D.requires_grad_(False)
            terms["adversarial"] = F.softplus(-D(fake)).mean()
            D.requires_grad_(True)
            loss = loss + recipe.lam_adversarial * terms["adversarial"]
        descend(state.opt_G, loss)
        average(state.ema, G, 0.5 ** (B / min(recipe.ema_images, 0.05 * (seen + B))))
        state.step += 1
        yield {"step": state.step, "images": state.step * B} | {k: float(v.detach()) for k, v in terms.items()}


@torch.no_grad()
def sharpen(G: CIPS3D, factor: float) -> None:
    """Multiply all densities of a network: surfaces become harder, and expected depths approach them."""
    for parameter in G.siren.final_layer.parameters():
        parameter *= factor


def _set_rates(state: State, recipe: Gan3dRecipe, seen: int) -> None:
    """Rates fall to a tenth at the end of the regression, and again at the end of the adversarial stage."""
    regression = recipe.ray_images + recipe.whole_images
    if seen < regression:
        lr, betas = recipe.lr * fallen(1 - seen / regression, recipe.lr_fall), (0.9, 0.99)
    else:
        left = 1 - (seen - regression) / max(recipe.total_images - regression, 1)
        lr, betas = recipe.lr_adversarial * fallen(left, recipe.lr_fall), (0.0, 0.99)
    gains = (1, recipe.mapping_gain, recipe.film_gain, recipe.density_gain if seen < regression else 0, 1)
    for group, gain in zip((*state.opt_G.param_groups, *state.opt_D.param_groups), gains, strict=True):
        group["lr"], group["betas"] = lr * gain, betas
    state.opt_D.param_groups[0]["betas"] = (0.0, 0.99)


def _rays(mask: Tensor, count: int, g: torch.Generator) -> Tensor:
    """[B, count] pixels: four times as likely on the head and its surroundings as elsewhere."""
    near = F.max_pool2d(mask, 7, stride=1, padding=3).flatten(1) > 0.05
    return torch.multinomial(torch.where(near, 4.0, 1.0).cpu(), count, generator=g).to(mask.device)


def _critic_step(state: State, recipe: Gan3dRecipe, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """One step of the discriminator, with lazy R1."""
    D = state.D
    terms = {"D_real": F.softplus(-D(real)).mean(), "D_fake": F.softplus(D(fake)).mean()}
    loss = terms["D_real"] + terms["D_fake"]
    if state.step // recipe.adversarial_every % recipe.r1_every == 0:
        terms["R1"] = gradient_penalty(D, real, nullcontext)
        loss = loss + 0.5 * recipe.r1_gamma * recipe.r1_every * terms["R1"]
    descend(state.opt_D, loss)
    return terms


@torch.inference_mode()
def sheet(G: CIPS3D, data: HumanHeads, people: int = 6) -> Tensor:
    """[1, 3, H, W]: pictures of the set beside five views of their latents over yaw, then views of z ~ N(0, I), twice:
    colours, and below them depths."""
    device = next(G.parameters()).device
    row, rows = torch.arange(people), []
    fresh = torch.randn(people, data.z.shape[1], generator=torch.Generator().manual_seed(1))
    x = data.batch(row)[0]
    for z, first in ((data.z[row], x), (fresh, torch.zeros_like(x))):
        styles = G.mapping(z.to(device))
        seen = [G.synthesis(styles, cameras.orbit(a, 0.0).to(device)) for a in (-0.5, -0.25, 0.0, 0.25, 0.5)]
        c = G.camera
        shade = lambda d, c=c: (1 - 2 * (d - c["ray_start"]) / (c["ray_end"] - c["ray_start"])).expand(-1, 3, -1, -1)
        rows.append(torch.stack([first, *(v.image.cpu() for v in seen), *(shade(v.depth).cpu() for v in seen)], 1))
    return make_grid(torch.cat(rows).flatten(0, 1).clamp(-1, 1), nrow=11, padding=1)[None]


def run(
    data: HumanHeads,
    folder: str | Path = f"build/training/{NAME}",
    *,
    recipe: Gan3dRecipe = SHIPPED,
    every: int = 2_000,
    device: str | torch.device = "cpu",
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> State:
    """Train in a folder to the end of the recipe, or resume; return the final state. See `loop.follow`.

    Args:
        data: heads with their latents and poses.
        folder: see `loop.follow`.
        recipe: of the training.
        every: images between two checkpoints, each with a row of the log and a sample sheet; 0 for one at the end only.
        device: of the networks.
        force: see `loop.follow`.
        tell: called with a line for each row of the log.

    Raises:
        InvalidValue, StoreError, NonFiniteLoss: see `loop.follow`.
    """
    state = State(recipe, device)
    loop.follow(
        folder,
        "CIPS-3D",
        recipe,
        state,
        train(recipe, data, state),
        data=data.what,
        every=every,
        sheet=lambda: sheet(state.ema, data),
        force=force,
        tell=tell,
    )
    return state
