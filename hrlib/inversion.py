"""GAN inversion, Eq. (1): the codes and noise maps of a generator that reproduce a given image.

    min_{w, n}  d[G(w + eps, n), x] + lam_mse d_mse[G(w + eps, n), x]                                    (1)

With the noise maps n fixed this is Eq. (5). The defaults are those of the authors' published projector: start at the
mean of 10,000 w, Adam with lr 0.1, eps of 0.05 w_std that fades to 0 by 75 % of the run, noise maps from N(0, 1),
optimised jointly and re-normalised after each step, noise regularisation off, 1000 steps. The paper does not state
lam_mse; 0 is the projector's value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from . import losses, optim, store
from .errors import DamagedFile, InvalidValue, ShapeError, StoreError, UnknownName, number, plain, truth
from .image import check
from .optim import Iterate, Run, State, Variables

NOISE = "noise/"  # prefix of the noise maps among the variables

# Arguments of `invert` for few steps: our addition to the paper, not used in its figures. Adam forgets the large
# gradients of the beginning sooner (beta2), may therefore take longer strides (lr), and spends half of the run on
# slowing down. With a start near the target (`starts`), eps would only lead away from it.
QUICK = {"num_steps": 200, "lr": 0.6, "beta2": 0.9, "lr_ramp_down": 0.5, "eps_initial": 0.0}

RANGES = optim.RANGES | {
    "lam_mse": "[0, inf)",
    "noise_regularisation": "[0, inf)",
    "noise_start": "[0, inf)",
    "beta1": "[0, 1)",
    "beta2": "[0, 1)",
    "noise_gain": "(0, inf)",
}
FLAGS = ("optimise_ws", "optimise_noise", "normalise_noise")
MAX_ABS = 1.001  # of a target: 1, and what rounding adds


@torch.no_grad()
def w_statistics(G: nn.Module, *, samples: int = 10_000, seed: int = 123) -> tuple[Tensor, float]:
    """Mean w [w_dim] and the scalar w_std = sqrt(mean ||w - w_avg||^2) over `samples` draws of z.

    Seed 123 and NumPy's legacy generator are those of the published projector, so that its numbers come out exactly.
    """
    samples, seed = number("samples", samples, RANGES["w_samples"]), number("seed", seed, RANGES["seed"])
    z = torch.from_numpy(np.random.RandomState(seed).randn(samples, G.z_dim)).float()
    device = G.w_avg.device
    w = torch.cat([G.mapping.w(part.to(device)) for part in z.split(1024)])
    w_avg = w.mean(0)
    return w_avg, float((w - w_avg).double().square().sum(1).mean().sqrt())


def invert(
    G: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor, Any], dict[str, Tensor]],
    *,
    num_steps: int = 1000,
    space: str = "w+",
    optimise_ws: bool = True,
    optimise_noise: bool = True,
    lam_mse: float = 0.0,
    noise_regularisation: float = 0.0,
    normalise_noise: bool = True,
    noise_start: float = 1.0,
    lr: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.999,
    noise_gain: float = 1.0,
    lr_ramp_up: float = 0.05,
    lr_ramp_down: float = 0.25,
    eps_initial: float = 0.05,
    eps_length: float = 0.75,
    w_samples: int = 10_000,
    seed: int = 0,
    ws_init: Tensor | None = None,
    noise_init: dict[str, Tensor] | None = None,
    resume: State | None = None,
    draw: Callable[[int], Tensor] | None = None,
    moments: str = "memory",
) -> Run[Result]:
    """Minimise Eq. (1) over ws, and over the noise maps if `optimise_noise`; yields one Iterate a step.

    Loop over the run, or pass it to `optim.solve`, which returns a `Result`.

    Variables of the iterates: "ws" ([N, num_ws, w_dim], or [N, 1, w_dim] in space "w") and "noise/<layer>" [N, h, w].

    With a Style-INR-GAN, x may have any size and aspect ratio from 32 pixels (VGG16's minimum) up to what memory
    allows; see `tiling` for more than a megapixel or two.

    Args:
        G: a generator, or a `tiling.TiledGenerator`. Only a Style-INR-GAN accepts an x of another size than its own;
            its noise maps then have sizes that fit x.
        x: [N, 3, H, W] in [-1, 1]; the loss sees it at full resolution unless the loss itself resizes (Sec. III-B).
        loss: d of Eq. (1), from `hrlib.losses`, or a `tiling.TiledLoss`.
        num_steps: steps of Adam.
        space: "w" (one code for all layers) or "w+" (one code a layer).
        optimise_ws: False keeps the codes `ws_init` fixed, without eps: style transfer (Fig. 11).
        optimise_noise: False keeps the noise maps fixed: Eq. (5), and optim(w) in Table II.
        lam_mse: weight of the mean squared pixel error in Eq. (1).
        noise_regularisation: weight of `losses.noise_regularisation`; 1e5 in StyleGAN2's projector.
        normalise_noise: scale each map to zero mean and unit mean square after each step. Fixed maps are normalised
            too, as in the published code.
        noise_start: standard deviation of the random initial maps.
        lr: peak learning rate of Adam.
        beta1, beta2: decay rates of Adam's averages of the gradient and of its square. Smaller values help runs of a
            few dozen steps, where the first gradients are large.
        noise_gain: factor of the learning rate for the noise maps.
        lr_ramp_up, lr_ramp_down: fractions of the run over which the learning rate rises and falls.
        eps_initial: initial standard deviation of eps, in units of w_std.
        eps_length: fraction of the run over which eps fades to 0.
        w_samples: number of samples behind w_avg and w_std.
        seed: of eps and of the random noise maps.
        ws_init: initial codes instead of w_avg; with optimise_ws=False, the codes to keep.
        noise_init: {layer: [h, w] or [N, h, w]}, initial maps instead of random ones.
        resume: `Iterate.state()` of the same run; on a CPU the result is bitwise the same.
        draw: step -> unit normal [N, num_ws, w_dim], instead of the library's own draws (for parity tests).
        moments: where Adam's moments are kept; see `optim.descend`.

    Raises:
        InvalidValue, ShapeError, UnknownName: before the first step. StoreError: at the first step, if `resume` belongs
        to another run. NonFiniteLoss: carries `.best`.
    """
    given = dict(locals())  # the arguments, by name
    optim.check_moments(moments)
    config = plain({name: given[name] for name in RANGES}, RANGES)
    config |= {"space": space} | {name: truth(name, given[name]) for name in FLAGS}
    s = SimpleNamespace(**config)
    _check_choices(s)
    check_loss(loss)
    size, n = canvas_size(G, x), len(x)
    if ws_init is not None:
        check_codes(ws_init, G, n, rows=1 if s.space == "w" else G.num_ws, what="ws_init")
    if noise_init is not None:
        _check_maps(noise_init, G.noise_maps(size), n)
    if not s.optimise_ws and (ws_init is None or not s.optimise_noise):
        raise InvalidValue(
            f"optimise_ws=False {'without ws_init' if ws_init is None else 'and optimise_noise=False'}",
            expected="the codes to keep as ws_init, and noise maps to optimise",
            do="give ws_init (the style's codes), or optimise the codes",
        )
    w_avg, w_std = w_statistics(G, samples=s.w_samples)
    ws = w_avg.repeat(n, 1 if s.space == "w" else G.num_ws, 1) if ws_init is None else ws_init.expand(n, -1, -1)
    # Fixed maps are used as given in the first step, and normalised from the second on: the published code normalises
    # after each step even what it does not optimise, which changes the final w by 14 %.
    fixed = {} if s.optimise_noise else noise_init or G.own_maps(size)
    if s.normalise_noise:
        check_spread(noise_init or fixed)
    settled = {k: normalise_(v.clone()) for k, v in fixed.items()} if s.normalise_noise else fixed
    target = loss.prepare(x)
    draw = draw or (lambda step: optim.unit_draw((n, G.num_ws, G.w_dim), seed=s.seed, step=step))

    def objective(step: int, v: Variables) -> tuple[dict[str, Tensor], Tensor]:
        scale = optim.exploration_scale(step / s.num_steps, w_std=w_std, initial=s.eps_initial, length=s.eps_length)
        eps = draw(step).to(x) * scale if s.optimise_ws else 0.0
        noise = noise_of(v) if s.optimise_noise else (settled if step else fixed)  # n; fixed in Eq. (5)
        image = G.synthesis(codes_of(v) + eps, noise=noise or "const", size=size)  # G(w + eps, n), Eq. (1)
        return terms_of(image, noise), image

    def terms_of(image: Tensor, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms of Eq. (1) for image = G(w + eps, n), plus the noise regularisation."""
        terms = dict(loss(image, target))  # d[G(w + eps, n), x], Eq. (1)
        if s.lam_mse:
            terms["mse"] = s.lam_mse * (image - x).square().mean()  # lam_mse d_mse[G(w + eps, n), x], Eq. (1)
        if s.noise_regularisation:
            terms["noise_regularisation"] = s.noise_regularisation * losses.noise_regularisation(noise)
        return terms

    def codes_of(v: Variables) -> Tensor:
        return v.get("ws", ws).expand(n, G.num_ws, -1)

    def after_step(v: Variables) -> None:
        if s.normalise_noise:
            for m in noise_of(v).values():
                normalise_(m)

    @torch.no_grad()
    def evaluate(v: Variables) -> tuple[float, Tensor]:
        noise = noise_of(v) or settled
        image = G.synthesis(codes_of(v), noise=noise or "const", size=size)  # G(w, n): without eps
        return float(sum(terms_of(image, noise).values())), image

    def finish(it: Iterate, seconds: float) -> Result:
        # The loop measured its best with eps, and before an update; compare it with the last variables without eps.
        both = [(*evaluate(v), step, v) for step, v in ((it.best.step, it.best.variables), (it.step, it.variables))]
        _, image, best_step, v = min(both, key=lambda candidate: candidate[0])
        return Result(
            ws=codes_of(v).clone(),
            noise=noise_of(v),
            image=image,
            history=list(it.history),
            config=config,
            seconds=seconds,
            peak_bytes=optim.peak_bytes(x.device),
            ended=optim.ended(it, s.num_steps),
            best_step=best_step,
        )

    config |= {
        "loss": loss.describe(),
        "generator": store.fingerprint(G.state_dict()),
        "image": store.fingerprint({"x": x}),
    }
    if ws_init is not None:
        config["codes"] = store.fingerprint({"ws": ws})
    if noise_init is not None:
        config["noise"] = store.fingerprint(noise_init)

    def start() -> Variables:
        """Initial values; made when the loop begins, which copies them, so that large maps are not held twice."""
        variables = {"ws": ws} if s.optimise_ws else {}
        if s.optimise_noise:
            maps = noise_init or _initial_noise(G, n, size, s.noise_start, s.seed)
            variables |= {NOISE + k: v.expand(n, *v.shape[-2:]) for k, v in maps.items()}
        return variables

    def steps(state: State | None) -> Iterator[Iterate]:
        variables = start()
        return optim.descend(
            variables,
            objective,
            num_steps=s.num_steps,
            lr=s.lr,
            gains={name: s.noise_gain for name in variables if name.startswith(NOISE)},
            betas=(s.beta1, s.beta2),
            lr_schedule=lambda t: optim.lr_ramp(t, ramp_up=s.lr_ramp_up, ramp_down=s.lr_ramp_down),
            after_step=after_step,
            resume=state,
            config=config,
            moments=moments,
        )

    return Run(steps, finish, config=config, num_steps=s.num_steps, resume=resume)


def _check_choices(s: SimpleNamespace) -> None:
    """`UnknownName` or `InvalidValue` for settings that do not exist or contradict each other."""
    if s.space not in ("w", "w+"):
        raise UnknownName(
            f"space={s.space!r}",
            expected='"w" or "w+"',
            do="for the noise maps, use optimise_noise",
        )
    if s.normalise_noise and not s.noise_start > 0:
        raise InvalidValue(
            f"noise_start={s.noise_start} with normalise_noise",
            expected="maps that can be scaled to unit mean square",
            do="choose noise_start > 0, or set normalise_noise=False",
        )


def check_loss(loss: Any) -> None:
    """Raise `InvalidValue` unless it is a loss, whose target can be prepared."""
    if not (callable(loss) and hasattr(loss, "prepare")):
        raise InvalidValue(
            f"loss = {loss!r}", expected="a loss of hrlib.losses", do='build it, for instance losses.named("vgg_conv")'
        )


def check_codes(ws: Tensor, G: nn.Module, n: int, *, rows: int, what: str) -> None:
    """Raise unless ws is [1 or n, rows, w_dim], finite, and of the generator's type.

    Raises:
        ShapeError: another shape or type. InvalidValue: NaN or infinite numbers.
    """
    good = isinstance(ws, Tensor) and ws.dtype == G.w_avg.dtype
    if not good or ws.ndim != 3 or len(ws) not in (1, n) or tuple(ws.shape[1:]) != (rows, G.w_dim):
        kind = f"shape {tuple(ws.shape)} and type {ws.dtype}" if isinstance(ws, Tensor) else f"type {type(ws).__name__}"
        raise ShapeError(
            f"{what} of {kind}",
            expected=f"[{n}, {rows}, {G.w_dim}] of type {G.w_avg.dtype}",
            do="take the codes of this generator, in the space that is optimised",
        )
    if not bool(torch.isfinite(ws).all()):
        raise InvalidValue(
            f"{what} with NaN or infinite numbers", expected="finite codes", do="invert the picture again"
        )


def _check_maps(maps: dict[str, Tensor], own: dict[str, Tensor], n: int) -> None:
    """Raise `ShapeError` unless the maps have the layers and sizes of the generator's own."""
    shapes = {k: tuple(m.shape) for k, m in maps.items()} if isinstance(maps, dict) else type(maps).__name__
    fits = isinstance(maps, dict) and maps.keys() == own.keys()
    if not fits or any(shapes[k] not in (s, (1, *s), (n, *s)) for k, m in own.items() for s in [tuple(m.shape)]):
        raise ShapeError(
            f"noise_init of {shapes}",
            expected=f"{ {k: tuple(m.shape) for k, m in own.items()} }, or {n} maps a layer",
            do="start from G.noise_maps(size), for the size of the picture",
        )


def noise_of(variables: Variables) -> dict[str, Tensor]:
    """The noise maps among the variables, by layer name."""
    return {k.removeprefix(NOISE): v for k, v in variables.items() if k.startswith(NOISE)}


def normalise_(m: Tensor) -> Tensor:
    """In place: zero mean, then unit mean square, over the last two axes.

    Maps of one pixel are left alone: they have no spread to normalise (it would be 0 / 0). Normalising prevents maps
    from carrying the picture, which one pixel cannot.
    """
    if m.shape[-2:] == (1, 1):
        return m
    m -= m.mean((-2, -1), keepdim=True)
    m *= m.square().mean((-2, -1), keepdim=True).rsqrt()
    return m


def check_spread(maps: dict[str, Tensor]) -> None:
    """Raise `InvalidValue` for constant maps of more than one pixel: `normalise_` would divide 0 by 0."""
    varies = lambda m: bool((m.amax((-2, -1)) > m.amin((-2, -1))).all())
    flat = [k for k, m in maps.items() if m.shape[-2:] != (1, 1) and not varies(m)]
    if flat:
        raise InvalidValue(
            f"constant noise maps: {', '.join(flat)}",
            expected="maps that can be scaled to unit mean square",
            do="draw them from N(0, 1), or set normalise_noise=False (inversion.invert)",
        )


def _initial_noise(G: nn.Module, n: int, size: tuple[int, int] | None, start: float, seed: int) -> dict[str, Tensor]:
    """Maps drawn from N(0, start^2), one set an image; image i's maps do not depend on the size of the batch."""
    sets = [G.noise_maps(size, seed=seed + 1 + i) for i in range(n)]
    return {k: torch.stack([drawn[k] for drawn in sets]).mul_(start) for k in sets[0]}


def check_type(x: Tensor, like: Tensor) -> None:
    """Raise `ShapeError` unless a target has the type of the generator's numbers."""
    if x.dtype != like.dtype:
        raise ShapeError(
            f"a target of type {x.dtype}", expected=f"{like.dtype}, the generator's type", do="convert it: x.float()"
        )


def canvas_size(G: nn.Module, x: Tensor) -> tuple[int, int] | None:
    """The `size` argument for G.synthesis: None at the native size."""
    check(x, "a target", limit=MAX_ABS)
    check_type(x, G.w_avg)
    size = tuple(x.shape[2:])
    if size == (G.resolution, G.resolution):
        return None
    if not G.any_size:
        raise ShapeError(
            f"a target of {size[0]}x{size[1]} for a StyleGAN2 of {G.resolution}x{G.resolution}",
            expected="the generator's own size",
            do="resize the image, or use a Style-INR-GAN, which accepts any size (Sec. III-A)",
        )
    return size


@dataclass(frozen=True)
class Result:
    """A finished inversion: the best variables, and how they were found.

    ws [N, num_ws, w_dim]; noise {layer: [N, h, w]} (empty if not optimised); image [N, 3, H, W] = G(ws, noise);
    history: one dict a step; config: settings, loss, hashes of generator and image; seconds; peak_bytes (on a CPU, of
    the whole process); ended: why the loop ended; best_step: the step that the variables come from.
    """

    ws: Tensor
    noise: dict[str, Tensor]
    image: Tensor
    history: list[dict[str, float]]
    config: dict[str, Any]
    seconds: float
    peak_bytes: int
    ended: str
    best_step: int

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write NAME.safetensors (ws, noise, image) and NAME.json (everything else); returns the first.

        path: NAME, with or without .safetensors. force: replace existing files, which are a `StoreError` otherwise,
        raised before either file is written.
        """
        tensors = {"ws": self.ws, "image": self.image} | {NOISE + k: v for k, v in self.noise.items()}
        facts = {k: getattr(self, k) for k in ("history", "config", "seconds", "peak_bytes", "ended", "best_step")}
        return store.write_tensors(path, tensors, facts, force=force)


def load(path: str | Path) -> Result:
    """Read a Result that was saved under the name `path`.

    Raises:
        StoreError: no such file. DamagedFile: one of the two files is damaged, or they do not belong together.
    """
    path = store.destination(path, ".safetensors")
    if not path.is_file():
        raise StoreError(f"no file {path}", expected="a saved Result", do="check the path")
    try:
        with safe_open(path, "pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        facts = store.read_json(path.with_suffix(".json"))
        if facts.pop("tensors") != store.fingerprint(tensors):
            raise KeyError("the tensors are not those the JSON file describes")
        return Result(ws=tensors["ws"], noise=noise_of(tensors), image=tensors["image"], **facts)
    except (SafetensorError, KeyError, TypeError, OSError) as e:
        raise DamagedFile(
            f"{path} cannot be read as an inversion result ({e})",
            expected="a .safetensors and a .json file written together by Result.save",
            do="run the inversion again",
        ) from e
