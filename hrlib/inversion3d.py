"""3D-aware GAN inversion (Sec. IV-F-b): the styles and the camera of CIPS-3D that reproduce one picture.

    min_{s, c}  d[G(s, c), x] + lam_mse d_mse[G(s, c), x]                                                (1)

This is Eq. (1) with a camera c instead of noise maps; d is the HRInversion loss, Eq. (3), without down-sampling. The
stages follow CIPS-3D++ in their order and learning rates: first the pose, at the average styles; then styles and pose
together; optionally the INR head, which colours rays and does not affect depth. Between the first two, ours can search
among the heads that the generator knows, by its latent: from a good one, free styles go less astray. `render` draws the
result from any other camera.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import optim, store
from .errors import InvalidValue, ShapeError, UnknownName, number, plain
from .image import check
from .inversion import MAX_ABS, check_loss, check_type
from .nets import cameras
from .nets.cips3d import CIPS3D, Styles, View
from .optim import Iterate, Run, State, Variables

SPACES = ("z", "w", "w+")
STAGES = ("pose", "latent", "appearance", "decoder")
DECODER = "decoder/"  # prefix of the INR head's weights among the variables
CANDIDATES, SMALL = 256, 24  # latents to choose the initial z from, by pictures of about this side

RANGES = {
    "pose_steps": "whole [0, inf)",
    "latent_steps": "whole [0, inf)",
    "num_steps": "whole [1, inf)",
    "decoder_steps": "whole [0, inf)",
    "beta2": "[0, 1)",
    **dict.fromkeys(("lam_mse", "lam_prior", "lam_mirror"), "[0, inf)"),
    **dict.fromkeys(("lr_camera", "lr_style", "lr_decoder"), "(0, inf)"),
}


def invert(
    G: CIPS3D,
    x: Tensor,
    loss: Callable[[Tensor, Any], dict[str, Tensor]],
    *,
    pose_steps: int = 200,
    latent_steps: int = 0,
    num_steps: int = 1000,
    decoder_steps: int = 0,
    space: str = "w+",
    lam_mse: float = 0.0,
    lam_prior: float = 0.0,
    lam_mirror: float = 0.0,
    lr_camera: float = 0.04,
    lr_style: float = 0.01,
    lr_decoder: float = 0.005,
    beta2: float = 0.999,
    starts: tuple[float, ...] = (-0.4, 0.0, 0.4),
    resume: State | None = None,
) -> Run[Result]:
    """Minimise Eq. (1) over pose and styles, stage by stage; yields one Iterate a step, its `stage` among `STAGES`.

    Loop over the run, or pass it to `optim.solve`, which returns a `Result`.

    Variables of the iterates: "yaw", "pitch" [N]; after the pose also the styles, "z" [N, z_dim] or "nerf" and "inr"
    [N, num, d] (num is 1 in space "w"); in the last stage also "decoder/NAME". Steps are counted through all stages.

    Args:
        G: a CIPS-3D generator.
        x: [N, 3, H, W] in [-1, 1], of any size; each picture has its own pose and styles.
        loss: d of Eq. (1), from `hrlib.losses`.
        pose_steps, latent_steps, num_steps, decoder_steps: steps of the stages; 0 skips one. latent_steps optimise one
            z for both networks before the styles are freed from it.
        space: "z" (the latent that both mapping networks share), "w" (one style a network) or "w+" (one style a layer).
        lam_mse: weight of the mean squared pixel error.
        lam_prior: weight of the mean squared distance between styles and average styles, in standard deviations.
        lam_mirror: weight of the same loss between the mirrored picture and the view from the mirrored pose: faces are
            nearly symmetric, and the picture does not show the far cheek.
        lr_camera, lr_style, lr_decoder: learning rates of the pose and the latent, the styles, and the INR head.
        beta2: decay rate of Adam's average of the squared gradient.
        starts: candidates in radians for the initial yaw; the best one is used.
        resume: `Iterate.state()` of the same run.

    Raises:
        ShapeError: x is not a batch of pictures, or is several with decoder_steps. UnknownName: this generator has no
            such space. InvalidValue: a setting, or values of x, out of range. NonFiniteLoss: carries `.best`.
    """
    given = dict(locals())  # the arguments, by name
    if not isinstance(starts, (tuple, list)):
        raise InvalidValue(f"starts = {starts!r}", expected="a tuple of yaws in radians", do="write (0.0,) for one yaw")
    check_loss(loss)
    config = plain({name: given[name] for name in RANGES}, RANGES) | {
        "space": space,
        "starts": [number("starts", yaw, "(-inf, inf)") for yaw in starts],
    }
    s = SimpleNamespace(**config)
    check(x, "a target", limit=MAX_ABS)
    check_type(x, G.siren.final_layer.weight)
    if s.latent_steps and not G.shares_z:
        raise InvalidValue(
            f"latent_steps = {s.latent_steps}",
            expected="0, because no single latent serves both networks of this generator",
            do="leave it out",
        )
    if s.space not in SPACES or (s.space == "z" and not G.shares_z):
        raise UnknownName(
            f"space={s.space!r}",
            expected=f"one of {', '.join(SPACES)}; z only where one latent serves both networks",
            do='use "w+"',
        )
    if s.pose_steps and not s.starts:
        raise InvalidValue("starts = ()", expected="one yaw or more to begin from", do="use the default, or (0.0,)")
    if s.decoder_steps and len(x) > 1:
        raise ShapeError(
            f"{len(x)} pictures with decoder_steps",
            expected="one picture, because the INR head is refined for it",
            do="invert one picture at a time, or set decoder_steps=0",
        )
    config |= {
        "generator": store.fingerprint(G.state_dict()),
        "image": store.fingerprint({"x": x}),
        "loss": loss.describe(),
    }
    total = s.pose_steps + s.latent_steps + s.num_steps + s.decoder_steps

    @torch.no_grad()
    def finish(it: Iterate, seconds: float) -> Result:
        v = it.variables
        if "z" not in v and "nerf" not in v:
            v = v | {k: style.clone() for k, style in _average(G, len(x)).items()}
        image = _seen(G, v, v["yaw"], x).image
        return Result(v, image, list(it.history), config, seconds, optim.ended(it, total))

    steps = lambda state: _stages(G, x, loss, s, config, state)
    return Run(steps, finish, config=config, num_steps=total, resume=resume)


def _stages(
    G: CIPS3D, x: Tensor, loss: Callable, s: SimpleNamespace, config: dict[str, Any], resume: State | None
) -> Iterator[Iterate]:
    target, mirrored = loss.prepare(x), loss.prepare(x.flip(3)) if s.lam_mirror else None
    average, spread = _average(G, len(x)), _spread(G) if s.lam_prior else {}

    def objective(step: int, v: Variables) -> tuple[dict[str, Tensor], Tensor]:
        at = average | v
        view = _seen(G, at, v["yaw"], x)
        terms = dict(loss(view.image, target))  # d[G(s, c), x], Eq. (1)
        if s.lam_mse:
            terms["mse"] = s.lam_mse * (view.image - x).square().mean()  # lam_mse d_mse[G(s, c), x], Eq. (1)
        if mirrored is not None:
            other = _seen(G, at, -v["yaw"], x)
            terms["mirror"] = s.lam_mirror * sum(loss(other.image, mirrored).values())
        if s.lam_prior and "nerf" in v:
            off = [((v[k] - average[k]) / spread[k]).square().mean() for k in ("nerf", "inr")]
            terms["prior"] = s.lam_prior * sum(off)
        return terms, view.image

    def keep_to_poses_seen(v: Variables) -> None:
        """Within three standard deviations of the training poses: views from beyond mean nothing, even good matches."""
        for k, deviation in (("yaw", "h_stddev"), ("pitch", "v_stddev")):
            v[k].clamp_(-3 * G.camera[deviation], 3 * G.camera[deviation])

    def stage(name: str, variables: Variables, steps: int, resume: State | None) -> Iterator[Iterate]:
        early = name in ("pose", "latent")  # later the pose moves at the rate of the styles
        rate = lambda k: s.lr_decoder if k.startswith(DECODER) else s.lr_camera if early else s.lr_style
        return optim.descend(
            variables,
            objective,
            num_steps=steps,
            lr=1.0,
            gains={k: rate(k) for k in variables},
            betas=(0.9, s.beta2),
            after_step=keep_to_poses_seen,
            resume=resume,
            config=config | {"stage": name},
        )

    def first(name: str, before: Variables) -> Variables:
        """The initial variables of a stage, from the last variables of the stage `before` it."""
        if name == "pose":
            return before | {"yaw": _nearest(G, x, loss, average, s.starts)}
        if name == "latent":
            return before | {"z": _first_latents(G, x, before)}
        if name == "appearance":
            return _first_styles(G, x, before, average, s.space)
        used = {k: v for k, v in G.inr_net.named_parameters() if ".norm." not in k}
        return before | {DECODER + k: v.detach() for k, v in used.items()}

    variables: Variables = {"yaw": x.new_zeros(len(x)), "pitch": x.new_zeros(len(x))}
    rows: list[dict[str, Any]] = []
    start = 0  # the step to begin at: that of the state, if there is one
    if resume is not None:
        optim.check_same({k: v for k, v in resume.config.items() if k != "stage"}, config)
        variables, rows, start = resume.variables, list(resume.history), resume.step
    held, resume = resume, None  # until its stage begins: it takes memory
    done, lengths = 0, (s.pose_steps, s.latent_steps, s.num_steps, s.decoder_steps)  # done: steps of the earlier stages
    for name, steps in zip(STAGES, lengths, strict=True):
        if steps and start < done + steps:
            if start > done:
                held = replace(held, step=start - done, history=held.history[done:])
            else:
                held, variables = None, first(name, variables)
            iterates, held = stage(name, variables, steps, held), None
            for it in iterates:
                rows.append(it.history[-1] | {"step": done + it.step, "stage": name})
                yield _counted(it, done, rows, name)
            variables = it.variables
        done += steps


def _counted(it: Iterate, done: int, rows: list[dict[str, Any]], stage: str) -> Iterate:
    """A stage's iterate, renumbered for the whole run; done: steps of earlier stages; rows: the run's history."""

    def snapshot(_: int) -> State:
        state = it.state()
        return replace(state, step=done + state.step, history=list(rows))

    return replace(it, step=done + it.step, history=rows, stage=stage, _snapshot=snapshot)


def _average(G: CIPS3D, n: int) -> Styles:
    """The styles of the first stage, one a network: [n, 1, d]."""
    return {k: v[:, :1].expand(n, -1, -1) for k, v in G.average().items()}


def _seen(G: CIPS3D, v: Variables, yaw: Tensor, x: Tensor) -> View:
    """The view of the variables at x's size, from their pitch and the given yaw."""
    return render(G, v, cameras.orbit(yaw, v["pitch"]), tuple(x.shape[2:]))


@torch.no_grad()
def _nearest(G: CIPS3D, x: Tensor, loss: Callable, average: Styles, starts: list[float]) -> Tensor:
    """For each picture, the yaw out of `starts` whose view is nearest to it: [N]."""
    totals = []
    for yaw in starts:
        view = _seen(G, average | {"pitch": x.new_zeros(len(x))}, x.new_full((len(x),), yaw), x).image
        each = zip(view.split(1), x.split(1), strict=True)
        totals.append(torch.stack([sum(loss(a, b).values()) for a, b in each]))
    return torch.tensor(starts).to(x)[torch.stack(totals).argmin(0)]


@torch.no_grad()
def _first_styles(G: CIPS3D, x: Tensor, before: Variables, average: Styles, space: str) -> Variables:
    """The variables with the initial styles: those of a latent found before, or else the average ones. In space "z",
    that latent, or else the best of a few for each picture."""
    if space == "z":
        return before if "z" in before else before | {"z": _first_latents(G, x, before)}
    count = {"nerf": G.num_nerf, "inr": G.num_inr} if space == "w+" else {"nerf": 1, "inr": 1}
    known = G.mapping(before["z"]) if "z" in before else average
    pose = {k: v for k, v in before.items() if k != "z"}
    return pose | {k: v[:, :1].expand(-1, count[k], -1).clone() for k, v in known.items()}


@torch.no_grad()
def _first_latents(G: CIPS3D, x: Tensor, pose: Variables) -> Tensor:
    """For each picture the best of a few latents, by its squared error at a small size: [N, z_dim]."""
    z = torch.randn(CANDIDATES, G.z_dim, generator=torch.Generator().manual_seed(0)).to(x)
    shrink = max(1, min(x.shape[2:]) // SMALL)
    small = F.avg_pool2d(x, shrink)
    nearest = []
    for i in range(len(x)):
        at = {"yaw": pose["yaw"][i].expand(CANDIDATES), "pitch": pose["pitch"][i].expand(CANDIDATES)}
        view = render(G, {"z": z}, cameras.orbit(**at), tuple(small.shape[2:])).image
        nearest.append(z[(view - small[i]).square().mean((1, 2, 3)).argmin()])
    return torch.stack(nearest)


@torch.no_grad()
def _spread(G: CIPS3D, n: int = 1000) -> dict[str, Tensor]:
    """Standard deviation of each component of the styles, over latents: [d]."""
    z = torch.randn(n, G.z_dim, generator=torch.Generator().manual_seed(1))
    like = G.siren.final_layer.weight
    y = z if G.shares_z else torch.randn(n, G.z_dim_inr, generator=torch.Generator().manual_seed(2))
    return {k: v[:, 0].std(0).clamp(min=1e-6) for k, v in G.mapping(z.to(like), y.to(like)).items()}


class _Synthesis(nn.Module):
    """G.synthesis as a module's forward, because `functional_call` calls that."""

    def __init__(self, G: CIPS3D) -> None:
        super().__init__()
        self.G = G

    def forward(self, styles: Styles, camera: Tensor, size: tuple[int, int], *, chunk: int | None) -> View:
        return self.G.synthesis(styles, camera, size, chunk=chunk)


def styles_of(G: CIPS3D, v: Variables) -> Styles:
    """The styles of an iterate's variables ("z", or "nerf" and "inr"), one a layer: see `CIPS3D.mapping`."""
    if "z" in v:
        return G.mapping(v["z"])
    return {k: v[k].expand(-1, n, -1) for k, n in (("nerf", G.num_nerf), ("inr", G.num_inr))}


def render(
    G: CIPS3D, v: Variables, camera: Tensor, size: int | tuple[int, int] | None = None, *, chunk: int | None = None
) -> View:
    """The view of an iterate's or a result's variables from any camera [N or 1, 4, 4] at any size.

    v: "z", or "nerf" and "inr" with one style in all or one a layer; optionally "decoder/NAME", a refined INR head.
    chunk: as in `CIPS3D.synthesis`; None if you need gradients of a refined head.
    """
    head = {f"G.inr_net.{k.removeprefix(DECODER)}": p for k, p in v.items() if k.startswith(DECODER)}
    return torch.func.functional_call(_Synthesis(G), head, (styles_of(G, v), camera, size), {"chunk": chunk})


@dataclass(frozen=True)
class Result:
    """A finished inversion of N pictures.

    variables: the last ones (see `invert`), for `render`; image [N, 3, H, W]: their view from yaw and pitch [N];
    history: one dict a step, with its "stage"; config: settings, loss, hashes of generator and picture; seconds; ended:
    why the loop ended.
    """

    variables: Variables
    image: Tensor
    history: list[dict[str, Any]]
    config: dict[str, Any]
    seconds: float
    ended: str

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
        facts = {k: getattr(self, k) for k in ("history", "config", "seconds", "ended")}
        return store.write_tensors(path, self.variables | {"image": self.image}, facts, force=force)
