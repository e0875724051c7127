"""How good a generator is: Frechet distance beside a ladder of references, precision and recall, and the layout of w.

All measures use features of the shipped thin VGG16, so the numbers compare only with each other. Pictures are drawn or
read in chunks, and only their features are kept. Renders and their features are cached in `build/measure`; delete that
folder when the renderer changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from .. import fid, stats
from ..errors import InvalidValue, ShapeError
from ..pose import CHUNK, POOL_TAPS, grid_features, vgg
from ..store import atomic
from ..worlds import portraits
from . import set_files
from .picture_sets import PictureSet, load_set, render_set

CACHE = Path("build/measure")
BLURS = (0.5, 1.0, 2.0)  # rungs of the ladder: sigma of a Gaussian blur, in pixels
SEEDS = (1, 2)  # of the two sets of renders; training sets have seed 0
POSE = ("yaw", "pitch")
PROPORTIONS = (
    "head_width",
    "jaw_width",
    "chin",
    "hair_length",
    "hair_volume",
    "fringe",
)  # those that can be read off a picture off a picture


def pooled_features(images: Tensor) -> Tensor:
    """Features averaged over the whole picture, which the distances here compare: [N, 3, H, W] -> [N, C]."""
    return grid_features(images, cells=1)


@torch.inference_mode()
def drawn(G: nn.Module, n: int, *, seed: int, ws: Tensor | None = None) -> Iterator[Tensor]:
    """n samples of G in chunks [c, 3, R, R], clamped to [-1, 1], each with its own noise maps; all draws from `seed`.

    ws: codes [n, num_ws, w_dim] to draw; None draws z ~ N(0, I), without truncation.
    """
    g, device = torch.Generator().manual_seed(seed), G.w_avg.device
    for start in range(0, n, CHUNK):
        b = min(CHUNK, n - start)
        codes = G.mapping(torch.randn(b, G.z_dim, generator=g).to(device)) if ws is None else ws[start : start + b]
        noise = {k: torch.randn(b, *m.shape, generator=g).to(device) for k, m in G.noise_maps().items()}
        yield G.synthesis(codes, noise=noise).clamp(-1, 1)


def draw(G: nn.Module, n: int, *, seed: int) -> Tensor:
    """The samples of `drawn` in one tensor [n, 3, R, R]."""
    return torch.cat(list(drawn(G, n, seed=seed)))


# --- renders ----------------------------------------------------------------------------------------------------------


def renders(world: str, n: int, *, resolution: int, seed: int, cache: Path = CACHE) -> PictureSet:
    """n renders of a world (see `picture_sets.WORLDS`) that no training used, from the cache or made now."""
    if seed == 0:
        raise InvalidValue("seed = 0, the training sets' own", expected="unseen pictures", do="take another seed")
    folder = cache / f"{world.replace('/', '_')}{resolution}_seed{seed}_{n}"
    for _ in render_set(folder, n, world=world, resolution=resolution, z_dim=64, seed=seed):
        pass
    return load_set(folder)


def render_features(data: PictureSet, n: int, *, cells: int = 1, sigma: float = 0.0) -> Tensor:
    """`grid_features` of a set's first n pictures, blurred by `sigma` pixels; cached in its folder. [n, C cells^2]."""
    if len(data) < n:
        raise ShapeError(
            f"{len(data)} pictures in {data.folder}", expected=f"{n} or more", do="lower n, or render more"
        )
    data.wait_for(n)
    what = json.dumps([vgg().fingerprint, POOL_TAPS, cells, sigma, n])
    file = data.folder / f"features_{hashlib.sha256(what.encode()).hexdigest()[:16]}.npy"
    if not file.exists():
        chunks = (data.batch(index)[0] for index in torch.arange(n).split(CHUNK))
        found = torch.cat([grid_features(blur(x, sigma), cells) for x in chunks])
        with atomic(file) as temp, open(temp, "wb") as f:
            np.save(f, found.numpy())
    return torch.from_numpy(np.array(set_files.array(file)))


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur by `sigma` pixels (0: none), cut off at four of them, borders reflected."""
    return gaussian_blur(x, 2 * int(4 * sigma + 0.5) + 1, sigma) if sigma else x


# --- the ladder -------------------------------------------------------------------------------------------------------


def ladder(
    G: nn.Module, world: str, *, n: int = 10_000, other: PictureSet | None = None, cache: Path = CACHE
) -> pd.DataFrame:
    """Compare n unseen renders with other renders, blurred renders, and n samples of G.

    other: source of the other renders and the blurred ones; by default unseen ones. A training set saves half of the
    rendering.

    Returns one row for each rung, columns "pictures", "frechet" (distance), "precision" and "recall" (k = 3; with the
    pictures as fakes). Both sets are finite, so a perfect generator reaches "other renders".
    """
    draw_set = lambda seed: renders(world, n, resolution=G.resolution, seed=seed, cache=cache)
    reference, other = render_features(draw_set(SEEDS[0]), n), other or draw_set(SEEDS[1])
    rungs = {"other renders": render_features(other, n)}
    rungs |= {f"renders, blur {s:g} px": render_features(other, n, sigma=s) for s in BLURS}
    rungs["generator"] = torch.cat([pooled_features(x).cpu() for x in drawn(G, n, seed=SEEDS[0])])
    rows = []
    for name, found in rungs.items():
        precision, recall = fid.precision_recall(reference, found)
        rows.append((name, fid.frechet_distance(reference, found), precision, recall))
    return pd.DataFrame(rows, columns=["pictures", "frechet", "precision", "recall"])


# --- what two generators share ----------------------------------------------------------------------------------------


class Ridge:
    """Ridge regression of several targets on many features; the penalty minimises the generalised cross-validation.

    fit: x [n, D], y [n, T]. Features are standardised (features without variance are dropped). By hand: it is one
    SVD, and nothing else here needs scikit-learn.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.mean, std = x.double().mean(0), x.double().std(0)
        self.scale = torch.where(std > 1e-8, 1 / std, 0.0)
        self.offset = y.double().mean(0)
        u, s, vt = torch.linalg.svd(self._standard(x), full_matrices=False)
        uy, n = u.T @ (y.double() - self.offset), len(x)
        outside = (y.double() - self.offset).square().sum(0) - uy.square().sum(0)  # of the span of the features
        found = []
        for penalty in torch.logspace(-4, 4, 33, dtype=torch.float64) * s.square().mean():
            inverse = s / (s.square() + penalty)
            residual = outside + ((1 - s * inverse)[:, None] * uy).square().sum(0)
            score = residual / (1 - ((s * inverse).sum() + 1) / n) ** 2
            found.append((score, vt.T @ (inverse[:, None] * uy)))
        best = torch.stack([score for score, _ in found]).argmin(0)  # of each target
        self.weight = torch.stack([found[int(b)][1][:, t] for t, b in enumerate(best)], dim=1)

    def _standard(self, x: Tensor) -> Tensor:
        return (x.double() - self.mean) * self.scale

    def __call__(self, x: Tensor) -> Tensor:
        """[m, D] -> predicted targets [m, T], float64."""
        return self._standard(x) @ self.weight + self.offset


def pose_correlation(
    G_source: nn.Module,
    G_target: nn.Module,
    source: PictureSet,
    target: PictureSet,
    *,
    names: Sequence[str] = POSE + PROPORTIONS,
    fit: int = 2000,
    held_out: int = 500,
    n: int = 500,
) -> pd.DataFrame:
    """Does one w give the same pose and proportions in both generators?

    Each parameter is read off a picture by ridge regression on `grid_features` (4 x 4), fitted on renders of the
    generator's own world. Both generators draw the same n codes w (from G_source's mapping, z ~ N(0, I)), each with its
    own noise, and the readings of the two pictures are correlated over the codes.

    Args:
        G_source, G_target: the generators.
        source, target: at least fit + held_out renders of the two worlds, showing the same people.
        names: portrait parameters.
        fit: people that the regressions are fitted on.
        held_out: people that they are tested on.
        n: codes.

    Returns one row for each name, columns: "parameter"; "correlation" with its 95 % bootstrap interval "low", "high";
    "renders", the same correlation for the held-out people rendered in both worlds, an upper bound of what can be read;
    "r2_source", "r2_target", R^2 of the readings of these renders.
    """
    seeds = [data.what["seed"] for data in (source, target)]
    if seeds[0] != seeds[1]:
        raise ShapeError(
            f"renders of seeds {seeds}", expected="one seed: the same people", do="render both sets from one seed"
        )
    people = portraits.sample(fit + held_out, seed=seeds[0])
    truth = torch.stack([people.get(name) for name in names], dim=1).double()
    with torch.inference_mode():
        ws = G_source.mapping(torch.randn(n, G_source.z_dim, generator=torch.Generator().manual_seed(1)))
    read, of_renders, r2 = [], [], []
    for G, data, seed in ((G_source, source, 11), (G_target, target, 12)):
        found = render_features(data, fit + held_out, cells=4)
        model = Ridge(found[:fit], truth[:fit])
        of_renders.append(model(found[fit:]))
        error = (of_renders[-1] - truth[fit:]).square().sum(0)
        r2.append(1 - error / (truth[fit:] - truth[fit:].mean(0)).square().sum(0))
        read.append(model(torch.cat([grid_features(x) for x in drawn(G, n, seed=seed, ws=ws)])))
    resampled = torch.vmap(lambda i: _correlation(read[0][i], read[1][i]), out_dims=1)  # [R, n] -> [T, R]
    low, high = stats.bootstrap(lambda i: resampled(torch.from_numpy(i)).numpy(), n)
    columns = {
        "parameter": list(names),
        "correlation": _correlation(*read),
        "low": low,
        "high": high,
        "renders": _correlation(*of_renders),
        "r2_source": r2[0],
        "r2_target": r2[1],
    }
    return pd.DataFrame({k: v if isinstance(v, list) else v.tolist() for k, v in columns.items()})


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, column by column: [n, T], [n, T] -> [T]."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()
