"""Train a small 3D-aware GAN, CIPS-3D, on heads of the shipped portraits (Sec. IV-F-b); cheap enough for one core.

    hrlab train gan3d --force             # renders heads, trains, replaces the pair in data/weights

The authors train adversarially on photographs, with unknown poses, for days on eight GPUs. Here nearly all of the
training is supervised regression on renders, **with their true cameras and depths**. It makes the same network, and
says nothing about what can be learnt without them. (An earlier network was given neither: on one core, that is wax.)

1. Rays: the latent z of a head is its (Gaussianised) identity, expression and light. G's view of z, from the camera of
   the picture, is regressed on the picture at pixels drawn mostly from the face; opacity, depth, and the density before
   and behind the surface, on the renderer's. The true depth also says where to sample a ray, so that few samples do.
2. Windows of pictures: the same, with the shipped VGG loss, and sampled where the network itself finds the surface.
3. Adversarial: every few steps, StyleGAN2's discriminator, which does not know the camera, compares windows with views
   of other latents, or of z ~ N(0, I), from other pictures' poses; the regression of stage 2 stays as an anchor.

Stage 2 raised the PSNR of 40 people held out from 24.7 to 25.4 dB and lowered their LPIPS from 0.92 to 0.78. Stage 3, a
hundred steps, left both as they were (25.4 dB, 0.78): its discriminator had not yet learnt to tell views from renders.

Each person is seen once, but similar ones from many sides; together with the depths, that makes solid heads.
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
from ..nets import cameras, volume
from ..nets.cips3d import CIPS3D, Styles
from ..nets.stylegan2_discriminator import Discriminator
from . import loop
from .checkpoints import Parts
from .human_heads import EDGE, FOV, HumanHeads
from .recipe import Recipe
from .updates import average, descend, fallen, gradient_penalty

NAME = "portraits_3d96"
PEOPLE, Z_DIM = 12_000, 48
WINDOW = 64  # side of the squares that VGG and the discriminator see
THICK = 0.035  # of the shell that is dense behind the surface, in the camera's distance


@dataclass(frozen=True)
class Gan3dRecipe(Recipe):
    """How CIPS-3D is trained; lengths are in pictures seen."""

    config: dict = field(
        default_factory=lambda: dict(
            z_dim=Z_DIM,
            z_dim_inr=Z_DIM,
            nerf_hidden=96,
            nerf_layers=2,
            rgb_dim=48,
            nerf_style=128,
            inr_hidden=96,
            inr_style=128,
            inr_blocks=4,
            nerf_mapping=3,
            inr_mapping=3,
            resolution=EDGE,
            centres=True,
            camera=dict(
                fov=FOV,
                ray_start=0.86,
                ray_end=1.12,
                num_steps=12,
                h_stddev=0.26,
                v_stddev=0.10,
                hierarchical_sample=False,
                last_back=True,
                focus=5,
                focus_width=0.02,
            ),
        )
    )
    critic: dict = field(default_factory=lambda: {64: 16, 32: 32, 16: 48, 8: 64, 4: 64})  # channels
    held_out: int = 200  # the first people of the set, on whom the result is measured
    ray_images: int = 352_000  # stage 1
    whole_images: int = 3_200  # stage 2
    total_images: int = 356_800
    batch: int = 16
    rays: int = 192  # pixels of a picture in stage 1
    lr: float = 2e-3
    lr_adversarial: float = 5e-4
    lr_fall: float = (
        0.5  # share of the regression, and of the rest, at their ends, over which the rates fall to a tenth
    )
    frequencies: tuple[float, float] = (0.3, 3.0)  # least and most, times the first layer's usual weights
    mapping_gain: float = 2.0  # times lr for the INR's mapping network
    nerf_gain: float = 0.5  # times lr for the NeRF's, because its styles multiply frequencies
    film_gain: float = 0.05  # times lr for the sine layers, whose small weights are multiplied by about 30
    density_gain: float = 10.0  # times lr for the layer of the densities, which are large numbers
    face_share: float = 3.0  # how many times more rays fall on a pixel of a face than on one of its hair
    lam_aux: float = 0.1
    lam_mask: float = 0.2
    lam_depth: float = 1.0
    lam_density: float = 0.02
    lam_vgg: float = 0.1
    lam_adversarial: float = 0.02
    adversarial_every: int = 4  # steps of stage 3
    fresh: float = 0.5  # share of z ~ N(0, I) among the adversarial views
    r1_gamma: float = 1.0
    r1_every: int = 4  # steps of the discriminator
    ema_images: int = 1_000  # half-life of the moving average
    seed: int = 0

    INTERVALS: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("total_images", "batch", "rays"), "whole [1, inf)"),
        **dict.fromkeys(("adversarial_every", "r1_every", "ema_images"), "whole [1, inf)"),
        **dict.fromkeys(("held_out", "ray_images", "whole_images"), "whole [0, inf)"),
        **dict.fromkeys(("lr", "lr_adversarial", "face_share"), "(0, inf)"),
        **dict.fromkeys(("mapping_gain", "nerf_gain", "film_gain", "density_gain"), "[0, inf)"),
        **dict.fromkeys(("lam_aux", "lam_mask", "lam_depth", "lam_density", "lam_vgg"), "[0, inf)"),
        **dict.fromkeys(("lam_adversarial", "r1_gamma"), "[0, inf)"),
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
            self.D = Discriminator(resolution=WINDOW, channels=recipe.critic).to(device)
        siren = self.G.siren
        with torch.no_grad():
            siren.final_layer.weight *= self.G.level  # densities of the order of the surface's
            low, high = (math.log(v) for v in recipe.frequencies)
            first = siren.network[0].linear.weight
            first *= torch.linspace(low, high, len(first), device=device).exp()[:, None]  # heads' outlines, and lashes
        self.ema = copy.deepcopy(self.G).requires_grad_(False)
        density = list(siren.final_layer.parameters())
        film = [p for part in (siren.network, siren.color_layer_sine) for p in part.parameters()]
        mapping, nerf = (list(m.parameters()) for m in (self.G.mapping_network_inr, self.G.mapping_network_nerf))
        ours = {id(p) for p in (*density, *film, *mapping, *nerf)}
        rest = [p for p in self.G.parameters() if id(p) not in ours]
        groups = [{"params": part} for part in (rest, mapping, nerf, film, density)]
        self.opt_G = torch.optim.Adam(groups, lr=recipe.lr, betas=(0.9, 0.99))
        self.opt_D = torch.optim.Adam(self.D.parameters(), lr=recipe.lr_adversarial, betas=(0.0, 0.99))
        self.step = 0

    @property
    def parts(self) -> Parts:
        """What a checkpoint holds."""
        return {"G": self.G, "ema": self.ema, "D": self.D, "opt_G": self.opt_G, "opt_D": self.opt_D}


def train(recipe: Gan3dRecipe, data: HumanHeads, state: State) -> Iterator[dict[str, float]]:
    """Advance `state` in place to the end of the recipe; yield {"step", "images", loss terms} after every step."""
    G, B = state.G, recipe.batch
    device = next(G.parameters()).device
    regression = recipe.ray_images + recipe.whole_images
    vgg = losses.named("vgg_conv", weights="shipped") if recipe.total_images > recipe.ray_images else None
    while (seen := state.step * B) < recipe.total_images:
        g = torch.Generator().manual_seed(recipe.seed * 10_000_019 + state.step)
        row = torch.randint(recipe.held_out, len(data), (B,), generator=g)
        x, mask, distance = (part.to(device) for part in data.batch(row))
        camera = cameras.orbit(*data.poses[row].to(device).T)
        styles = G.mapping(data.z[row].to(device))
        _set_rates(state, recipe, seen)
        whole = seen >= recipe.ray_images
        rays = _window(B, g).to(device) if whole else _rays(mask, recipe, g)
        pick = lambda y, rays=rays: y.flatten(2).gather(2, rays[:, None].expand(-1, y.shape[1], -1))[:, :, None]
        x_, mask_, distance_ = pick(x), pick(mask[:, :1]), pick(distance)
        known = torch.isfinite(distance_)
        centre = None if whole else _centres(G, distance_, known, g)

        draws = {k: v.to(device) for k, v in G.draws(B, rays.shape[1], generator=g).items()}
        view = G.synthesis(styles, camera, draws=draws, rays=rays, centre=centre)
        terms = {"mse": F.mse_loss(view.image, x_), "aux": F.mse_loss(view.aux, x_)}
        terms["mask"] = F.mse_loss(view.opacity, mask_)
        terms["depth"] = torch.where(known, view.depth - distance_.nan_to_num(1.0), 0.0).abs().mean()
        terms["density"] = _density(G, styles, camera, rays, distance_, known, g)
        loss = terms["mse"] + recipe.lam_aux * terms["aux"] + recipe.lam_mask * terms["mask"]
        loss = loss + recipe.lam_depth * terms["depth"] + recipe.lam_density * terms["density"]
        if whole:
            square = lambda y: y.reshape(B, 3, WINDOW, WINDOW)
            terms["vgg"] = sum(vgg(square(view.image), square(x_)).values())
            loss = loss + recipe.lam_vgg * terms["vgg"]
        if seen >= regression and state.step % recipe.adversarial_every == 0:
            terms |= (found := _adversarial(state, recipe, data, square(x_), row, rays, g))
            loss = loss + recipe.lam_adversarial * found["adversarial"]
        descend(state.opt_G, loss)
        average(state.ema, G, 0.5 ** (B / min(recipe.ema_images, 0.05 * (seen + B))))
        state.step += 1
        yield {"step": state.step, "images": state.step * B} | {k: float(v.detach()) for k, v in terms.items()}


def _set_rates(state: State, recipe: Gan3dRecipe, seen: int) -> None:
    """Rates fall to a tenth at the end of the regression, and again at the end of the adversarial stage."""
    regression = recipe.ray_images + recipe.whole_images
    if seen < regression:
        lr, betas = recipe.lr * fallen(1 - seen / regression, recipe.lr_fall), (0.9, 0.99)
    else:
        left = 1 - (seen - regression) / max(recipe.total_images - regression, 1)
        lr, betas = recipe.lr_adversarial * fallen(left, recipe.lr_fall), (0.0, 0.99)
    gains = (1, recipe.mapping_gain, recipe.nerf_gain, recipe.film_gain, recipe.density_gain, 1)
    for group, gain in zip((*state.opt_G.param_groups, *state.opt_D.param_groups), gains, strict=True):
        group["lr"], group["betas"] = lr * gain, betas
    state.opt_D.param_groups[0]["betas"] = (0.0, 0.99)


def _rays(mask: Tensor, recipe: Gan3dRecipe, g: torch.Generator) -> Tensor:
    """[B, rays] pixels: four times as likely on the head as elsewhere, and more so on the face."""
    head, face = mask.flatten(2).unbind(1)
    weights = (1 + 3 * head) * (1 + (recipe.face_share - 1) * face)
    return torch.multinomial(weights.cpu(), recipe.rays, generator=g).to(mask.device)


def _window(n: int, g: torch.Generator) -> Tensor:
    """[n, WINDOW ** 2] pixels of squares that hold most of the face."""
    corner = torch.randint(0, EDGE - WINDOW + 1, (n, 2, 1, 1), generator=g)
    line = torch.arange(WINDOW)
    return ((corner[:, 0] + line[:, None]) * EDGE + corner[:, 1] + line).flatten(1)


def _centres(G: CIPS3D, distance: Tensor, known: Tensor, g: torch.Generator) -> Tensor:
    """[B, R, 1, 1] distances about which to sample: near the true surface, and anywhere on rays past the head."""
    c, shape = G.camera, distance.shape
    near, far = float(c["ray_start"]), float(c["ray_end"])
    somewhere = (near + (far - near) * torch.rand(shape, generator=g)).to(distance)
    off = (0.15 * float(c["focus_width"]) * torch.randn(shape, generator=g)).to(distance)  # as a search may be
    return torch.where(known, distance + off, somewhere).flatten(2).mT[..., None]


def _density(
    G: CIPS3D, styles: Styles, camera: Tensor, rays: Tensor, distance: Tensor, known: Tensor, g: torch.Generator
) -> Tensor:
    """Cross entropy of densities, against that of the surface: sparse before it and past the head, dense behind it."""
    c, shape = G.camera, (2, *distance.shape)
    u, near, far = torch.rand(shape, generator=g).to(distance), float(c["ray_start"]), float(c["ray_end"])
    front = distance - 0.001 - (distance - near) * u[0] ** 3  # most of them close to the surface
    behind = distance + 0.001 + THICK * u[1] ** 2
    elsewhere = near + (far - near) * u
    z = torch.where(known, torch.stack((front, behind)), elsewhere)[:, :, 0, 0]  # [2, B, R]
    local = volume.directions(EDGE, EDGE, float(c["fov"]), centres=True, like=camera)
    ray = local[rays] @ camera[:, :3, :3].mT
    points = (camera[:, None, :3, 3] + ray * z[..., None]).transpose(0, 1).flatten(1, 2)
    density = G.siren.density(points, styles["nerf"]).unflatten(1, (2, -1))[..., 0]
    dense = torch.stack((torch.zeros_like(known), known), 1)[:, :, 0, 0].to(density)
    return F.binary_cross_entropy_with_logits(5 * (density / G.level - 1), dense)


def _adversarial(
    state: State, recipe: Gan3dRecipe, data: HumanHeads, real: Tensor, row: Tensor, rays: Tensor, g: torch.Generator
) -> dict[str, Tensor]:
    """A step of the discriminator, with lazy R1, and the generator's loss: windows of other latents and poses."""
    G, D, B = state.G, state.D, len(row)
    fresh = torch.rand(B, generator=g) < recipe.fresh
    z = torch.where(fresh[:, None], torch.randn(B, G.z_dim, generator=g), data.z[row.roll(1)]).to(real)
    pose = data.poses[torch.randint(recipe.held_out, len(data), (B,), generator=g)].to(real)
    fake = G.synthesis(G.mapping(z), cameras.orbit(*pose.T), rays=rays).image.reshape(real.shape)
    terms = {"D_real": F.softplus(-D(real)).mean(), "D_fake": F.softplus(D(fake.detach())).mean()}
    loss = terms["D_real"] + terms["D_fake"]
    if state.step // recipe.adversarial_every % recipe.r1_every == 0:
        terms["R1"] = gradient_penalty(D, real, nullcontext)
        loss = loss + 0.5 * recipe.r1_gamma * recipe.r1_every * terms["R1"]
    descend(state.opt_D, loss)
    D.requires_grad_(False)
    terms["adversarial"] = F.softplus(-D(fake)).mean()
    D.requires_grad_(True)
    return terms


@torch.inference_mode()
def sheet(G: CIPS3D, data: HumanHeads, people: int = 4) -> Tensor:
    """[1, 3, H, W]: pictures of people held out and three views of their latents over yaw, in colours and depths; below
    them views of z ~ N(0, I)."""
    device = next(G.parameters()).device
    row, rows = torch.arange(people), []
    fresh = torch.randn(people, data.z.shape[1], generator=torch.Generator().manual_seed(1))
    x = data.batch(row)[0]
    for z, first in ((data.z[row], x), (fresh, torch.zeros_like(x))):
        styles = G.mapping(z.to(device))
        seen = [G.synthesis(styles, cameras.orbit(a, 0.0).to(device)) for a in (-0.5, 0.0, 0.5)]
        c = G.camera
        shade = lambda d, c=c: (1 - 2 * (d - c["ray_start"]) / (c["ray_end"] - c["ray_start"])).expand(-1, 3, -1, -1)
        rows.append(torch.stack([first, *(v.image.cpu() for v in seen), *(shade(v.depth).cpu() for v in seen)], 1))
    return make_grid(torch.cat(rows).flatten(0, 1).clamp(-1, 1), nrow=7, padding=1)[None]


def run(
    data: HumanHeads,
    folder: str | Path = f"build/training/{NAME}",
    *,
    recipe: Gan3dRecipe = SHIPPED,
    every: int = 16_000,
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
