"""Pictures of people who do not exist, off the manifold of the generator that imagined them.

    x = render(7)                     # [1, 3, 1024, 1024] in [-1, 1]: the person of seed 7
    y = render(7, 512, shot=1)        # the same person in another picture
    w = identity(7)                   # [512], the code that the person was made from

A sample of the FFHQ generator would be too easy a target for that generator: some code reproduces it exactly. So the
person is taken off the generator's manifold in three steps, each of which a photograph has gone through too:

1. geometry: a smooth random displacement, perspective, rotation and scale of a few percent;
2. surroundings: the head is cut out and laid before a photograph from `image.SAMPLES`, out of focus;
3. a camera: white balance, vignetting, blur of the optics, photon noise as it looks after demosaicing, a tone curve,
   sharpening and JPEG.

It makes an inversion harder: after 60 steps on pixels alone (w+), two people are at 22.0 and 23.9 dB, and as the
generator draws them at 23.4 and 25.0 dB. All are still rising, so the final gap may be larger.

The head is cut out by a linear probe on the generator's own features ("ffhq_matte": 1,281 numbers, fitted by
`benchmarks/fit_matte.py` without any label drawn by hand), refined by a guided filter on the picture.

Everything is drawn on the CPU from (seed, shot), on one thread. On one machine a picture is always bitwise the same;
another kind of processor may round a pixel in a thousand to the next level. The generator is in one of the packages of
`make faces`. FFHQ's terms make these pictures material for research only.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .. import image, weights
from ..errors import SEED, number

GENERATOR, SIDE = "ffhq_mobile1024", 1024
PSI = 0.7  # truncation: fewer odd hats and broken ears than at 1, still a crowd of different people
POSE, COLOURS = slice(0, 2), slice(9, 16)  # codes: b4 and the first of b8; from b128's first on

# People whose picture (shot 0) is without a visible flaw: adults, chosen by eye for plausibility among seeds 1 to 54,
# before any of them was inverted. Figures use these; statistics that need chance take ranges of seeds.
CHOSEN = (10, 12, 14, 26, 31, 33, 36, 37, 42, 44, 45, 46, 47, 51)

# Photographs without people that are plausible out of focus, with the colours of the grey ones (linear RGB).
BACKGROUNDS = {
    "coffee": (1.0, 1.0, 1.0),  # the table beside the cup
    "rocket": (1.0, 1.0, 1.0),
    "brick": (1.35, 0.95, 0.75),
    "grass": (0.85, 1.10, 0.50),
    "gravel": (1.08, 1.00, 0.90),
}


def identity(seed: int) -> Tensor:
    """[512], the code w of the person: what all the person's pictures are made from, and the ground truth of ID.

    Raises:
        MissingWeights: without the packages of `make faces`. InvalidValue: a seed out of range.
    """
    return _code(_generator(), np.random.default_rng((number("seed", seed, SEED), 0)))


def render(seed: int, size: int | tuple[int, int] = SIDE, *, shot: int = 0) -> Tensor:
    """One picture [1, 3, H, W] in [-1, 1] of the person `seed`; at 1024 pixels its values are those of 8 bits.

    Args:
        size: edge or (H, W); the picture is made at 1024 pixels, cropped centrally and resampled.
        shot: other numbers show the same person with another pose, expression, light, background and camera.

    Raises:
        MissingWeights: without the packages of `make faces`. InvalidValue: a seed, shot or size out of range.
    """
    height, width = image.sides(size)
    taken = _taken(number("seed", seed, SEED), number("shot", shot, SEED))
    return image.resize(image.from_uint8(taken), (height, width))


@lru_cache(maxsize=16)  # 3 MB each
def _taken(seed: int, shot: int) -> np.ndarray:
    """uint8 [1024, 1024, 3]."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and so the last bit, depends on it
    try:
        with torch.no_grad():
            return _take(seed, shot)
    finally:
        torch.set_num_threads(threads)


def _take(seed: int, shot: int) -> np.ndarray:
    rng = np.random.default_rng((seed, 1 + shot))
    G = _generator()
    sample, matte = _sample(G, _codes(G, seed, shot, rng))
    head, behind = _layers(_linear(sample), matte)
    _, bend = _geometry(np.random.default_rng((seed, 1)))  # that of shot 0: a face keeps its proportions
    view, _ = _geometry(rng)
    head, matte = _warp(torch.cat([head * matte, matte], 1), view, bend).split([3, 1], 1)
    scene = head + (1 - matte) * _background(behind, rng)
    return _camera(scene.clamp(min=0), matte, rng)


# --- the person -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _generator() -> nn.Module:
    return weights.load_generator(GENERATOR)


@lru_cache(maxsize=1)
def _probe() -> dict[str, Tensor]:
    """{"b32": [512], "b64": [512], "b128": [256], "bias": []}: weights on the features of the blocks."""
    return weights.load_state("ffhq_matte")[0]


def _code(G: nn.Module, rng: np.random.Generator) -> Tensor:
    """[512]: one truncated w."""
    z = torch.from_numpy(rng.standard_normal((1, G.z_dim), dtype=np.float32))
    return G.mapping(z, PSI)[0, 0]


def _codes(G: nn.Module, seed: int, shot: int, rng: np.random.Generator) -> Tensor:
    """[1, 16, 512]. A person is in the middle codes; the first ones (pose) and the last ones (colours, light) of other
    shots go about half of the way to those of other people, the middle ones a little (expression).

    With dlib's recogniser (same person below 0.6), shots 0 and 1 of 50 people are 0.29 apart (median; 95 % below 0.43,
    the most 0.61) and different people 0.78; the nearest shot 0 is the right one for 50 of 50.
    """
    ws = identity(seed).repeat(1, G.num_ws, 1)
    if shot:
        pose, expression, colours = (_code(G, rng) for _ in range(3))
        ws = ws.lerp(expression, 0.06)
        ws[:, POSE] = ws[:, POSE].lerp(pose, 0.5)
        ws[:, COLOURS] = ws[:, COLOURS].lerp(colours, 0.6)
    return ws


def _sample(G: nn.Module, ws: Tensor) -> tuple[Tensor, Tensor]:
    """The picture [1, 3, 1024, 1024], and how much of each pixel is the person [1, 1, 1024, 1024]; in [0, 1]."""
    probe = _probe()
    score = probe["bias"]
    for res, features, rgb in G.synthesis.blocks(ws):
        if (key := f"b{res}") in probe:
            part = torch.einsum("nchw,c->nhw", features, probe[key])[:, None]
            score = score + F.interpolate(part, size=(128, 128), mode="bilinear", align_corners=False)
    picture = ((rgb + 1) / 2).clamp(0, 1)
    score = F.interpolate(score, size=(512, 512), mode="bicubic", align_corners=False)
    matte = _matted(score, F.avg_pool2d(picture, 2))
    return picture, F.interpolate(matte, size=picture.shape[2:], mode="bilinear", align_corners=False)


def _matted(score: Tensor, guide: Tensor) -> Tensor:
    """The matte [1, 1, H, W] in [0, 1] from the probe's score (person above 0) and the picture [1, 3, H, W] in [0, 1].

    Where the probe is unsure, along the outline, colours decide: a linear function of RGB, fitted in each neighbourhood
    to the pixels that the probe is sure of. It is the guided filter (He, Sun and Tang 2010) with weighted means.
    """
    person, weight = (score > 0).float(), ((score.abs() - 0.6) / 0.3).clamp(0, 1) + 1e-4
    total = _box(weight, 30)

    def mean(x: Tensor) -> Tensor:
        return _box(x * weight, 30) / total

    mean_guide, mean_person = mean(guide), mean(person)
    products = mean((guide[:, :, None] * guide[:, None]).flatten(1, 2)).unflatten(1, (3, 3))
    cov = products - mean_guide[:, :, None] * mean_guide[:, None] + 1e-3 * torch.eye(3)[:, :, None, None]
    cov_person = mean(guide * person) - mean_guide * mean_person
    rows = cov.unbind(1)
    adjugate = [torch.linalg.cross(rows[i - 2], rows[i - 1], dim=1) for i in range(3)]  # quicker than linalg.solve
    slope = torch.cat([(row * cov_person).sum(1, keepdim=True) for row in adjugate], 1)
    slope = slope / (rows[0] * adjugate[0]).sum(1, keepdim=True)
    offset = mean_person - (slope * mean_guide).sum(1, keepdim=True)
    colours = (_box(slope, 10) * guide).sum(1, keepdim=True) + _box(offset, 10)
    explained = (slope * cov_person).sum(1, keepdim=True) / (mean_person * (1 - mean_person) + 1e-3)  # R^2 of the fit
    matte = torch.sigmoid(8 * score).lerp(colours, ((_box(explained, 10) - 0.5) / 0.3).clamp(0, 1))
    matte = matte.lerp(person, ((score.abs() - 0.55) / 0.3).clamp(0, 1))
    return ((matte - 0.15) / 0.7).clamp(0, 1)


def _box(x: Tensor, radius: int) -> Tensor:
    """Means over squares of 2 radius + 1 pixels, without what is outside the picture."""
    k = 2 * radius + 1
    x = F.avg_pool2d(x, (1, k), 1, (0, radius), count_include_pad=False)
    return F.avg_pool2d(x, (k, 1), 1, (radius, 0), count_include_pad=False)


def _layers(picture: Tensor, matte: Tensor) -> tuple[Tensor, Tensor]:
    """The colours of the person without what shines through, and of what is behind, by blur fusion (Forte 2021)."""
    head, behind = picture, picture
    for radius in (45, 6):
        some, rest = _box(matte, radius) + 1e-4, _box(1 - matte, radius) + 1e-4
        near, far = _box(head * matte, radius) / some, _box(behind * (1 - matte), radius) / rest
        head = (near + matte * (picture - matte * near - (1 - matte) * far)).clamp(0, 1)
        behind = far
    return head, behind


# --- geometry ---------------------------------------------------------------------------------------------------------


def _geometry(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """How the camera is held, and the smooth displacement [1, 2, 6, 6] that changes the proportions of the face."""
    view = dict(angle=rng.normal(0, 0.025), zoom=rng.normal(0.03, 0.015))
    view |= dict(shift=rng.normal(0, 0.012, 2), tilt=rng.normal(0, 0.02, 2))
    return view, rng.normal(0, 1, (1, 2, 6, 6))


def _warp(x: Tensor, view: dict[str, np.ndarray], bend: np.ndarray) -> Tensor:
    """x [1, C, H, W] seen a little differently. Nothing shrinks by more than a quarter: bicubic is enough.

    It is enlarged by 3 % on average, so that little lies beyond the edges, where the picture is mirrored.
    """
    angle, scale, shift, tilt = view["angle"], np.exp(view["zoom"]), view["shift"], view["tilt"]
    height, width = x.shape[2:]
    v, u = torch.meshgrid(
        (torch.arange(height) + 0.5) * 2 / height - 1, (torch.arange(width) + 0.5) * 2 / width - 1, indexing="ij"
    )
    depth = 1 + float(tilt[0]) * u + float(tilt[1]) * v
    cos, sin = float(np.cos(angle) / scale), float(np.sin(angle) / scale)
    seen = torch.stack([(cos * u - sin * v) / depth, (sin * u + cos * v) / depth], -1) + torch.tensor(shift).float()
    moved = torch.from_numpy(bend.astype(np.float32))
    moved = F.interpolate(moved, size=(height, width), mode="bicubic", align_corners=True)
    seen = seen[None] + 0.014 * moved.permute(0, 2, 3, 1)
    return F.grid_sample(x, seen, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(0, 1)


# --- surroundings -----------------------------------------------------------------------------------------------------


def _background(behind: Tensor, rng: np.random.Generator) -> Tensor:
    """A photograph [1, 3, 1024, 1024], linear, out of focus, its brightness halfway to that of the original scene."""
    name = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    photo = (image.sample(name) + 1) / 2
    photo = photo[:, :, :, 440:] if name == "coffee" else photo
    side = int(min(photo.shape[2:]) * rng.uniform(0.55, 0.95))
    top, left = (int(rng.integers(n - side + 1)) for n in photo.shape[2:])
    photo = photo[:, :, top : top + side, left : left + side]
    photo = photo.mT if name == "brick" else photo  # a pavement becomes a wall
    photo = photo.flip(3) if rng.random() < 0.5 else photo
    photo = F.interpolate(photo, size=(512, 512), mode="bicubic", align_corners=False).clamp(0, 1)
    light = _linear(photo) * torch.tensor(BACKGROUNDS[name])[:, None, None]
    light = _disc(light, rng.uniform(12, 24))
    light = light * (behind.mean() / light.mean()).sqrt()
    return F.interpolate(light, size=behind.shape[2:], mode="bicubic", align_corners=False).clamp(min=0)


def _disc(x: Tensor, radius: float) -> Tensor:
    """x [1, 3, H, W] blurred by a disc, as a round aperture does; the picture is mirrored at its edges."""
    pad = int(radius) + 1
    v, u = torch.meshgrid(*[torch.arange(-pad, pad + 1, dtype=torch.float32)] * 2, indexing="ij")
    disc = (radius + 0.5 - (u.square() + v.square()).sqrt()).clamp(0, 1)
    x = F.pad(x, (pad, pad, pad, pad), mode="reflect")
    spectrum = torch.fft.rfft2(disc / disc.sum(), s=x.shape[2:])
    return torch.fft.irfft2(torch.fft.rfft2(x) * spectrum, s=x.shape[2:])[:, :, 2 * pad :, 2 * pad :]


# --- the camera -------------------------------------------------------------------------------------------------------


def _linear(srgb: Tensor) -> Tensor:
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def _srgb(linear: Tensor) -> Tensor:
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def _gaussian(x: Tensor, sigma: float) -> Tensor:
    t = torch.arange(-4, 5, dtype=torch.float32)
    k = torch.exp(-0.5 * (t / sigma) ** 2)
    k = (k / k.sum()).repeat(x.shape[1], 1, 1, 1)
    x = F.conv2d(F.pad(x, (4, 4, 4, 4), mode="reflect"), k, groups=x.shape[1])
    return F.conv2d(x, k.transpose(2, 3), groups=x.shape[1])


def _camera(scene: Tensor, matte: Tensor, rng: np.random.Generator) -> np.ndarray:
    """What a camera makes of linear light [1, 3, H, W]: uint8 [H, W, 3].

    Exposure is metered on the person (`matte`), as portrait cameras do, but not to the full.
    """
    exposure = (0.2 / ((scene.mean(1, keepdim=True) * matte).sum() / matte.sum())) ** 0.5
    gains = torch.tensor(np.exp(rng.normal(0, [0.03, 0.0, 0.04]) + rng.normal(0, 0.05)), dtype=torch.float32)
    vignetting, optics = rng.uniform(0.05, 0.2), rng.uniform(0.35, 0.6)
    photons, contrast = rng.uniform(2500, 12000), rng.uniform(0.05, 0.3)
    sharpening, quality = rng.uniform(0.3, 0.8), int(rng.integers(92, 97))
    height, width = scene.shape[2:]
    v, u = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    falloff = 1 - vignetting * (u.square() + v.square()) / 2
    light = exposure * _gaussian(scene * gains[:, None, None] * falloff, optics)
    noise = torch.from_numpy(rng.standard_normal((1, 3, height, width), dtype=np.float32))
    light = light + _demosaiced(noise * ((light + 0.002) / photons).sqrt())
    light = torch.where(light > 0.6, 1 - 0.4 * torch.exp((0.6 - light) / 0.4), light)  # highlights roll off
    x = _srgb(light.clamp(min=0))
    x = x + contrast * (x * x * (3 - 2 * x) - x)
    x = x + sharpening * (x - _gaussian(x, 1.0))
    file = io.BytesIO()
    image.to_pil(x.clamp(0, 1) * 2 - 1).save(file, "jpeg", quality=quality, subsampling=0)
    return np.asarray(Image.open(file))


def _demosaiced(noise: Tensor) -> Tensor:
    """Independent noise [1, 3, H, W] as bilinear demosaicing of a Bayer pattern (RG/GB) leaves it."""
    measured = torch.zeros_like(noise)
    measured[:, 0, ::2, ::2], measured[:, 2, 1::2, 1::2] = noise[:, 0, ::2, ::2], noise[:, 2, 1::2, 1::2]
    measured[:, 1, ::2, 1::2], measured[:, 1, 1::2, ::2] = noise[:, 1, ::2, 1::2], noise[:, 1, 1::2, ::2]
    cross = torch.tensor([[0.0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    square = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    return F.conv2d(measured, torch.stack([square, cross, square])[:, None], padding=1, groups=3)
