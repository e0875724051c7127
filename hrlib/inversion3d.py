"""3D-aware GAN inversion (Sec. IV-F-b): the styles and the camera of CIPS-3D that reproduce one picture.

    min_{s, c}  d[G(s, c), x] + lam_mse d_mse[G(s, c), x]                                                (1)

Eq. (1) with a camera c in place of noise maps; d is the HRInversion loss, Eq. (3), without down-sampling. In stages,
after the order and the rates of CIPS-3D++: the pose with the average styles; the styles, and the pose with them; if
asked for, the INR head, which colours rays and knows nothing of depth. Other views are those of the styles found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import descent
from .descent import Iterate, Variables
from .errors import ShapeError, UnknownName, number
from .inversion import fingerprint, write_pair
from .nets import cameras
from .nets.cips3d import CIPS3D, Styles, View

SPACES = ("z", "w", "w+")
STAGES = ("pose", "appearance", "decoder")
DECODER = "decoder/"  # prefix of the INR head's weights among the variables
CANDIDATES = 64  # latents that are tried before the search for z begins


@dataclass(frozen=True)
class Settings:
    """The numbers that decide a 3D-aware inversion. See `invert` for their meaning."""

    pose_steps: int = 200
    num_steps: int = 1000
    decoder_steps: int = 0
    space: str = "w+"
    lam_mse: float = 0.0
    lam_prior: float = 0.0
    lam_mirror: float = 0.0
    lr_camera: float = 0.04
    lr_style: float = 0.01
    lr_decoder: float = 0.005
    beta2: float = 0.999
    starts: tuple[float, ...] = (-0.4, 0.0, 0.4)


RANGES = {
    "pose_steps": "whole [0, inf)",
    "num_steps": "whole [1, inf)",
    "decoder_steps": "whole [0, inf)",
    "beta2": "[0, 1)",
    **dict.fromkeys(("lam_mse", "lam_prior", "lam_mirror"), "[0, inf)"),
    **dict.fromkeys(("lr_camera", "lr_style", "lr_decoder"), "(0, inf)"),
}


@dataclass(frozen=True)
class Found:
    """One finished step: the stage it belongs to, and the loop's own iterate.

    Variables of the iterate: "yaw", "pitch" [N]; from the second stage on the styles, "z" [N, z_dim] or "nerf" and
    "inr" [N, num, d] (num is 1 in space "w"); in the third "decoder/NAME" as well.
    """

    stage: str
    iterate: Iterate


def invert(G: CIPS3D, x: Tensor, loss: Callable[[Tensor, Any], dict[str, Tensor]], **settings: Any) -> Iterator[Found]:
    """Minimise Eq. (1) over pose and styles, stage by stage; yield one `Found` a step.

    Args:
        x: [N, 3, H, W] in [-1, 1], of any size; each picture has its own pose and styles.
        loss: d of Eq. (1), from `hrlib.losses`.
        settings: fields of `Settings`: pose_steps, num_steps, decoder_steps (of the three stages; 0 leaves the first or
            the last out);
            space ("z": the latent that both mapping networks share; "w": one style a network; "w+": one a layer);
            lam_mse (weight of the mean squared pixel error); lam_prior (weight of the mean squared distance of the
            styles to the average, in standard deviations); lam_mirror (weight of the same loss between the mirrored
            picture and the view from the mirrored pose: faces are nearly symmetric, and the far cheek is not seen);
            lr_camera, lr_style, lr_decoder; beta2 (Adam's); starts (yaws in radians that the pose is begun from; the
            best is kept).

    Raises:
        ShapeError: a picture that is none, or several with decoder_steps. UnknownName: settings that do not exist or
            do not fit the generator. InvalidValue: numbers out of range. NonFiniteLoss: carries `.best`.
    """
    s = checked_settings(G, settings)
    good = x.ndim == 4 and x.shape[1] == 3 and x.numel() and x.is_floating_point()
    if not good or not bool(x.abs().max() <= 1.001):
        raise ShapeError(
            f"a target of shape {tuple(x.shape)}, {x.dtype}",
            expected="float [N, 3, H, W], one picture or more, finite, in [-1, 1]",
            do="read it with hrlib.image.read",
        )
    if s.decoder_steps and len(x) > 1:
        raise ShapeError(f"{len(x)} pictures with decoder_steps", expected="one: they share G", do="one at a time")
    return _stages(G, x, loss, s)


def _stages(G: CIPS3D, x: Tensor, loss: Callable, s: Settings) -> Iterator[Found]:
    target, mirrored = loss.prepare(x), loss.prepare(x.flip(3)) if s.lam_mirror else None
    held, spread = _average(G, len(x)), _spread(G) if s.lam_prior else {}

    def objective(step: int, v: Variables) -> tuple[dict[str, Tensor], Tensor]:
        at = held | v
        view = _seen(G, at, v["yaw"], x)
        terms = dict(loss(view.image, target))  # d[G(s, c), x]
        if s.lam_mse:
            terms["mse"] = s.lam_mse * (view.image - x).square().mean()  # lam_mse d_mse[G(s, c), x]
        if mirrored is not None:
            other = _seen(G, at, -v["yaw"], x)
            terms["mirror"] = s.lam_mirror * sum(loss(other.image, mirrored).values())
        if s.lam_prior and "nerf" in v:
            off = [((v[k] - held[k]) / spread[k]).square().mean() for k in ("nerf", "inr")]
            terms["prior"] = s.lam_prior * sum(off)
        return terms, view.image

    def keep_to_poses_seen(v: Variables) -> None:
        """Three standard deviations of the poses in training: beyond, a view may be anything, a good match too."""
        for k, deviation in (("yaw", "h_stddev"), ("pitch", "v_stddev")):
            v[k].clamp_(-3 * G.camera[deviation], 3 * G.camera[deviation])

    def stage(name: str, variables: Variables, steps: int) -> Iterator[Found]:
        slow = s.lr_camera if name == "pose" else s.lr_style  # later the pose moves no faster than the styles
        rate = lambda k: s.lr_decoder if k.startswith(DECODER) else slow if k in ("yaw", "pitch") else s.lr_style
        options = dict(num_steps=steps, lr=1.0, gains={k: rate(k) for k in variables}, betas=(0.9, s.beta2))
        for it in descent.descend(variables, objective, after_step=keep_to_poses_seen, **options):
            yield Found(name, it)

    found = {"yaw": x.new_zeros(len(x)), "pitch": x.new_zeros(len(x))}
    if s.pose_steps:
        found["yaw"] = _nearest(G, x, loss, held, s.starts)
        for last in stage("pose", found, s.pose_steps):
            yield last
        found = last.iterate.variables
    found |= _first_styles(G, x, found, held, s.space)
    for last in stage("appearance", found, s.num_steps):
        yield last
    if s.decoder_steps:
        used = {k: v for k, v in G.inr_net.named_parameters() if ".norm." not in k}
        yield from stage(
            "decoder", last.iterate.variables | {DECODER + k: v.detach() for k, v in used.items()}, s.decoder_steps
        )


def _average(G: CIPS3D, n: int) -> Styles:
    """The styles of the first stage, one a network: [n, 1, d]."""
    return {k: v[:, :1].expand(n, -1, -1) for k, v in G.average().items()}


def _seen(G: CIPS3D, v: Variables, yaw: Tensor, x: Tensor) -> View:
    """The view of the variables at x's size, from their pitch and a yaw."""
    return render(G, v, cameras.orbit(yaw, v["pitch"]), tuple(x.shape[2:]))


@torch.no_grad()
def _nearest(G: CIPS3D, x: Tensor, loss: Callable, held: Styles, starts: tuple[float, ...]) -> Tensor:
    """Of the yaws to begin from, the one whose view is nearest to each picture: [N]."""
    totals = []
    for yaw in starts:
        view = _seen(G, held | {"pitch": x.new_zeros(len(x))}, x.new_full((len(x),), yaw), x).image
        each = zip(view.split(1), x.split(1), strict=True)
        totals.append(torch.stack([sum(loss(a, b).values()) for a, b in each]))
    return torch.tensor(starts).to(x)[torch.stack(totals).argmin(0)]


@torch.no_grad()
def _first_styles(G: CIPS3D, x: Tensor, pose: Variables, held: Styles, space: str) -> Variables:
    """What the second stage starts from: the average styles, or of some latents the nearest to each picture."""
    if space != "z":
        count = {"nerf": G.num_nerf, "inr": G.num_inr} if space == "w+" else {"nerf": 1, "inr": 1}
        return {k: v.expand(-1, count[k], -1) for k, v in held.items()}
    z = torch.randn(CANDIDATES, G.z_dim, generator=torch.Generator().manual_seed(0)).to(x)
    found = []
    for i in range(len(x)):
        at = {"yaw": pose["yaw"][i].expand(CANDIDATES), "pitch": pose["pitch"][i].expand(CANDIDATES)}
        view = render(G, {"z": z}, cameras.orbit(**at), tuple(x.shape[2:])).image
        found.append(z[(view - x[i]).square().mean((1, 2, 3)).argmin()])
    return {"z": torch.stack(found)}


@torch.no_grad()
def _spread(G: CIPS3D, n: int = 1000) -> dict[str, Tensor]:
    """Standard deviation of each component of the styles, over latents: [d]."""
    z = torch.randn(n, G.z_dim, generator=torch.Generator().manual_seed(1))
    like = G.siren.final_layer.weight
    y = z if G.shares_z else torch.randn(n, G.z_dim_inr, generator=torch.Generator().manual_seed(2))
    return {k: v[:, 0].std(0).clamp(min=1e-6) for k, v in G.mapping(z.to(like), y.to(like)).items()}


class _Synthesis(nn.Module):
    """G.synthesis as a module's forward, which is what `functional_call` calls."""

    def __init__(self, G: CIPS3D) -> None:
        super().__init__()
        self.G = G

    def forward(self, styles: Styles, camera: Tensor, size: tuple[int, int], **how: Any) -> View:
        return self.G.synthesis(styles, camera, size, **how)


def styles_of(G: CIPS3D, v: Variables) -> Styles:
    """The styles of an iterate's variables ("z", or "nerf" and "inr"), one a layer: see `CIPS3D.mapping`."""
    if "z" in v:
        return G.mapping(v["z"])
    return {k: v[k].expand(-1, n, -1) for k, n in (("nerf", G.num_nerf), ("inr", G.num_inr))}


def render(
    G: CIPS3D, v: Variables, camera: Tensor, size: int | tuple[int, int] | None = None, *, chunk: int | None = None
) -> View:
    """The view of an iterate's variables, or of a result's, from any camera [N or 1, 4, 4] at any size.

    v: "z", or "nerf" and "inr" with one style or one a layer; with "decoder/NAME", the refined INR head. chunk: as in
    `CIPS3D.synthesis`; not where gradients of a refined head are wanted.
    """
    head = {f"G.inr_net.{k.removeprefix(DECODER)}": p for k, p in v.items() if k.startswith(DECODER)}
    return torch.func.functional_call(_Synthesis(G), head, (styles_of(G, v), camera, size), {"chunk": chunk})


def checked_settings(G: CIPS3D, settings: dict[str, Any]) -> Settings:
    """A `Settings` from keyword arguments; `UnknownName` or `InvalidValue` for what does not exist or cannot be."""
    s = descent.checked_settings(Settings, settings, RANGES)
    if s.space not in SPACES or (s.space == "z" and not G.shares_z):
        raise UnknownName(
            f"space={s.space!r}",
            expected=f"one of {', '.join(SPACES)}; z only where one latent serves both networks",
            do='use "w+"',
        )
    if s.pose_steps and not s.starts:
        raise UnknownName("no yaw to start from", expected="one or more in `starts`", do="leave it as it is")
    return replace(s, starts=tuple(number("starts", yaw, "(-inf, inf)") for yaw in s.starts))


@dataclass(frozen=True)
class Result:
    """A finished inversion of N pictures.

    variables: the last ones (see `Found`), for `render`; image [N, 3, H, W]: their view from yaw and pitch [N];
    history: one dict a step, with its "stage"; config: settings, loss, hashes of generator and picture; seconds.
    """

    variables: Variables
    image: Tensor
    history: list[dict[str, Any]]
    config: dict[str, Any]
    seconds: float

    @property
    def yaw(self) -> Tensor:
        """[N] radians."""
        return self.variables["yaw"]

    @property
    def pitch(self) -> Tensor:
        """[N] radians."""
        return self.variables["pitch"]

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write NAME.safetensors (the variables and the image) and NAME.json (everything else); returns the first.

        path, force: as in `inversion.Result.save`.
        """
        facts = {k: getattr(self, k) for k in ("history", "config", "seconds")}
        return write_pair(path, self.variables | {"image": self.image}, facts, force=force)


def solve(
    G: CIPS3D,
    x: Tensor,
    loss: Callable[[Tensor, Any], dict[str, Tensor]],
    *,
    watch: Callable[[Iterator[Found]], Iterator[Found]] = iter,
    **settings: Any,
) -> Result:
    """Run `invert` to its end (or to the end of `watch`, which wraps the iterator) and return what was found."""
    begun, history, last = time.perf_counter(), [], None
    for last in watch(invert(G, x, loss, **settings)):
        history.append(last.iterate.history[-1] | {"stage": last.stage})
    if last is None:
        raise UnknownName("an inversion without a step", expected="steps in some stage", do="raise num_steps")
    v = last.iterate.variables
    if "z" not in v and "nerf" not in v:
        v = v | {k: style.clone() for k, style in _average(G, len(x)).items()}
    with torch.no_grad():
        image = _seen(G, v, v["yaw"], x).image
    made_of = {"generator": fingerprint(G.state_dict()), "image": fingerprint({"x": x}), "loss": loss.describe()}
    config = asdict(checked_settings(G, settings)) | made_of
    return Result(v, image, history, config, time.perf_counter() - begun)
