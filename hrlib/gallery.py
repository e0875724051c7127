"""A gallery: the codes of a domain's pictures in its generator, inverted once and stored (Sec. III-C).

    styles = gallery.load("anime.safetensors", G_t)
    w_t = styles["anime:60"]                                    # [1, num_ws, w_dim]

`hrlab gallery build FOLDER --generator NAME` makes one from a folder of pictures. The contents' codes, too, are a
gallery: that of the source generator.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from . import store
from .errors import DamagedFile, LayoutMismatch, ShapeError, StoreError, UnknownName, nearest

FORMAT = "hrlib.gallery/1"


@dataclass(frozen=True)
class Gallery:
    """Codes by name.

    names: of the N pictures, all different. ws: [N, num_ws, w_dim]. generator: the SHA-256 of the generator's tensors
    (`store.fingerprint`). made: the settings of the inversion, as text for a reader.
    """

    names: tuple[str, ...]
    ws: Tensor
    generator: str
    made: str = ""

    def __post_init__(self) -> None:
        if self.ws.ndim != 3 or len(self.ws) != len(self.names) or len(set(self.names)) != len(self.names):
            raise ShapeError(
                f"{len(self.names)} names ({len(set(self.names))} different) for codes {tuple(self.ws.shape)}",
                expected="one different name for each code [N, num_ws, w_dim]",
                do="give every picture its own name",
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> Tensor:
        """The code [1, num_ws, w_dim] of a picture; `UnknownName`, with the nearest name, if it is not here."""
        name = absolute(name)
        if name not in self.names:
            raise UnknownName(
                f"no picture {name!r} in this gallery of {len(self)}",
                expected=f"one of {', '.join(self.names[:8])}{' ...' if len(self) > 8 else ''}",
                do=nearest(name, list(self.names)) or "add the picture and build the gallery again",
            )
        i = self.names.index(name)
        return self.ws[i : i + 1]

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write a safetensors file atomically; returns its path, which ends in .safetensors.

        force: replace an existing file, which is a `StoreError` otherwise. Its own pictures are never replaced.
        """
        path = free(path, self.names, force=force)
        about = {"format": FORMAT, "names": self.names, "generator": self.generator, "made": self.made}
        # one entry, because safetensors writes several in any order, and equal galleries should have equal bytes
        metadata = {"gallery": json.dumps(about)}
        with store.atomic(path) as temp:
            save_file({"ws": self.ws.detach().cpu().contiguous()}, temp, metadata)
        return path


def free(path: str | Path, names: Iterable[str], *, force: bool = False) -> Path:
    """The path for a gallery of the pictures `names`: `path` with the suffix, checked by `store.new`."""
    files = [name.removeprefix("file:") for name in names if name.startswith("file:")]
    return store.new(store.destination(path, ".safetensors"), force=force, source=files)


def absolute(name: str) -> str:
    """A picture's name as galleries store it: files with their absolute path, which is valid in any directory."""
    kind, _, path = name.partition(":")
    return f"file:{Path(path).absolute()}" if kind == "file" else name


def load(path: str | Path, G: nn.Module | None = None) -> Gallery:
    """Read a gallery.

    Args:
        path: what `Gallery.save` wrote.
        G: the generator that will draw the codes; a gallery of another generator is an error.

    Raises:
        StoreError: no such file. DamagedFile: it is not a gallery. LayoutMismatch: it belongs to another generator.
    """
    if not Path(path).is_file():
        raise StoreError(
            f"no file {path}", expected="a gallery", do="make it with `hrlab gallery build FOLDER --generator NAME`"
        )
    try:
        with safe_open(path, "pt") as f:
            about, ws = json.loads((f.metadata() or {})["gallery"]), f.get_tensor("ws")
        if about["format"] != FORMAT:
            raise KeyError(about["format"])
        gallery = Gallery(tuple(about["names"]), ws, about["generator"], about["made"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, ShapeError) as e:
        raise DamagedFile(
            f"{path} is not a gallery ({type(e).__name__}: {e})",
            expected="a file that `hrlab gallery build` wrote",
            do="build the gallery again",
        ) from e
    if G is not None and gallery.generator != store.fingerprint(G.state_dict()):
        shape = f"codes of {gallery.ws.shape[1]} x {gallery.ws.shape[2]} for {G.num_ws} x {G.w_dim}"
        alike = gallery.ws.shape[1:] == (G.num_ws, G.w_dim)
        raise LayoutMismatch(
            f"{path} was made with another generator ({'of the same shape' if alike else shape})",
            expected="a gallery of this generator",
            do="load the generator it was made with, or build it again with this one",
        )
    return gallery
