"""CIPS-3D's generator (Zhou et al. 2021, the paper's [86]): a shallow NeRF, and an INR head that colours its rays.

Parameter names are those of the official `G_ema.pth`; the layers and their order follow github.com/PeterouZh/CIPS-3D
and its recorded outputs (tests/test_cips3d.py). FiLM's gain and the modulation of the fully connected layers multiply
the weights instead of the activations, which saves a pass over all points each.

    styles = G.mapping(z)                           # {"nerf": [N, num_nerf, d], "inr": [N, num_inr, e]}
    view = G.synthesis(styles, cameras.orbit(0.3, 0.0))
    view.image, view.depth, view.opacity            # [N, 3, H, W], [N, 1, H, W], [N, 1, H, W]

Images are float32 [N, 3, H, W] in [-1, 1] (by a tanh). Everything is differentiable in the styles and the camera.
"""

from __future__ import annotations

import math
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import InvalidValue, ShapeError, UnknownName, number
from . import cameras, volume

Styles = dict[str, Tensor]
BOX = 2 / 0.24  # CIPS-3D scales a cube of side 0.24 about the origin to [-1, 1]
BLOCKS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)  # names of the INR's blocks; each works at any size
FIRST_RGB, FIRST_SKIP = 3, 4  # indices of the first block with an RGB output and of the first with a skip
CAMERA = dict(  # the official configurations' G_kwargs, and `focus` (see `_march`); fov in degrees, others in radians
    fov=12.0,
    ray_start=0.88,
    ray_end=1.12,
    num_steps=12,
    h_mean=math.pi / 2,
    v_mean=math.pi / 2,
    h_stddev=0.3,
    v_stddev=0.155,
    hierarchical_sample=True,
    sample_dist="gaussian",
    last_back=False,
    focus=0,
    focus_width=0.02,
)


@dataclass(frozen=True)
class View:
    """What a camera sees: image and aux [N, 3, H, W] in [-1, 1], depth and opacity [N, 1, H, W].

    aux: the NeRF's own colours, which the discriminator sees too in CIPS-3D's training. depth: the expected distance
    from the camera along the ray, in the unit of `ray_start`. opacity: the share of the light that does not come from
    the ray's last sample, which stands for the background.
    """

    image: Tensor
    aux: Tensor
    depth: Tensor
    opacity: Tensor


class FiLM(nn.Module):
    """sin(gain (W x + b) + shift), with gain = 15 g + 30; g and shift are linear in the style."""

    def __init__(self, n_in: int, n_out: int, style_dim: int, *, first: bool = False):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.gain_fc, self.bias_fc = nn.Linear(style_dim, n_out), nn.Linear(style_dim, n_out)
        bound = 1 / n_in if first else math.sqrt(6 / n_in) / 25
        nn.init.uniform_(self.linear.weight, -bound, bound)
        for layer in (self.gain_fc, self.bias_fc):
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            with torch.no_grad():
                layer.weight *= 0.25

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x [N, P, in], style [N, style_dim] -> [N, P, out]."""
        gain, shift = self.gain_fc(style) * 15 + 30, self.bias_fc(style)
        weight = self.linear.weight * gain[:, :, None]  # [N, out, in]
        return torch.baddbmm((self.linear.bias * gain + shift)[:, None], x, weight.mT).sin()


class Siren(nn.Module):
    """The NeRF: points and styles -> features for the INR, and density."""

    def __init__(self, hidden: int, layers: int, rgb_dim: int, style_dim: int):
        super().__init__()
        sizes = [3] + [hidden] * layers
        self.network = nn.ModuleList(FiLM(a, b, style_dim, first=i == 0) for i, (a, b) in enumerate(pairwise(sizes)))
        self.final_layer = nn.Linear(hidden, 1)
        self.color_layer_sine = FiLM(hidden, rgb_dim, style_dim)
        self.color_layer_linear = nn.Sequential(nn.Linear(rgb_dim, rgb_dim))
        bound = math.sqrt(6 / hidden) / 25
        nn.init.uniform_(self.final_layer.weight, -bound, bound)
        nn.init.uniform_(self.color_layer_linear[0].weight, -math.sqrt(6 / rgb_dim) / 4, math.sqrt(6 / rgb_dim) / 4)

    def forward(self, points: Tensor, styles: Tensor) -> tuple[Tensor, Tensor]:
        """points [N, P, 3], styles [N, layers + 1, d] -> features [N, P, rgb_dim], density [N, P, 1] (not clamped)."""
        x = points * BOX
        for layer, style in zip(self.network, styles.unbind(1)[:-1], strict=True):
            x = layer(x, style)
        colour = self.color_layer_sine(x, styles[:, -1])
        return self.color_layer_linear(colour), self.final_layer(x)

    def density(self, points: Tensor, styles: Tensor) -> Tensor:
        """The density [N, P, 1] alone, for less."""
        x = points * BOX
        for layer, style in zip(self.network, styles.unbind(1)[:-1], strict=True):
            x = layer(x, style)
        return self.final_layer(x)


class ModLinear(nn.Module):
    """Fully connected layer, its inputs modulated by 1 + m(style), with demodulation, then leaky ReLU 0.2."""

    def __init__(self, n_in: int, n_out: int, style_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, n_in, n_out) * math.sqrt(2 / n_in))
        self.modulation = nn.Linear(style_dim, n_in)
        self.norm = nn.LayerNorm(n_in)  # unused, but in the official files
        nn.init.kaiming_normal_(self.modulation.weight, a=0.2)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x [N, P, in], style [N, style_dim] -> [N, P, out]."""
        weight = self.weight * (1 + self.modulation(style))[:, :, None]  # [N, in, out]
        weight = weight * (weight.square().sum(1, keepdim=True) + 1e-8).rsqrt()
        return F.leaky_relu(torch.bmm(x, weight), 0.2)


class InrBlock(nn.Module):
    """Two modulated layers."""

    def __init__(self, n_in: int, n_out: int, style_dim: int):
        super().__init__()
        self.mod1, self.mod2 = ModLinear(n_in, n_out, style_dim), ModLinear(n_out, n_out, style_dim)


class ToRGB(nn.Module):
    """[N, P, hidden] -> [N, P, 3]."""

    def __init__(self, hidden: int):
        super().__init__()
        self.linear = nn.Linear(hidden, 3)
        nn.init.uniform_(self.linear.weight, -math.sqrt(6 / hidden) / 4, math.sqrt(6 / hidden) / 4)


class InrNet(nn.Module):
    """The INR head: features of rays and styles -> RGB, each ray on its own."""

    def __init__(self, n_in: int, hidden: int, style_dim: int, blocks: int):
        super().__init__()
        names = BLOCKS[:blocks]
        self.network = nn.ModuleDict(
            {str(name): InrBlock(hidden if i else n_in, hidden, style_dim) for i, name in enumerate(names)}
        )
        self.to_rgbs = nn.ModuleDict({str(name): ToRGB(hidden) for name in names})  # the first three are unused

    def forward(self, x: Tensor, styles: Tensor, blocks: int | None = None) -> Tensor:
        """x [N, P, in], styles [N, 2 blocks, d] -> [N, P, 3] in [-1, 1]; blocks: use only that many."""
        rgb = 0
        for i, (name, block) in enumerate(list(self.network.items())[:blocks]):
            y = block.mod2(block.mod1(x, styles[:, 2 * i]), styles[:, 2 * i + 1])
            x = x + y if i >= FIRST_SKIP else y
            if i >= FIRST_RGB:
                rgb = rgb + self.to_rgbs[name].linear(x)
        return torch.tanh(rgb)


class Mapping(nn.Module):
    """z, scaled to unit mean square, through fully connected layers with leaky ReLU 0.2 between them."""

    def __init__(self, z_dim: int, hidden: int, layers: int, *, norm: bool):
        super().__init__()
        parts: list[nn.Module] = []
        for i in range(layers):
            parts.append(nn.Linear(hidden if i else z_dim, hidden))
            nn.init.kaiming_normal_(parts[-1].weight, a=0.2)
            if norm:
                parts.append(nn.LayerNorm(hidden))
            parts.append(nn.LeakyReLU(0.2))
        self.z_dim, self.base_net = z_dim, nn.Sequential(*parts[:-1])

    def forward(self, z: Tensor) -> Tensor:
        """[N, z_dim] -> [N, hidden]."""
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ShapeError(
                f"z of shape {tuple(z.shape)}",
                expected=f"[N, {self.z_dim}]",
                do="draw it with torch.randn(N, G.z_dim)",
            )
        return self.base_net(z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt())


class CIPS3D(nn.Module):
    """CIPS-3D's generator: `mapping` z -> styles, and `synthesis` styles and cameras -> views.

    Args:
        z_dim, z_dim_inr: latents of the NeRF and of the INR (256 and 512 in the official files).
        nerf_hidden, nerf_layers, rgb_dim, nerf_style: width and depth of the NeRF, widths of its output and styles.
        inr_hidden, inr_style: widths of the INR and of its styles. inr_blocks: 4 to 9 (9 in the official files).
        nerf_mapping, inr_mapping: depths of the mapping networks.
        resolution: default side of a picture.
        centres: see `volume.directions`; False in the official files.
        camera: settings that replace those of `CAMERA`.
    """

    any_size = True

    def __init__(
        self,
        *,
        z_dim: int = 256,
        z_dim_inr: int = 512,
        nerf_hidden: int = 128,
        nerf_layers: int = 2,
        rgb_dim: int = 32,
        nerf_style: int = 128,
        inr_hidden: int = 512,
        inr_style: int = 512,
        inr_blocks: int = 9,
        nerf_mapping: int = 4,
        inr_mapping: int = 8,
        resolution: int = 256,
        centres: bool = False,
        camera: MappingABC[str, float | bool | str] | None = None,
    ):
        super().__init__()
        if odd := sorted(set(camera or {}) - set(CAMERA)):
            raise UnknownName(
                f"camera settings {odd}", expected=f"settings of {', '.join(CAMERA)}", do="leave them out"
            )
        if not FIRST_RGB < inr_blocks <= len(BLOCKS):
            raise InvalidValue(
                f"inr_blocks = {inr_blocks}",
                expected=f"{FIRST_RGB + 1} to {len(BLOCKS)}",
                do="use 9, as the official files do",
            )
        self.camera = CAMERA | dict(camera or {})
        self.z_dim, self.z_dim_inr, self.resolution, self.centres = z_dim, z_dim_inr, resolution, centres
        self.config = dict(
            z_dim=z_dim,
            z_dim_inr=z_dim_inr,
            nerf_hidden=nerf_hidden,
            nerf_layers=nerf_layers,
            rgb_dim=rgb_dim,
            nerf_style=nerf_style,
            inr_hidden=inr_hidden,
            inr_style=inr_style,
            inr_blocks=inr_blocks,
            nerf_mapping=nerf_mapping,
            inr_mapping=inr_mapping,
            resolution=resolution,
            centres=centres,
            camera=self.camera,
        )
        self.siren = Siren(nerf_hidden, nerf_layers, rgb_dim, nerf_style)
        self.mapping_network_nerf = Mapping(z_dim, nerf_style, nerf_mapping, norm=False)
        self.inr_net = InrNet(rgb_dim, inr_hidden, inr_style, inr_blocks)
        self.mapping_network_inr = Mapping(z_dim_inr, inr_style, inr_mapping, norm=True)
        self.aux_to_rbg = nn.Sequential(nn.Linear(rgb_dim, 3), nn.Tanh())  # sic: the official name
        self.num_nerf, self.num_inr = nerf_layers + 1, 2 * inr_blocks
        self._average: Styles | None = None

    @property
    def style_names(self) -> list[str]:
        """The styles' official names, the NeRF's first: ["nerf_w0", ..., "nerf_rgb", "inr_w4_0", ...]."""
        nerf = [f"nerf_w{i}" for i in range(self.num_nerf - 1)] + ["nerf_rgb"]
        return nerf + [f"inr_w{name}_{j}" for name in self.inr_net.network for j in (0, 1)]

    def mapping(self, z: Tensor, z_inr: Tensor | None = None, truncation_psi: float = 1.0) -> Styles:
        """z [N, z_dim], z_inr [N, z_dim_inr] (default: z again) -> {"nerf": [N, num_nerf, d], "inr": [N, num_inr, e]}.

        All styles of one network are equal here; an inversion may optimise each of them separately.
        """
        one = {"nerf": self.mapping_network_nerf(z), "inr": self.mapping_network_inr(z if z_inr is None else z_inr)}
        many = {"nerf": self.num_nerf, "inr": self.num_inr}
        styles = {k: v[:, None].expand(-1, many[k], -1) for k, v in one.items()}
        return styles if truncation_psi == 1 else truncate(styles, self.average(), truncation_psi)

    @torch.no_grad()
    def average(self, n: int = 10_000, seed: int = 0) -> Styles:
        """The mean styles of n latents, [1, ...] each, in the form that `mapping` returns; cached."""
        key = (n, seed, self.siren.final_layer.weight.device)
        if self._average is None or self._average[0] != key:
            g = torch.Generator().manual_seed(seed)
            like = self.siren.final_layer.weight
            z, y = (torch.randn(n, d, generator=g).to(like) for d in (self.z_dim, self.z_dim_inr))
            mean = {k: v.mean(0, keepdim=True) for k, v in self.mapping(z, z if self.shares_z else y).items()}
            self._average = (key, mean)
        return {k: v.clone() for k, v in self._average[1].items()}

    @property
    def level(self) -> float:
        """The density at which one sample of a ray absorbs half of the light: that of the surface."""
        near, far, count = (float(self.camera[k]) for k in ("ray_start", "ray_end", "num_steps"))
        if self.camera["focus"]:
            near, far, count = 0.0, float(self.camera["focus_width"]), float(self.camera["focus"])
        return math.log(2) * (count - 1) / (far - near)  # 1 - exp(-density x length) = 1/2

    @property
    def shares_z(self) -> bool:
        """Whether one z serves both mapping networks, as in our own networks: their z have equal sizes."""
        return self.z_dim == self.z_dim_inr

    def draws(self, n: int, rays: int, *, generator: torch.Generator, noise: float = 0.0) -> dict[str, Tensor]:
        """Random numbers for one `synthesis` of n views with `rays` rays each, as in training; drawn on the CPU.

        {"perturb": [n, R, S, 1]}, plus "pdf": [n, R, S] with hierarchical sampling, plus density noise "coarse" and
        "fine" if `noise` > 0. S is the number of samples on a ray, or with `focus` of those at the surface.
        """
        steps, g = int(self.camera["focus"] or self.camera["num_steps"]), generator
        out = {"perturb": torch.rand(n, rays, steps, 1, generator=g)}
        if self.camera["hierarchical_sample"]:
            out["pdf"] = torch.rand(n, rays, steps, generator=g)
            if noise:
                out["coarse"] = torch.randn(n, rays, steps, 1, generator=g) * noise
        if noise:
            total = steps * (2 if self.camera["hierarchical_sample"] else 1)
            out["fine"] = torch.randn(n, rays, total, 1, generator=g) * noise
        return out

    def synthesis(
        self,
        styles: Styles,
        camera: Tensor,
        size: int | tuple[int, int] | None = None,
        *,
        draws: MappingABC[str, Tensor] | None = None,
        chunk: int | None = None,
        rays: Tensor | None = None,
        hierarchical: bool | None = None,
        steps: int | None = None,
        centre: Tensor | None = None,
    ) -> View:
        """Views of `styles` from `camera` [N or 1, 4, 4].

        Args:
            size: side or (height, width), any size; default: the resolution.
            draws: random numbers made by `draws` for these rays; without them the result is deterministic.
            chunk: rays per view to compute at once. Only the result itself then grows with the picture: the backward
                pass computes each chunk again.
            rays: [R] or [N, R] indices of the pixels to compute, counted row by row; views are then [N, C, 1, R].
            hierarchical, steps: override the configuration's sampling (not with `draws`).
            centre: [N, R, 1, 1], with `focus` the distances about which to sample, instead of looking for the surface.
        """
        height, width = self._size(size)
        n = len(self._checked(styles))
        camera = cameras.checked(camera, n)
        local = volume.directions(height, width, float(self.camera["fov"]), centres=self.centres, like=camera)
        shape = (height, width)
        local = local[None] if rays is None else local[rays].reshape(-1, rays.shape[-1], 3)  # [1 or N, R, 3]
        shape = shape if rays is None else (1, rays.shape[-1])
        hier = bool(self.camera["hierarchical_sample"]) if hierarchical is None else hierarchical
        names, count = ("perturb", "coarse", "pdf", "fine", "centre"), steps or int(self.camera["num_steps"])
        given, parts = dict(draws or {}) | ({} if centre is None else {"centre": centre}), []
        for at in torch.arange(local.shape[1]).split(chunk or local.shape[1]):
            some = [given[k][:, at] if k in given else None for k in names]
            arguments = (styles["nerf"], styles["inr"], camera, local[:, at], hier, count, *some)
            if chunk and torch.is_grad_enabled():
                parts.append(checkpoint(self._march, *arguments, use_reentrant=False))
            else:
                parts.append(self._march(*arguments))
        image, aux, depth, opacity = (torch.cat(p, 1).mT.reshape(n, -1, *shape) for p in zip(*parts, strict=True))
        return View(image, aux, depth, opacity)

    def _march(
        self,
        nerf: Tensor,
        inr: Tensor,
        camera: Tensor,
        local: Tensor,
        hier: bool,
        steps: int,
        perturb: Tensor | None,
        coarse: Tensor | None,
        pdf: Tensor | None,
        fine: Tensor | None,
        centre: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Image, aux, depth and opacity, [N, R, 3 or 1] each, of rays [1 or N, R, 3] in the camera's frame.

        With `focus`, which CIPS-3D lacks, the samples of the ray only serve to find its surface, by density alone and
        without gradients. As many samples as `focus` says, over `focus_width` about the surface, and one at the end for
        the background are then integrated: finer than even sampling, and cheaper.
        """
        c, n, count = self.camera, len(nerf), local.shape[1]
        ray = local @ camera[:, :3, :3].mT  # [N, R, 3]
        look = lambda z: self._at(camera[:, None, None, :3, 3] + ray[:, :, None] * z, nerf)
        focus = int(c["focus"])
        z = volume.places(steps, float(c["ray_start"]), float(c["ray_end"]), None if focus else perturb, camera)
        z = z.expand(n, count, -1, -1)
        if focus:
            if centre is None:
                with torch.no_grad():
                    points = camera[:, None, None, :3, 3] + ray[:, :, None] * z
                    sigma = self.siren.density(points.flatten(1, 2), nerf).unflatten(1, (count, steps))
                    centre = volume.surface(z, sigma, self.level)
            reach = float(c["focus_width"]) / 2
            z = centre + volume.places(focus, -reach, reach, perturb, camera)
            z = torch.cat((z, torch.full_like(z[:, :, :1], float(c["ray_end"]))), 2)
        values, sigma = look(z)
        if hier:
            with torch.no_grad():
                weights = volume.integrate(values[..., :1], sigma, z, coarse)[2]
                more = volume.finer(z, weights, pdf)
            both = torch.cat((z, more), 2)
            both, order = both.sort(2)
            values, sigma = (torch.cat(p, 2) for p in zip((values, sigma), look(more), strict=True))
            values, sigma = (v.gather(2, order.expand(-1, -1, -1, v.shape[3])) for v in (values, sigma))
            z = both
        light, depth, weights = volume.integrate(values, sigma, z, fine, last_back=bool(c["last_back"]))
        opacity = weights[:, :, :-1].sum(2)
        return self.inr_net(light, inr), self.aux_to_rbg(light), depth, opacity

    def _at(self, points: Tensor, nerf: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, R, S, C] and density [N, R, S, 1] at points [N, R, S, 3]."""
        values, sigma = self.siren(points.flatten(1, 2), nerf)
        return values.unflatten(1, points.shape[1:3]), sigma.unflatten(1, points.shape[1:3])

    def _size(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        height, width = (size, size) if isinstance(size, int) else size or (self.resolution, self.resolution)
        return number("height", height, "whole [1, inf)"), number("width", width, "whole [1, inf)")

    def _checked(self, styles: Styles) -> Tensor:
        wanted = {
            "nerf": (self.num_nerf, self.config["nerf_style"]),
            "inr": (self.num_inr, self.config["inr_style"]),
        }
        got = {k: tuple(v.shape[1:]) for k, v in styles.items()} if isinstance(styles, dict) else type(styles).__name__
        if got != wanted or len(styles["nerf"]) != len(styles["inr"]):
            raise ShapeError(f"styles {got}", expected=f"[N, ...] each of {wanted}", do="make them with G.mapping")
        return styles["nerf"]

    def forward(self, z: Tensor, camera: Tensor, truncation_psi: float = 1.0) -> Tensor:
        """z [N, z_dim], cameras [N or 1, 4, 4] -> images [N, 3, R, R]."""
        return self.synthesis(self.mapping(z, truncation_psi=truncation_psi), camera).image


def truncate(styles: Styles, average: Styles, psi: float) -> Styles:
    """Styles moved towards an average [1, ...]: psi = 1 keeps them, psi = 0 gives the average."""
    return {k: average[k].lerp(v, psi) for k, v in styles.items()}
