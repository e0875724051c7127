"""One inversion as a run of a sweep: named picture, named loss, measured. The rows of Table II and of Fig. 12."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import devices, inversion, losses, metrics, optim, weights
from ..errors import number, plain
from ..image import to_pil
from ..worlds.pictures import listed, picture
from .sweep import Outcome

CACHED = 16  # networks and losses that a worker keeps


def grid(
    *,
    images: Sequence[str],
    losses: Sequence[str],
    inputs: Sequence[int] = (),
    noise: Sequence[bool] = (True,),
    seeds: Sequence[int] = (0,),
    generator: str,
    perceptual: str,
    size: int,
    num_steps: int,
    lr: float,
    columns: Sequence[str],
    lam_mse: float = 0.0,
    discriminator: str = "",
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Every combination of pictures, losses, input sizes, spaces and seeds, as runs for `perform`; all names checked.

    Args:
        images: names for `lab.listed`: of pictures, ranges and folders.
        losses: names for `losses.named`, taps included ("vgg_conv:features_21", "discriminator:b64").
        inputs: edges of the input of the loss, in pixels; `size`, the default, is the picture as it is.
        noise: whether the noise maps are optimised with w+ (optim(w, n)) or not (optim(w)).
        seeds: of the inversion, and of the random VGG.
        generator: for `weights.load_generator`; discriminator: for "discriminator" losses, as a `weights` name.
        perceptual: "shipped", "imagenet" or a file: the weights of the other perceptual losses.
        size: edge of the pictures, in pixels.
        num_steps: as in `inversion.invert`, and so are lr and lam_mse.
        columns: measures out of `metrics.METRICS`.
        device: "auto" takes the CUDA device of the worker when it has one.

    Raises:
        UnknownName, InvalidValue: a loss, tap, column, picture or network that does not exist, a number out of range;
            before anything is computed.
        MissingWeights: a network that is not on this machine.
    """
    metrics.check_columns(columns)
    images = listed(list(images))
    size, *inputs = (number("size", edge, "whole [1, inf)") for edge in (size, *inputs))
    how = plain(dict(num_steps=num_steps, lr=lr, lam_mse=lam_mse), inversion.RANGES)
    seeds = [number("seed", seed, inversion.RANGES["seed"]) for seed in seeds]
    for name in images:
        picture(name, size)
    generator_of(generator, "cpu")
    inputs = inputs or (size,)
    for loss, edge in itertools.product(losses, inputs):
        loss_of(loss, _source(loss, perceptual, discriminator), _resize(edge, size), seeds[0], "cpu")
    fixed = {"generator": generator, "perceptual": perceptual, "discriminator": discriminator, "size": size}
    fixed |= how | {"columns": list(columns), "device": device}
    varied = itertools.product(losses, inputs, noise, images, seeds)
    return [
        {"loss": loss, "input": edge, "noise": n, "image": image, "seed": seed, **fixed}
        for loss, edge, n, image, seed in varied
    ]


def perform(*, columns: Sequence[str], **settings: Any) -> Outcome:
    """Invert one picture and measure it; the settings are those of `grid`.

    Returns:
        {column: value}, and the reconstruction as image.png (8 bits; it is measured before it is rounded).
    """
    x, options = _prepare(**settings)
    result = optim.solve(inversion.invert(x=x, **options))
    return Outcome(
        {c: float(metrics.METRICS[c][1](result.image, x)[0]) for c in columns}, {"image.png": png(result.image)}
    )


def png(x: Tensor) -> bytes:
    """A picture [1, 3, H, W] in [-1, 1] as the bytes of a PNG file."""
    buffer = io.BytesIO()
    to_pil(x.clamp(-1, 1)).save(buffer, format="PNG")
    return buffer.getvalue()


def estimate(*, columns: Sequence[str], **settings: Any) -> float:
    """Seconds that `perform` will take here, from the second and third step of the run; loading is not counted."""
    x, options = _prepare(**settings)
    steps = inversion.invert(x=x, **options)
    next(steps)
    begun, count = time.perf_counter(), 0
    for _ in itertools.islice(steps, 2):
        count += 1
    steps.close()
    return options["num_steps"] * (time.perf_counter() - begun) / max(count, 1)


def _prepare(
    *,
    image: str,
    loss: str,
    input: int,
    noise: bool,
    seed: int,
    generator: str,
    perceptual: str,
    discriminator: str,
    size: int,
    num_steps: int,
    lr: float,
    lam_mse: float,
    device: str,
) -> tuple[Tensor, dict[str, Any]]:
    """The target [1, 3, H, W] and the other arguments of `inversion.invert`."""
    where = str(devices.choose(device))
    options = {
        "G": generator_of(generator, where),
        "loss": loss_of(loss, _source(loss, perceptual, discriminator), _resize(input, size), seed, where),
        "optimise_noise": noise,
        "num_steps": num_steps,
        "lr": lr,
        "lam_mse": lam_mse,
        "seed": seed,
    }
    return picture(image, size).to(where), options


def _source(loss: str, perceptual: str, discriminator: str) -> str:
    return discriminator if loss.partition(":")[0] == "discriminator" else perceptual


def _resize(edge: int, size: int) -> int | None:
    return None if edge == size else edge


@weights.kept(CACHED)
def generator_of(name: str, device: str) -> torch.nn.Module:
    """A generator, kept by the process that asks for it: catalogue name or file."""
    return weights.load_generator(name, device=device)


@weights.kept(CACHED)
def loss_of(name: str, source: str, resize: int | None, seed: int, device: str) -> losses.Loss:
    """A loss of `losses.named` with weights `source`, kept by the process that asks for it."""
    return losses.named(name, weights=source, resize=resize, seed=seed).to(device)
