"""A gallery: pictures of one domain as codes of its generator, inverted once, stored, used again (Sec. III-C).

    styles = gallery.load("anime.safetensors", G_t)
    w_t = styles["anime:60"]                                    # [1, num_ws, w_dim]

`hrlab gallery build FOLDER` makes one of a folder of pictures. The contents' own codes are a gallery of the source
generator.
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
    (`store.fingerprint`). made: the settings they were inverted with, as text for a reader.
    """

    names: tuple[str, ...]
    ws: Tensor
    generator: str
    made: str = ""

    def __post_init__(self) -> None:
        if self.ws.ndim != 3 or len(self.ws) != len(self.names) or len(set(self.names)) != len(self.names):
            raise ShapeError(
                f"{len(self.names)} names ({len(set(self.names))} different) for codes {tuple(self.ws.shape)}",
                expected="one name each for [N, num_ws, w_dim]",
                do="name every picture once",
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> Tensor:
        """The code [1, num_ws, w_dim] of one picture; `UnknownName` with the nearest name for one that is not here."""
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
        """Write a safetensors file, atomically; returns its path, which ends in .safetensors.

        force: replace a file that is there; without it that is a `StoreError`. A picture of its own is never replaced.
        """
        path = free(path, self.names, force=force)
        about = {"format": FORMAT, "names": self.names, "generator": self.generator, "made": self.made}
        metadata = {"gallery": json.dumps(about)}  # one entry: safetensors writes several in any order, and equal
        with store.atomic(path) as temp:  # galleries should have equal bytes
            save_file({"ws": self.ws.detach().cpu().contiguous()}, temp, metadata)
        return path


def free(path: str | Path, names: Iterable[str], *, force: bool = False) -> Path:
    """Where a gallery of the pictures `names` goes: `path`, with the suffix; `store.new` says what is in the way."""
    files = [name.removeprefix("file:") for name in names if name.startswith("file:")]
    return store.new(store.destination(path, ".safetensors"), force=force, source=files)


def absolute(name: str) -> str:
    """A picture's name as galleries hold it: with the whole path of a file, which every current directory finds."""
    kind, _, path = name.partition(":")
    return f"file:{Path(path).absolute()}" if kind == "file" else name


def load(path: str | Path, G: nn.Module | None = None) -> Gallery:
    """Read a gallery.

    Args:
        path: what `Gallery.save` wrote.
        G: the generator that is to draw the codes; a gallery of another one is refused.

    Raises:
        StoreError: there is no such file. DamagedFile: it is no gallery. LayoutMismatch: it is another generator's.
    """
    if not Path(path).is_file():
        raise StoreError(f"no file {path}", expected="a gallery", do="make it with `hrlab gallery build FOLDER`")
    try:
        with safe_open(path, "pt") as f:
            about, ws = json.loads((f.metadata() or {})["gallery"]), f.get_tensor("ws")
        if about["format"] != FORMAT:
            raise KeyError(about["format"])
        found = Gallery(tuple(about["names"]), ws, about["generator"], about["made"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, ShapeError) as e:
        raise DamagedFile(
            f"{path} is not a gallery ({type(e).__name__}: {e})",
            expected="a file that `hrlab gallery build` wrote",
            do="build it again",
        ) from e
    if G is not None and found.generator != store.fingerprint(G.state_dict()):
        shape = f"codes of {found.ws.shape[1]} x {found.ws.shape[2]} for {G.num_ws} x {G.w_dim}"
        alike = found.ws.shape[1:] == (G.num_ws, G.w_dim)
        raise LayoutMismatch(
            f"{path} was made with another generator ({'of the same shape' if alike else shape})",
            expected="a gallery of this generator",
            do="load the generator it was made with, or build it again with this one",
        )
    return found
