"""Real faces: found, and aligned as FFHQ's pictures are, so that its generators can invert them.

    x = faces.align("me.jpg", 1024)             # [1, 3, 1024, 1024], eyes and nose where FFHQ has them

FFHQ (Karras et al. 2019) places its squares by 68 points, whose predictor may not be used commercially. Here five
points, of a predictor in the public domain, are laid on their mean place in pictures of FFHQ's frame.
"""

from __future__ import annotations

import cmath
import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import image, weights
from .errors import InvalidValue, ShapeError
from .nets.dlib_faces import FFHQ_POINTS, SMALLEST_EYES, DlibFaces, Face, chosen

# Of the five points in the fit of `square`. The nose moves with the head's pose: its spread in FFHQ's frame is four
# times that of the eyes, and with weight 1 the result would be twice as far from FFHQ's own recipe.
POINT_WEIGHTS = np.array([1.0, 1.0, 1.0, 1.0, 0.1])
MOST_ENLARGED = 8  # times; beyond, a pixel of the picture fills a block of 8x8, and no loss sees skin or hair


@dataclass(frozen=True)
class Square:
    """A square in a picture, in pixels from the picture's left and top edges; it may reach beyond them.

    x, y: its centre. side: of its edges. degrees: by which it is turned, clockwise.
    """

    x: float
    y: float
    side: float
    degrees: float

    @property
    def axis(self) -> complex:
        """Its upper edge as a vector x + iy, from left to right."""
        return cmath.rect(self.side, math.radians(self.degrees))

    @property
    def corner(self) -> complex:
        """Its upper left corner, x + iy."""
        return complex(self.x, self.y) - self.axis * (0.5 + 0.5j)

    def outside(self, size: tuple[int, int]) -> float:
        """The share of its area that lies outside a picture of size (H, W), to about a hundredth."""
        u = (np.arange(100) + 0.5) / 100
        p = self.corner + self.axis * (u + 1j * u[:, None])
        return float(1 - np.mean((p.real > 0) & (p.real < size[1]) & (p.imag > 0) & (p.imag < size[0])))


def find(x: Tensor) -> list[Face]:
    """All faces in one picture [1, 3, H, W] in [-1, 1], the largest first, each with its five points in pixels.

    Small faces (between 1/13 and 1/6 of the longer side) are found only where there is no larger one, uncertain ones
    (score below 0.5) only where there is no certain one.

    Raises:
        MissingWeights: dlib or its file is not there; `make faces` installs both.
    """
    return _finder().find(image.check(x))


@weights.cached(1)
def _finder() -> DlibFaces:
    return DlibFaces(weights.path("dlib_landmarks5"))


def similarity(points: np.ndarray, to: np.ndarray, importance: np.ndarray | None = None) -> tuple[complex, complex]:
    """The similarity p -> m p + t that takes `points` to `to` with the least squared error, points as x + iy.

    |m| is the scale, the angle of m the rotation (clockwise, as y points down), t the shift. It never mirrors.

    Args:
        points, to: [K, 2], (x, y), at least two of them.
        importance: [K], the weight of each point's squared error, above 0; None: equal weights.

    Raises:
        ShapeError: shapes other than these. InvalidValue: points that are not finite, or all at one place; a weight
            that is not above 0.
    """
    a, b = (np.asarray(p, np.float64) for p in (points, to))
    w = np.ones(len(a)) if importance is None else np.asarray(importance, np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2 or len(a) < 2 or w.shape != a.shape[:1]:
        raise ShapeError(
            f"points of shapes {a.shape} and {b.shape}, weights of shape {w.shape}",
            expected="[K, 2] twice and [K], K >= 2",
            do="give pairs of (x, y)",
        )
    if not (np.isfinite(w).all() and (w > 0).all()):
        raise InvalidValue(f"weights {w.tolist()}", expected="finite numbers above 0", do="leave a point out instead")
    a, b, w = a @ (1, 1j), b @ (1, 1j), w / w.sum()
    from_centre, to_centre = a - w @ a, b - w @ b
    spread = w @ np.square(np.abs(from_centre))
    if not np.isfinite([*a, *b]).all() or spread <= 1e-12 * np.square(np.abs(a)).max():
        raise InvalidValue(
            f"points {np.asarray(points).tolist()}", expected="finite points, not all at one place", do="check the face"
        )
    m = w @ (from_centre.conj() * to_centre) / spread
    return complex(m), complex(w @ b - m * (w @ a))


def square(points: np.ndarray) -> Square:
    """The square of FFHQ's frame around a face.

    points: [5, 2] in pixels, as `Face.points`.
    """
    m, t = similarity(FFHQ_POINTS, points, POINT_WEIGHTS)  # of the unit square
    centre = m * (0.5 + 0.5j) + t
    return Square(centre.real, centre.imag, abs(m), math.degrees(cmath.phase(m)))


def cut(x: Tensor, place: Square, size: int = 1024) -> Tensor:
    """What a picture shows in a square, as [1, 3, size, size] in [-1, 1].

    A picture that is reduced is first resized with an antialiased bicubic filter; then it is sampled bicubically.
    Beyond its edges it is continued by its mirror image; FFHQ blurs that margin, we do not.

    x: [1, 3, H, W] in [-1, 1].
    """
    height, width = _one(x).shape[2:]
    edge, _ = image.sides(size)
    if (shrink := place.side / edge) > 1:  # at most to the picture's own proportions, so that places keep their shares
        smaller = tuple(max(1, round(side / shrink)) for side in (height, width))
        x = F.interpolate(x.float(), smaller, mode="bicubic", antialias=True)
    u = (torch.arange(edge, dtype=torch.float64) + 0.5) / edge
    axis, corner = place.axis, place.corner
    across = corner.real + axis.real * u - axis.imag * u[:, None]  # [edge, edge], of the pixels' centres
    down = corner.imag + axis.imag * u + axis.real * u[:, None]
    grid = torch.stack([2 * across / width - 1, 2 * down / height - 1], dim=-1)[None].to(x.device, torch.float32)
    how = dict(mode="bicubic", padding_mode="reflection", align_corners=False)
    return F.grid_sample(x.float(), grid, **how).clamp(-1, 1)


def align(source: Tensor | str | os.PathLike, size: int = 1024, *, face: int | None = None) -> Tensor:
    """The face of a picture in FFHQ's frame: [1, 3, size, size] in [-1, 1].

    A similarity (scale, rotation, shift) lays the five points as well as it can on `FFHQ_POINTS`; see `cut` for the
    resampling. FFHQ's own recipe, with 68 points, places a face's pixels elsewhere by 6.5 of 1024 in the median over 50
    samples of a generator (at most 15 in 95 % of them); that recipe itself moves these samples by 3.2 (8).

    Args:
        source: a picture [1, 3, H, W] in [-1, 1], or a file.
        size: edge of the result in pixels.
        face: which of several faces, 0 for the largest; None refuses a picture of several people.

    Raises:
        FaceError: no face, several and none is chosen, or a tiny one: less than 16 pixels between the eyes, or so few
            that the face would be enlarged more than eight times.
        ImageError: a file that cannot be read. MissingWeights: `make faces` has not been run.
    """
    edge, _ = image.sides(size)
    what = "the picture" if isinstance(source, Tensor) else str(source)
    x = _one(source if isinstance(source, Tensor) else image.read(source))
    return cut(x, square(the_face(x, face=face, size=edge, what=what).points), edge)


def the_face(x: Tensor, *, face: int | None = None, size: int = 0, what: str = "the picture") -> Face:
    """The face that `align` would take.

    Args:
        x: [1, 3, H, W] in [-1, 1].
        face: as in `align`. size: of the aligned picture that the face must do for; 0 asks for 16 pixels between the
            eyes only.
        what: the picture's name, for errors.

    Raises:
        FaceError: as `align`.
    """
    right, left = FFHQ_POINTS[0:2].mean(0), FFHQ_POINTS[2:4].mean(0)
    needed = max(SMALLEST_EYES, float(np.hypot(*(right - left))) * size / MOST_ENLARGED)
    return chosen(find(x), tuple(x.shape[2:]), face=face, smallest=needed, what=what)


def _one(x: Tensor) -> Tensor:
    if len(image.check(x)) != 1:
        raise ShapeError(f"a batch of {len(x)} pictures", expected="one [1, 3, H, W]", do="pass x[i : i + 1]")
    return x
