"""Identity vectors: what a network, ours or the user's, makes of pictures. Reachable in `hrlib.retrieval`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from .errors import FaceError, HRLibError, InvalidValue, ShapeError, UnknownName

THRESHOLD = 1.5  # squared distance of unit vectors above which no person counts as found, in the authors' evaluation
FACES = ("whole", "crop")
CROP = (35, 223, 32, 220)  # rows and columns of the face in an aligned portrait of 256 pixels (pSp's identity loss)
Network = Callable[[Tensor], Tensor]


def crop_face(x: Tensor) -> Tensor:
    """The face of aligned portraits [N, 3, R, R]: rows 35 to 222 and columns 32 to 219 of 256, to scale."""
    height, width = x.shape[2:]
    if height != width:
        raise ShapeError(f"a picture of {height}x{width}", expected="a square", do='align it, or use face="whole"')
    top, bottom, left, right = (round(edge * height / 256) for edge in CROP)
    return x[:, :, top:bottom, left:right]


def users_own(name: str) -> Network:
    """The user's own network, from "module:function"; `UnknownName` if it cannot be imported, or fails when called."""

    def failed(e: Exception) -> UnknownName:
        return UnknownName(
            f"network {name!r} ({type(e).__name__}: {e})",
            expected="a function from pictures [N, 3, H, W] in [-1, 1] to vectors [N, D]",
            do="write module:function, with a module that is in this folder or installed",
        )

    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")  # a module beside the user, as for `python -m`
    try:
        if not all(part.isidentifier() for part in (*module.split("."), attribute)):
            raise ImportError("not of the form module:function")
        named = getattr(importlib.import_module(module), attribute)
        net = getattr(named, "embed", named)
        if not callable(net):
            raise TypeError("not a function")
    except Exception as e:  # the user's module may raise anything
        raise failed(e) from e

    def guarded(x: Tensor) -> Tensor:
        try:
            return net(x)
        except HRLibError:
            raise
        except Exception as e:
            raise failed(e) from e

    return guarded


def check_face(face: str) -> None:
    """Raise `UnknownName` for a `face` that is not in `FACES`."""
    if face not in FACES:
        raise UnknownName(
            f"face {face!r}", expected=f"one of {', '.join(FACES)}", do='use "whole", as the paper\'s evaluation does'
        )


def threshold_of(net: Network) -> float:
    """Squared distance above which no person counts as found: the network's own `same_person`, or `THRESHOLD`."""
    return getattr(net, "same_person", THRESHOLD)


def view(net: Network, face: str = "whole") -> Network:
    """What a network makes of pictures [N, 3, H, W] in [-1, 1]: a function to vectors [N, D].

    face: "whole" pictures, as in the paper's evaluation, or "crop", the fixed place of the face in aligned portraits
        (see `crop_face`). A network that cuts out faces itself ("dlib") looks for them in "whole" pictures, and takes
        them from their fixed place in FFHQ's frame for "crop".
    """
    check_face(face)
    whole = getattr(net, "embed", net)
    return whole if face == "whole" else getattr(net, "embed_aligned", lambda x: whole(crop_face(x)))


@torch.inference_mode()
def embed(net: Network, x: Tensor, face: str = "whole", *, keep_lost: bool = False) -> Tensor:
    """Identity vectors [N, D], on the CPU, of pictures [N, 3, H, W] in [-1, 1].

    They have unit length, unless the network's own distances are of other vectors (its `unit_length` is False).

    Args:
        net: a network with an `embed` method, or a function from pictures to vectors.
        face: see `view`.
        keep_lost: a picture in which the network finds no face that it can use becomes a row of NaN, which
            `id_retrieval` counts as not found.

    Raises:
        FaceError: such a picture, without `keep_lost`.
        ShapeError: the network does not return a vector a picture. InvalidValue: vectors that are not finite.
    """
    try:
        vectors = view(net, face)(x)
    except FaceError:
        if not keep_lost:
            raise
        if len(x) == 1:
            return torch.full((1, net.dim), torch.nan)
        return torch.cat([embed(net, one, face, keep_lost=True) for one in x.split(1)])
    if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != len(x):
        raise ShapeError(
            f"{getattr(vectors, 'shape', type(vectors).__name__)} for {len(x)} pictures",
            expected="one vector a picture, [N, D]",
            do="have the identity network return one vector for each picture",
        )
    if not torch.isfinite(vectors).all():
        bad = (~torch.isfinite(vectors)).any(1).nonzero().flatten().tolist()
        raise InvalidValue(
            f"non-finite vectors for {len(bad)} of {len(x)} pictures, the first one number {bad[0]}",
            expected="finite numbers",
            do="look at that picture, and for a division by zero in the identity network",
        )
    vectors = vectors.float().cpu()
    return torch.nn.functional.normalize(vectors, dim=1) if getattr(net, "unit_length", True) else vectors
