"""GAN inversion, Eq. (1): the codes and noise maps of a generator that reproduce a given image.

    min_{w, n}  d[G(w + eps, n), x] + lam_mse d_mse[G(w + eps, n), x]                                    (1)

The defaults are those of the authors' published projector: start at the mean of 10,000 w, Adam with lr 0.1, eps of
0.05 w_std that fades by 75 % of the run, noise maps from N(0, 1) optimised jointly and re-normalised after each step,
noise regularisation off, 1000 steps. lam_mse is not stated in the paper; 0 is the projector's value.
"""

from __future__ import annotations

import hashlib
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from . import descent, losses, store
from .descent import Iterate, State, Variables
from .errors import DamagedFile, ShapeError, StoreError, UnknownName, number

NOISE = "noise/"  # prefix of the noise maps among the variables


@dataclass(frozen=True)
class Settings:
    """The numbers that decide an inversion. See `invert` for their meaning."""

    num_steps: int = 1000
    space: str = "w+"
    optimise_ws: bool = True
    optimise_noise: bool = True
    lam_mse: float = 0.0
    noise_regularisation: float = 0.0
    normalise_noise: bool = True
    noise_start: float = 1.0
    lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    lr_ramp_up: float = 0.05
    lr_ramp_down: float = 0.25
    eps_initial: float = 0.05
    eps_length: float = 0.75
    w_samples: int = 10_000
    seed: int = 0


RANGES = descent.RANGES | {
    "lam_mse": "[0, inf)",
    "noise_regularisation": "[0, inf)",
    "noise_start": "[0, inf)",
    "beta1": "[0, 1)",
    "beta2": "[0, 1)",
}


@torch.no_grad()
def w_statistics(G: nn.Module, *, samples: int = 10_000, seed: int = 123) -> tuple[Tensor, float]:
    """Mean w [w_dim] and the scalar w_std = sqrt(mean ||w - w_avg||^2) over `samples` draws of z (seed 123 as the
    published projector, with numpy's legacy generator, so that its numbers can be met exactly)."""
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
    ws_init: Tensor | None = None,
    noise_init: dict[str, Tensor] | None = None,
    resume: State | None = None,
    draw: Callable[[int], Tensor] | None = None,
    moments: str = "memory",
    **settings: Any,
) -> Iterator[Iterate]:
    """Minimise Eq. (1) over ws, and the noise maps if `optimise_noise`; yield one Iterate a step.

    Variables of the iterates: "ws" ([N, num_ws, w_dim], or [N, 1, w_dim] in space "w") and "noise/<layer>" [N, h, w].

    A picture of any size and aspect ratio, from 32 pixels (VGG16's least) to as many as memory holds; see `tiling` for
    more than a megapixel or two. Of so small a picture the coarsest noise maps may be single numbers: see `normalise_`.

    Args:
        G: a generator, or a `tiling.TiledGenerator`. Only a Style-INR-GAN takes an x of another size than its own (then
            noise maps follow x).
        x: [N, 3, H, W] in [-1, 1]; the loss sees it at full resolution unless it was made to resize (Sec. III-B).
        loss: d of Eq. (1), from `hrlib.losses`, or a `tiling.TiledLoss`.
        ws_init: start here instead of w_avg; with optimise_ws=False the codes to keep.
        noise_init: {layer: [h, w] or [N, h, w]} instead of N(0, 1) draws.
        resume: `Iterate.state()` of an equal run, to the bitwise same end on a CPU.
        draw: step -> unit normal [N, num_ws, w_dim], in place of our own draws (parity tests).
        moments: where Adam's are kept, see `descent.descend`.
        settings: fields of `Settings`: num_steps; space "w" or "w+"; optimise_ws (False keeps the codes as they are,
            without eps: style transfer, Fig. 11); optimise_noise; lam_mse (weight of the mean squared pixel error);
            noise_regularisation (weight; 1e5 in StyleGAN2's projector); normalise_noise (zero mean, unit mean square
            after each step; fixed maps are normalised too, as the published code does); noise_start (standard deviation
            of the draws that the maps start from); lr, lr_ramp_up, lr_ramp_down; beta1, beta2 (Adam's: a run of a few
            dozen steps must forget the first, large gradients sooner); eps_initial, eps_length; w_samples; seed.

    Raises:
        InvalidValue, ShapeError, UnknownName: before the first step. NonFiniteLoss: carries `.best`.
    """
    s = checked_settings(settings)
    size = canvas_size(G, x)
    w_avg, w_std = w_statistics(G, samples=s.w_samples)
    n = len(x)
    if not s.optimise_ws and (ws_init is None or not s.optimise_noise):
        raise UnknownName(
            f"optimise_ws=False {'without ws_init' if ws_init is None else 'and optimise_noise=False'}",
            expected="the codes to keep as ws_init, and noise maps to optimise",
            do="give ws_init (the style's codes), or optimise the codes",
        )
    ws = w_avg.repeat(n, 1 if s.space == "w" else G.num_ws, 1) if ws_init is None else ws_init.expand(n, -1, -1)
    maps = noise_init or (_initial_noise(G, n, size, s) if s.optimise_noise else G.noise_maps(size))
    if s.normalise_noise and (noise_init or not s.optimise_noise):
        check_spread(maps)
    kept = {} if s.optimise_noise else maps
    settled = {} if s.optimise_noise else fixed_noise(G, size, s, noise_init)
    variables = {"ws": ws} if s.optimise_ws else {}
    if s.optimise_noise:
        variables |= {NOISE + k: v.expand(n, *v.shape[-2:]) for k, v in maps.items()}
    target = loss.prepare(x)
    draw = draw or (lambda step: descent.unit_draw((n, G.num_ws, G.w_dim), seed=s.seed, step=step))

    def objective(step: int, v: Variables) -> tuple[dict[str, Tensor], Tensor]:
        scale = descent.exploration_scale(step / s.num_steps, w_std=w_std, initial=s.eps_initial, length=s.eps_length)
        eps = draw(step).to(x) * scale if s.optimise_ws else 0.0
        noise = noise_of(v) if s.optimise_noise else (settled if step else kept)
        codes = v.get("ws", ws).expand(-1, G.num_ws, -1)
        image = G.synthesis(codes + eps, noise=noise, size=size)  # G(w + eps, n)
        return _terms(loss, image, target, x, noise, s), image

    def after_step(v: Variables) -> None:
        if s.normalise_noise:
            for m in noise_of(v).values():
                normalise_(m)

    config = asdict(s) | {
        "loss": loss.describe(),
        "generator": fingerprint(G.state_dict()),
        "image": fingerprint({"x": x}),
    }
    if not s.optimise_ws:
        config["codes"] = fingerprint({"ws": ws})
    return descent.descend(
        variables,
        objective,
        num_steps=s.num_steps,
        lr=s.lr,
        betas=(s.beta1, s.beta2),
        lr_schedule=lambda t: descent.lr_ramp(t, ramp_up=s.lr_ramp_up, ramp_down=s.lr_ramp_down),
        after_step=after_step,
        resume=resume,
        config=config,
        moments=moments,
    )


def _terms(loss, image: Tensor, target: Any, x: Tensor, noise: dict[str, Tensor], s: Settings) -> dict[str, Tensor]:
    """The terms of Eq. (1) for image = G(w + eps, n), and the noise regularisation if asked for."""
    terms = dict(loss(image, target))  # d[G(w + eps, n), x]
    if s.lam_mse:
        terms["mse"] = s.lam_mse * (image - x).square().mean()  # lam_mse d_mse[G(w + eps, n), x]
    if s.noise_regularisation:
        terms["noise_regularisation"] = s.noise_regularisation * losses.noise_regularisation(noise)
    return terms


def checked_settings(settings: dict[str, Any]) -> Settings:
    """A `Settings` from keyword arguments; `UnknownName` or `InvalidValue` for what does not exist or cannot be."""
    s = descent.checked_settings(Settings, settings, RANGES)
    if s.space not in ("w", "w+"):
        raise UnknownName(f"space={s.space!r}", expected='"w" or "w+"', do="noise maps are asked for by optimise_noise")
    if s.normalise_noise and not s.noise_start > 0:
        raise UnknownName(
            f"noise_start={s.noise_start} with normalise_noise",
            expected="maps that can be scaled to unit mean square",
            do="set normalise_noise=False",
        )
    return s


def noise_of(variables: Variables) -> dict[str, Tensor]:
    """The noise maps among the variables, by layer name."""
    return {k.removeprefix(NOISE): v for k, v in variables.items() if k.startswith(NOISE)}


def normalise_(m: Tensor) -> Tensor:
    """In place: zero mean, then unit mean square, over the last two axes.

    A map of one pixel stays as it is. It has no spread to normalise (that would be 0 / 0), and cannot carry a picture,
    which is what normalising keeps noise maps from.
    """
    if m.shape[-2:] == (1, 1):
        return m
    m -= m.mean((-2, -1), keepdim=True)
    m *= m.square().mean((-2, -1), keepdim=True).rsqrt()
    return m


def check_spread(maps: dict[str, Tensor]) -> None:
    """Raise `ShapeError` for maps of more than a pixel that are constant: `normalise_` would divide 0 by 0."""
    flat = [
        k for k, m in maps.items() if m.shape[-2:] != (1, 1) and not bool((m.amax((-2, -1)) > m.amin((-2, -1))).all())
    ]
    if flat:
        raise ShapeError(
            f"noise maps without spread: {', '.join(flat)}",
            expected="maps that can be scaled to unit mean square",
            do="give others, or set normalise_noise=False where the run has that",
        )


def _initial_noise(G: nn.Module, n: int, size: tuple[int, int] | None, s: Settings) -> dict[str, Tensor]:
    """Maps of N(0, noise_start^2), one set per image; image i's draws do not depend on the batch."""
    sets = [G.noise_maps(size, seed=s.seed + 1 + i) for i in range(n)]
    return {k: torch.stack([drawn[k] for drawn in sets]).mul_(s.noise_start) for k in sets[0]}


def canvas_size(G: nn.Module, x: Tensor) -> tuple[int, int] | None:
    """The `size` argument for G.synthesis: None at the native size."""
    if x.ndim != 4 or x.shape[1] != 3 or not x.numel() or not x.is_floating_point():
        raise ShapeError(
            f"target of shape {tuple(x.shape)}, {x.dtype}",
            expected="float [N, 3, H, W] in [-1, 1], one picture or more",
            do="read it with hrlib.image.read",
        )
    if not bool(torch.isfinite(x).all()) or float(x.abs().max()) > 1.001:
        raise ShapeError(
            f"target values in [{float(x.min()):.4g}, {float(x.max()):.4g}]",
            expected="finite values in [-1, 1]",
            do="convert it with hrlib.image (x / 127.5 - 1 for 8-bit data)",
        )
    size = tuple(x.shape[2:])
    if size == (G.resolution, G.resolution):
        return None
    if not G.any_size:
        raise ShapeError(
            f"a target of {size[0]}x{size[1]} for a StyleGAN2 of {G.resolution}x{G.resolution}",
            expected="the generator's own size",
            do="resize the image, or use a Style-INR-GAN, which takes any size (Sec. III-A)",
        )
    return size


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes of tensors, 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
        digest.update(t.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Result:
    """A finished inversion: the best variables met, and how they were found.

    ws [N, num_ws, w_dim]; noise {layer: [N, h, w]} (empty when not optimised); image [N, 3, H, W] = G(ws, noise);
    history: one dict a step; config: settings, loss, hashes of generator and image; seconds; peak_bytes (of the whole
    process on a CPU); ended: why the loop ended; best_step.
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

        path: NAME, with .safetensors or without. force: replace files that are there; without it that is a `StoreError`
        before either is written.
        """
        tensors = {"ws": self.ws, "image": self.image} | {NOISE + k: v for k, v in self.noise.items()}
        facts = {k: getattr(self, k) for k in ("history", "config", "seconds", "peak_bytes", "ended", "best_step")}
        return write_pair(path, tensors, facts, force=force)


def write_pair(path: str | Path, tensors: dict[str, Tensor], facts: dict[str, Any], *, force: bool = False) -> Path:
    """Write tensors to NAME.safetensors, and facts with the tensors' fingerprint to NAME.json; see `Result.save`."""
    path = store.new(store.destination(path, ".safetensors"), force=force)
    beside = store.new(path.with_suffix(".json"), force=force)
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with store.atomic(path) as temp:
        save_file(tensors, temp)
    store.write_json(beside, facts | {"tensors": fingerprint(tensors)})
    return path


def load(path: str | Path) -> Result:
    """Read a saved Result by the name it was saved under.

    Raises:
        StoreError: there is none. DamagedFile: either file is damaged, or they do not belong together.
    """
    path = store.destination(path, ".safetensors")
    if not path.is_file():
        raise StoreError(f"no file {path}", expected="a saved Result", do="check the path")
    try:
        with safe_open(path, "pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        facts = store.read_json(path.with_suffix(".json"))
        if facts.pop("tensors") != fingerprint(tensors):
            raise KeyError("the tensors are not those the JSON file describes")
        return Result(ws=tensors["ws"], noise=noise_of(tensors), image=tensors["image"], **facts)
    except (SafetensorError, KeyError, TypeError, OSError) as e:
        raise DamagedFile(
            f"{path} cannot be read as an inversion result ({e})",
            expected="a .safetensors and a .json file written together by Result.save",
            do="run the inversion again",
        ) from e


def solve(
    G: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor, Any], dict[str, Tensor]],
    *,
    watch: Callable[[Iterator[Iterate]], Iterator[Iterate]] = iter,
    checkpoint: str | Path | None = None,
    every: int = 50,
    **options: Any,
) -> Result:
    """Run `invert` to its end (or to the end of `watch`) and return the better of the best and the last iterate.

    Args:
        watch: wraps the iterator: a progress bar, `descent.until_flat`, itertools.islice ...
        checkpoint: a state file; written every `every` steps and resumed from when it exists; deleted at the end.
            One that is no state, of another run, or of one that is at work now, is refused before the first step.
        options: everything `invert` takes.
    """
    start = time.perf_counter()
    begin = lambda resume: invert(G, x, loss, **(options | {"resume": resume} if resume else options))
    with descent.held(checkpoint) as saved:
        it = descent.completed(begin(saved()), watch=watch, checkpoint=checkpoint, every=every)
        state = it.state()
        best_step, variables, ws, image = _better(G, x, loss, it, options)
    return Result(
        ws=ws,
        noise=noise_of(variables),
        image=image,
        history=state.history,
        config=state.config,
        seconds=time.perf_counter() - start,
        peak_bytes=peak_bytes(x.device),
        ended="all steps done"
        if it.step + 1 == state.config["num_steps"]
        else f"stopped by its watcher after step {it.step}",
        best_step=best_step,
    )


def _better(
    G: nn.Module, x: Tensor, loss: Callable, it: Iterate, options: dict[str, Any]
) -> tuple[int, Variables, Tensor, Tensor]:
    """(step, variables, ws, image) of the better of the best and the last iterate of a run with these options."""
    s = checked_settings({k: v for k, v in options.items() if k in Settings.__dataclass_fields__})
    size, target = canvas_size(G, x), loss.prepare(x)
    settled = {} if s.optimise_noise else fixed_noise(G, size, s, options.get("noise_init"))

    def codes_of(variables: Variables) -> Tensor:
        return variables.get("ws", options.get("ws_init")).expand(len(x), G.num_ws, -1)

    @torch.no_grad()
    def evaluate(variables: Variables) -> tuple[float, Tensor]:
        noise = noise_of(variables) or settled
        image = G.synthesis(codes_of(variables), noise=noise, size=size)
        return float(sum(_terms(loss, image, target, x, noise, s).values())), image

    # The loop's best was measured before an update and with eps; compare it with the last variables on equal terms.
    found = [(*evaluate(v), step, v) for step, v in ((it.best.step, it.best.variables), (it.step, it.variables))]
    _, image, best_step, variables = min(found, key=lambda f: f[0])
    return best_step, variables, codes_of(variables).clone(), image


def fixed_noise(
    G: nn.Module, size: tuple[int, int] | None, s: Settings, noise_init: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The maps of a run without `optimise_noise`, from its second step on: noise_init or the generator's own.

    The published code normalises even maps that it does not optimise, after the first step: 14 % in the final w.
    """
    maps = noise_init or G.noise_maps(size)
    return {k: normalise_(v.clone()) for k, v in maps.items()} if s.normalise_noise else maps


def peak_bytes(device: torch.device | str = "cpu") -> int:
    """Peak memory: of the CUDA allocator on a GPU, else the process's peak resident set."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # Linux; its ru_maxrss would count the parent from which a process was started
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
