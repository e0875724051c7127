"""The methods of Table III as runs of a sweep: one content in the styles of all references of a domain, at once.

A run keeps what the table is made of: the pictures (a strip of 8 bits), their identity vectors, and the features of
their Frechet distances; vectors and features are taken from the pictures as an 8-bit file would hold them. Methods are
the paper's baselines, "starganv2" and "dualstylegan"; those of `stylisation.METHODS`, with LSO or without; and
`OTHERS`, which ignore the content. `compare` performs a whole table, `observe` shows the same judges other pictures.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from .. import devices, fid, image, optim, retrieval, weights
from ..errors import BatchError, UnknownName, nearest, number
from ..worlds.pictures import picture
from . import stylisation
from .inversions import CACHED, EDGE, generator_of, png
from .sweep import Measured, Results, check_numbers, keyed, sweep

BASELINES = ("starganv2", "dualstylegan")
OTHERS = ("samples", "pictures")  # what a target generator draws without a content; pictures as they are
METHODS = (*BASELINES, *stylisation.METHODS, *OTHERS)
RANGES = {"structure": "[0, 1]", "colour": "[0, 1]", "batch": "whole [1, inf)"}
Changes = Mapping[str, Any] | Callable[[str], Mapping[str, Any]]
VECTORS, STRIP, SECONDS = "vectors.safetensors", "image.png", "seconds.json"


@dataclass(frozen=True, kw_only=True)
class Settings(stylisation.Mix):
    """One content in the styles of all references, by one method: the settings of `stylisation.Mix`, and

    method: of `METHODS`. references: names of pictures, in the gallery `styles`.
    stylist: the baseline's network, for `weights.load_stylist`. domain: what StarGAN v2 calls the references' domain.
    structure, colour: DualStyleGAN's weight of the coarse layers and of the colours, in [0, 1].
    bf16: LSO finds the codes under bfloat16 autocast; the pictures are drawn in full precision all the same.
    batch: references at a time; LSO at 1024 px fills a GPU with a few.
    judge: the identity network, for `weights.load_identity`.
    fid: the features of the Frechet distance, of `fid.NETWORKS`. edges: in pixels, to which it resizes the pictures.
    """

    references: Sequence[str] = ()
    stylist: str = ""
    domain: str = ""
    structure: float = 0.75
    colour: float = 1.0
    bf16: bool = False
    batch: int = 10
    judge: str = "identity_thin"
    fid: str = "vgg16_thin"
    edges: Sequence[int] = (128, 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, RANGES)
        object.__setattr__(self, "edges", [number("edge", edge, EDGE) for edge in self.edges])


def grid(
    people: Sequence[str], variants: Sequence[Mapping[str, Any]], settings: Settings = Settings()
) -> list[Settings]:
    """Every variant for every content picture as runs for `perform`, variant by variant; all names are checked.

    Args:
        variants: changes of `settings`.
        settings: what all runs share.

    Raises:
        UnknownName: a setting, method, picture or network that does not exist. MissingWeights: one that is not here.
        InvalidValue: a number out of range.
    """
    runs = []
    for variant in variants:
        row = settings.changed(variant)
        _check(row, people)
        runs += [replace(row, content=content) for content in people]
    return runs


def _check(s: Settings, people: Sequence[str]) -> None:
    if s.method not in METHODS:
        hint = nearest(s.method, list(METHODS)) or 'use "interpolate" for Eq. (6) and (7)'
        raise UnknownName(f"method {s.method!r}", expected=f"one of {', '.join(METHODS)}", do=hint)
    _judge(s.judge, "cpu")
    if s.method in BASELINES:
        stylisation.check_given(s, "stylist")
        stylist(s.stylist, "cpu")
    if s.method in ("dualstylegan", *stylisation.METHODS):
        stylisation.check_codes(s, people, s.references)


def perform(s: Settings) -> Measured:
    """Stylise one content by all references and keep what the table needs.

    Returns:
        The number of pictures, and as files image.png (the pictures side by side), seconds.json (the time of one
        picture, without loading and measuring) and vectors.safetensors: "whole" and "crop", identity vectors [S, D] by
        `retrieval.FACES` (NaN where the judge finds no face, which counts as not found), and "fid128", "fid64" ...
        [S, F] for each edge up to that of the pictures.
    """
    where = str(devices.choose(s.device))
    s = replace(s, device=where)
    if s.method not in OTHERS:  # loads networks and fills caches
        stylise(replace(s, num_steps=min(s.num_steps, 1), references=s.references[:1]))
    begun = time.perf_counter()
    parts = [s.references[i : i + s.batch] for i in range(0, len(s.references), s.batch)]
    x = torch.cat([stylise(replace(s, references=part)) for part in parts])
    seconds = (time.perf_counter() - begun) / len(x)
    x = image.from_uint8(image.to_uint8(x)).to(where)  # what a file would show
    seen = x.split(s.batch)
    look = lambda see: torch.cat([see(part) for part in seen])
    judge = _judge(s.judge, where)
    vectors = lambda face: look(lambda part: retrieval.embed(judge, part, face, keep_lost=True))
    found = {face: vectors(face) for face in retrieval.FACES}
    edges = [edge for edge in s.edges if edge <= x.shape[2]]
    found |= {f"fid{edge}": look(lambda part, edge=edge: fid.features(part, s.fid, edge)) for edge in edges}
    strip = make_grid(x.cpu(), nrow=len(x), padding=0)[None]
    files = {VECTORS: safetensors.torch.save({k: v.contiguous() for k, v in found.items()})}
    files |= {STRIP: png(strip), SECONDS: json.dumps(seconds).encode()}
    return Measured({"pictures": len(x)}, files)


def stylise(s: Settings) -> Tensor:
    """One content in the styles of the references, by the run's method: [S, 3, R, R] in [-1, 1], R the method's own."""
    where = str(devices.choose(s.device))
    if s.method == "pictures":
        return torch.cat([picture(name, s.edges[0]) for name in s.references])
    if s.method in stylisation.METHODS:
        return _ours(s, where)
    with torch.inference_mode():
        if s.method == "samples":
            G = generator_of(s.target, where)
            g = torch.Generator().manual_seed(s.seed + zlib.crc32(f"{s.content} {s.references[0]}".encode()))
            z = torch.randn(len(s.references), G.z_dim, generator=g).to(where)
            return G.synthesis(G.mapping(z)).clamp(-1, 1)
        net = stylist(s.stylist, where)
        if s.method == "starganv2":
            references = torch.cat([picture(name, net.resolution) for name in s.references]).to(where)
            x = picture(s.content, net.resolution).to(where).expand_as(references)
            return net.stylise(x, references, s.domain).clamp(-1, 1)
        styles = stylisation.codes(s.styles, s.target)
        exstyle = torch.cat([styles[name] for name in s.references]).to(where)  # [S, num_ws, w_dim]
        ws = stylisation.codes(s.contents, s.source)[s.content].to(where).expand_as(exstyle)
        return net.stylise(ws, exstyle, structure=s.structure, colour=s.colour).clamp(-1, 1)


def _ours(s: Settings, where: str) -> Tensor:
    mixed = stylisation.Mixed(s, s.references)
    if not (s.bf16 and s.num_steps):
        return mixed.optimised().detach().clamp(-1, 1)
    with torch.autocast(torch.device(where).type, torch.bfloat16):
        found = optim.solve(mixed.optimise())
    with torch.inference_mode():
        return mixed.G.synthesis(found.ws).clamp(-1, 1)


@weights.cached(CACHED)
def stylist(name: str, device: str) -> nn.Module:
    """A baseline's network, kept by the process that uses it."""
    return weights.load_stylist(name, device)


@weights.cached(2)
def _judge(name: str, device: str) -> nn.Module:
    return weights.load_identity(name, device)


# --- a whole comparison -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """N pictures as they are, seen by the judges.

    names: of the pictures. vectors: by name, what `perform` keeps of them, [N, D] each.
    """

    names: tuple[str, ...]
    vectors: dict[str, Tensor]

    def of(self, people: Sequence[str], what: str = "whole") -> Tensor:
        """The vectors of some of the pictures, [people, D]."""
        return self.vectors[what][[self.names.index(person) for person in people]]


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    table: a row a run, with "domain", "variant", "content", "pictures" and "error".
    """

    table: pd.DataFrame
    _results: Results

    def people(self, domain: str, variant: str) -> list[str]:
        """The contents whose run succeeded, in order."""
        return list(self.table["content"][self._rows(domain, variant)])

    def vectors(self, domain: str, variant: str, what: str) -> Tensor:
        """One of the tensors that `perform` keeps, for all people: [people, styles, D]."""
        files = [self._results.file(row, VECTORS) for row in self._rows(domain, variant)]
        return torch.stack([safetensors.torch.load_file(file)[what] for file in files])

    def pictures(self, domain: str, variant: str, content: str) -> Tensor:
        """The pictures of one content in all styles, [styles, 3, R, R]."""
        (row,) = [r for r in self._rows(domain, variant) if self.table["content"][r] == content]
        strip = self._results.image(row)
        return torch.cat(strip.split(strip.shape[2], dim=3))

    def seconds(self, domain: str, variant: str) -> list[float]:
        """The seconds that one picture took, for each of the people."""
        return [json.loads(self._results.file(row, SECONDS).read_bytes()) for row in self._rows(domain, variant)]

    def retrieval(self, domain: str, variant: str, faces: Pictures, face: str = "whole") -> retrieval.ByPerson:
        """ID retrieval of a method among `faces`, person by person. face: of `retrieval.FACES`."""
        vectors, people = self.vectors(domain, variant, face), self.people(domain, variant)
        return retrieval.by_person(faces.vectors[face], vectors, faces.names, people)

    def frechet(self, domain: str, variant: str, drawings: Pictures, edge: int) -> fid.Jackknife:
        """Frechet distance of a method's pictures to `drawings`, with what each person contributes to it."""
        vectors = self.vectors(domain, variant, f"fid{edge}")
        whose = np.repeat(self.people(domain, variant), vectors.shape[1])
        return fid.jackknife(vectors.flatten(0, 1), drawings.vectors[f"fid{edge}"], whose)

    def point(
        self,
        domain: str,
        variant: str,
        faces: Pictures,
        drawings: Pictures,
        edge: int,
        *,
        turns: Mapping[str, int],
        part: slice | np.ndarray = slice(None),
    ) -> tuple[float, float]:
        """(ID retrieval, Frechet distance) of one picture of each person.

        turns: person -> number; a person's picture is the one with this reference, modulo their number. part: which of
        the people.
        """
        people = np.array(self.people(domain, variant))
        vectors, features = (self.vectors(domain, variant, what) for what in ("whole", f"fid{edge}"))
        style = [turns[person] % vectors.shape[1] for person in people]
        vectors, features = (x[range(len(people)), style][part] for x in (vectors, features))  # [people, D]
        found = retrieval.by_person(faces.vectors["whole"], vectors[:, None], faces.names, people[part])
        return found.all.rate, fid.frechet_distance(features, drawings.vectors[f"fid{edge}"])

    def write(self, domain: str, variant: str, folder: str | Path, edge: int) -> Path:
        """Write content/ID.png (of this edge) and stylised/ID/NN.png, as `retrieval.evaluate` reads them."""
        folder = Path(folder)
        for person in self.people(domain, variant):
            name = person.replace(":", "-").replace("/", "-")
            image.write(picture(person, edge), folder / "content" / f"{name}.png")
            for k, x in enumerate(self.pictures(domain, variant, person)):
                image.write(x[None], folder / "stylised" / name / f"{k:02d}.png")
        return folder

    def _rows(self, domain: str, variant: str) -> list[int]:
        t = self.table
        return list(t.index[(t["domain"] == domain) & (t["variant"] == variant) & (t["error"] == "")])


def compare(
    people: Sequence[str],
    variants: Mapping[str, Mapping[str, Changes]],
    *,
    settings: Settings = Settings(),
    workers: int = 0,
    label: str = "comparison",
) -> Comparison:
    """Perform every variant of every domain for every content, as one sweep, and print which runs failed.

    Args:
        people: names of content pictures.
        variants: domain -> name -> changes of `settings`, or a function that returns them for a content's name.
        settings: what all runs share.
        workers, label: as in `sweep`.
    """
    runs, keys = [], []
    for domain, some in variants.items():
        for name, changes in some.items():
            own = changes if callable(changes) else lambda _, same=changes: same
            for content in people:
                runs += grid([content], [own(content)], settings)
            keys += [(domain, name, content) for content in people]
    swept = sweep(perform, runs, name="comparisons", workers=workers, label=label)
    table = keyed(swept, pd.DataFrame(keys, columns=["domain", "variant", "content"]), {"pictures": "pictures"})
    return Comparison(table, swept)


def observe(
    names: Sequence[str],
    *,
    settings: Settings = Settings(),
    workers: int = 0,
    label: str = "pictures",
    batch: int = 20,
) -> Pictures:
    """Show pictures as they are to the judges of `settings`.

    Args:
        names: of pictures; they are drawn at the first of the edges.
        workers, label: as in `sweep`.
        batch: pictures a run.

    Raises:
        BatchError: a picture could not be read or seen.
    """
    parts = [list(names[i : i + batch]) for i in range(0, len(names), batch)]
    variants = {part[0]: {"pictures": {"method": "pictures", "references": part}} for part in parts}
    seen = compare(["any"], variants, settings=settings, workers=workers, label=label)
    if errors := [error for error in seen.table["error"] if error]:
        raise BatchError(
            f"{len(errors)} of {len(parts)} parts of {label} failed; the first: {errors[0]}",
            expected="pictures that can all be read and seen",
            do="remove the picture that the first error names",
        )
    keys = [*retrieval.FACES, *(f"fid{edge}" for edge in settings.edges)]
    return Pictures(tuple(names), {k: torch.cat([seen.vectors(p[0], "pictures", k)[0] for p in parts]) for k in keys})
