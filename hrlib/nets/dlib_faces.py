"""dlib's faces (King 2009, 2017): where they are, five points on each, and a vector that says who it is.

dlib is imported when a network is made, since only the profile `ffhq` has it. Places in a picture are in pixels from
its left and top edges, so the centre of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FaceError, MissingWeights, ShapeError, number

# Longest side in pixels of the copies of a picture in which faces are looked for, the second one only if the first
# shows none. dlib's detector finds faces from 80 pixels on, so here from about 1/6 and 1/13 of the longest side on.
DETECTED_AT = (512, 1024)
POINTED_AT = 1024  # longest side of the copy in which points are found, since dlib rounds them to whole pixels
CERTAIN = (
    0.5  # score; beside a face as certain as that, less certain ones are patterns of cloth or leaves, or passers-by
)
SMALLEST_EYES = (
    16  # pixels between the eyes; the vector of a face shrunk to that size has moved by 0.25, see `same_person`
)
CHIP = 150, 0.25  # edge of the aligned face that dlib's recognition network sees, and the margin around the face
# The mean place of the five points in FFHQ's frame, as shares of the side of the square: over 256 samples of the
# generator ffhq_mobile1024 at truncation 0.7, seeds 0 to 255, halved to 512 pixels, by benchmarks/faces.py. Standard
# deviations in pixels of 1024, x and y: eyes 4 to 7 and 4, nose 22 and 17; of the means, a sixteenth of that.
FFHQ_POINTS = np.array([(0.6712, 0.4765), (0.5736, 0.4816), (0.3275, 0.4763), (0.4258, 0.4813), (0.5008, 0.6664)])


@dataclass(frozen=True)
class Face:
    """A face in a picture.

    points: [5, 2], (x, y) in pixels: outer and inner corner of the eye on the right of the picture, outer and inner
    corner of the one on the left, base of the nose. box: left, top, right, bottom in pixels, as dlib's detector frames
    the face from brows to chin. score: of the detector, above 0; clear frontal faces have 1 to 3.
    """

    points: np.ndarray
    box: tuple[float, float, float, float]
    score: float

    @property
    def eyes(self) -> float:
        """The distance between the centres of the eyes, in pixels."""
        right, left = self.points[0:2].mean(0), self.points[2:4].mean(0)
        return float(np.hypot(*(right - left)))

    def __str__(self) -> str:
        x, y = self.points.mean(0)
        return f"around ({x:.0f}, {y:.0f}), eyes {self.eyes:.1f} px apart"


def chosen(
    faces: Sequence[Face],
    size: tuple[int, int],
    *,
    face: int | None = None,
    smallest: float = SMALLEST_EYES,
    what: str = "the picture",
) -> Face:
    """The face that is meant: the only one, or number `face`.

    Args:
        faces: of one picture, as `DlibFaces.find` returns them, the largest first.
        size: (H, W) of the picture.
        face: its number, 0 for the largest; None refuses a picture of several people.
        smallest: pixels between the eyes that are needed.
        what: the picture's name, for errors.

    Raises:
        FaceError: no face; several, and none is chosen; no such number; or a face that is too small.
    """
    seen = f"{what} of {size[1]}x{size[0]} px"
    if not faces:
        raise FaceError(
            f"no face found in {seen}",
            expected=f"a face seen from the front, at least 1/{DETECTED_AT[-1] // 80 + 1} of the longer side wide, "
            f"with {smallest:.0f} px or more between the eyes",
            do="cut the picture to its face, or use another; profiles, covered faces and drawings are often not found",
        )
    listed = "; ".join(f"{i}: {one}" for i, one in enumerate(faces))
    if face is None and len(faces) > 1:
        raise FaceError(
            f"{len(faces)} faces found in {seen}: {listed}",
            expected="one face",
            do="choose one by its number (face=0 is the largest), or cut the picture to one",
        )
    index = number("face", 0 if face is None else face, "whole [0, inf)")
    if index >= len(faces):
        raise FaceError(
            f"face {index} of {len(faces)} in {seen}: {listed}",
            expected=f"a number up to {len(faces) - 1}",
            do="choose one of these",
        )
    if faces[index].eyes < smallest:
        raise FaceError(
            f"a tiny face in {seen}: {faces[index]}",
            expected=f"at least {smallest:.0f} px between the eyes",
            do="use a larger picture of the person; enlarging this one adds no detail",
        )
    return faces[index]


class DlibFaces:
    """dlib's detector of frontal faces (HOG, inside dlib) and its predictor of five points.

    Args:
        landmarks: file of the predictor, shape_predictor_5_face_landmarks.dat.

    Raises:
        MissingWeights: dlib cannot be imported.
    """

    def __init__(self, landmarks: str | PathLike) -> None:
        self.dlib = _dlib()
        self._detector = self.dlib.get_frontal_face_detector()
        self._predictor = self.dlib.shape_predictor(str(landmarks))

    def find(self, x: Tensor) -> list[Face]:
        """All faces in one picture [1, 3, H, W] in [-1, 1], the largest first; none is an empty list.

        Small faces (between 1/13 and 1/6 of the longer side) are found only where there is no larger one, uncertain
        ones (score below 0.5) only where there is no certain one.
        """
        _checked(x, one=True)
        for edge in DETECTED_AT:
            pixels, scale = raster(x, edge)
            boxes, scores, _ = self._detector.run(pixels, 0)
            if boxes:
                break
        pixels, to = raster(x, POINTED_AT)
        found = []
        for box, score in zip(boxes, scores, strict=True):
            sides = [side / scale for side in (box.left(), box.top(), box.right() + 1, box.bottom() + 1)]
            there = self.dlib.rectangle(*(round(side * to) for side in sides))
            points = [(p.x + 0.5, p.y + 0.5) for p in self._predictor(pixels, there).parts()]
            found.append(Face(np.array(points) / to, tuple(sides), float(score)))
        found = [face for face in found if face.score >= CERTAIN] or found
        return sorted(found, key=lambda face: face.box[0] - face.box[2])


class DlibIdentity(nn.Module):
    """Pictures of faces -> dlib's vectors; the Euclidean distance of two pictures of one person is below 0.6.

    The network (a ResNet of 29 convolutions) was trained with that distance, on vectors that are *not* of unit length
    (about 1.5 long), so they are left as they are: at unit length nine of ten pairs of strangers would be nearer than
    0.6, and the rule of 1.5 for squared distances of unit vectors does not hold. Even so 2 % of the pairs among 50
    samples of ffhq_mobile1024 are nearer than 0.6, and 7 % at truncation 0.7, which makes people more alike.
    It has no gradients, and runs on the CPU.

    Args:
        recognition, landmarks: dlib_face_recognition_resnet_model_v1.dat, shape_predictor_5_face_landmarks.dat.

    Attributes:
        same_person: squared distance below which two pictures show one person, by dlib's own rule (0.6, squared).
        unit_length: False: `retrieval.embed` keeps the vectors' length.

    Raises:
        MissingWeights: dlib cannot be imported.
    """

    same_person = 0.36
    unit_length = False
    dim = 128

    def __init__(self, recognition: str | PathLike, landmarks: str | PathLike) -> None:
        super().__init__()
        self.faces = DlibFaces(landmarks)
        self._net = self.faces.dlib.face_recognition_model_v1(str(recognition))

    def embed(self, x: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in [-1, 1], with one face each -> vectors [N, 128].

        The face is found in the picture, turned upright and cut out by its five points, as dlib was trained.

        Raises:
            FaceError: a picture in which no face, several or a tiny one is found; it names the first such picture.
            ShapeError: x is not a batch of RGB images.
        """
        vectors = []
        for i, one in enumerate(_checked(x).split(1)):
            what = f"picture {i} of {len(x)}" if len(x) > 1 else "the picture"
            vectors.append(self._vector(one, chosen(self.faces.find(one), tuple(x.shape[2:]), what=what).points))
        return torch.stack(vectors).to(x.device)

    def embed_aligned(self, x: Tensor) -> Tensor:
        """Pictures [N, 3, R, R] in FFHQ's frame -> vectors [N, 128].

        Nothing is detected: the points are taken to be at their mean place, so that every picture gets a vector, also
        a drawing in which no face is found.

        Raises:
            ShapeError: x is not a batch of square RGB images.
        """
        height, width = _checked(x).shape[2:]
        if height != width:
            raise ShapeError(
                f"pictures of {height}x{width}", expected="squares in FFHQ's frame", do="align them with faces.align"
            )
        return torch.stack([self._vector(one, FFHQ_POINTS * width) for one in x.split(1)]).to(x.device)

    def forward(self, x: Tensor) -> Tensor:
        """`embed`."""
        return self.embed(x)

    def _vector(self, x: Tensor, points: np.ndarray) -> Tensor:
        """[128] of one picture; points: [5, 2] in its pixels."""
        dlib, (pixels, scale) = self.faces.dlib, raster(x, POINTED_AT)
        parts = [dlib.point(*(math.floor(v * scale) for v in point)) for point in points]
        (left, top), (right, bottom) = points.min(0) * scale, points.max(0) * scale
        box = dlib.rectangle(round(left), round(top), round(right), round(bottom))  # the chip depends on points alone
        edge, padding = CHIP
        face = dlib.get_face_chip(pixels, dlib.full_object_detection(box, parts), size=edge, padding=padding)
        return torch.tensor(self._net.compute_face_descriptor(face), dtype=torch.float32)


def raster(x: Tensor, edge: int) -> tuple[np.ndarray, float]:
    """(uint8 [h, w, 3], the scale) of one picture [1, 3, H, W] resized to a longest side of `edge`, antialiased."""
    height, width = x.shape[2:]
    scale = edge / max(height, width)
    to = tuple(max(1, round(side * scale)) for side in (height, width))
    small = x.detach().float().cpu().clamp(-1, 1)
    if to != (height, width):
        small = F.interpolate(small, to, mode="bicubic", antialias=True).clamp(-1, 1)
    return ((small[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy(), scale


def _checked(x: Tensor, *, one: bool = False) -> Tensor:
    if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point() or (one and len(x) != 1):
        raise ShapeError(
            f"a batch of shape {tuple(x.shape)} and type {x.dtype}",
            expected=f"[{'1' if one else 'N'}, 3, H, W], float, in [-1, 1]",
            do="read images with hrlib.image.read",
        )
    return x


def _dlib() -> ModuleType:
    try:
        import dlib
    except ImportError as e:
        raise MissingWeights(
            f"dlib cannot be imported ({e})",
            expected="the package dlib-bin, which finds and recognises faces",
            do="run `make faces`, which installs it",
        ) from e
    return dlib
