"""ID retrieval on folders of pictures (Sec. III-D): is the content nearest to a stylised face the right person?

    report = last(evaluate("content", "stylised", weights.load_identity("ir_se50")))

The folders are laid out as in the authors' evaluation: `content/ID.png` (any picture format), `stylised/ID/*`. The
report lists every problem with them. Stylised pictures that cannot be looked up count as not found; the rate over the
others is given beside that. So do those in which the network finds no face, if it is one that looks for faces ("dlib").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from . import image, stats
from ._embed import FACES, THRESHOLD, Network, check_face, crop_face, embed, threshold_of, users_own, view
from .errors import FaceError, HRLibError, InvalidValue, ShapeError, StoreError, UnknownName, number

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FACES",
    "THRESHOLD",
    "ByPerson",
    "Folders",
    "Network",
    "Report",
    "Retrieval",
    "by_person",
    "check_face",
    "crop_face",
    "embed",
    "evaluate",
    "follows_reference",
    "id_retrieval",
    "scan",
    "threshold_of",
    "users_own",
    "view",
]


@dataclass(frozen=True)
class Retrieval:
    """The result of `id_retrieval`.

    rate: fraction of the stylised pictures whose person was found, 0 to 1; chance: the rate of guessing;
    nearest [M]: the row of the closest content; distance [M]: the squared L2 distance to it; found [M]: bool;
    own [M]: the squared L2 distance to the right content; rank [M]: 1 + the number of contents closer than that one;
    lost [M]: bool, whether a stylised picture had no vector: not found, nearest -1, at distance infinity, rank N;
    lost_contents [N]: bool, whose content had none: nobody's nearest, so that these people are never found.
    """

    rate: float
    chance: float
    nearest: np.ndarray
    distance: np.ndarray
    found: np.ndarray
    own: np.ndarray
    rank: np.ndarray
    lost: np.ndarray
    lost_contents: np.ndarray


def id_retrieval(
    content: np.ndarray | Tensor,
    stylised: np.ndarray | Tensor,
    labels: Sequence[int] | np.ndarray | Tensor,
    threshold: float | None = None,
) -> Retrieval:
    """ID retrieval (Sec. III-D): how often the nearest face among the contents is that of the right person.

    Args:
        content: identity vectors [N, D] of the content pictures, one a person, as an identity network's `embed` returns
            them (of unit length squared distances lie between 0 and 4). A row of NaN is a picture without a vector.
        stylised: identity vectors [M, D]. At equal distances the first content counts as the nearest. A row of NaN
            counts as not found, and is counted in `lost`.
        labels: [M], the row of `content` with the person in each stylised picture.
        threshold: a stylised picture counts as found only if its squared distance is not above this (the authors' code
            offers 1.5); None: at any distance.

    Raises:
        ShapeError: shapes that do not fit together, or labels that are not whole numbers.
        InvalidValue: labels outside the rows, vectors that are not finite (but for whole rows of NaN), no content with
            a vector, or a negative threshold.
    """
    threshold = np.inf if threshold is None else number("threshold", threshold, "[0, inf)")
    a, b = (np.asarray(torch.as_tensor(f).detach().cpu(), dtype=np.float64) for f in (content, stylised))
    y = np.asarray(torch.as_tensor(labels).cpu())
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or y.shape != b.shape[:1] or not len(a) or not len(b):
        raise ShapeError(
            f"contents {a.shape}, stylised {b.shape}, labels {y.shape}",
            expected="[N, D], [M, D] and [M], none of them empty",
            do="give one identity vector a picture and one label a stylised picture",
        )
    if y.dtype.kind not in "iu":
        raise ShapeError(f"labels of type {y.dtype}", expected="whole numbers", do="use the rows of the contents")
    if y.min() < 0 or y.max() >= len(a):
        raise InvalidValue(
            f"labels from {y.min()} to {y.max()}",
            expected=f"rows from 0 to {len(a) - 1}",
            do="label each stylised picture with the row of its content",
        )
    lost_contents, lost = (np.isnan(f).all(1) for f in (a, b))
    if lost_contents.all() or not (np.isfinite(a[~lost_contents]).all() and np.isfinite(b[~lost]).all()):
        raise InvalidValue(
            "identity vectors with NaN or infinity", expected="finite numbers", do="find the pictures they come from"
        )
    squared = np.square(a).sum(1) + np.square(b).sum(1)[:, None] - 2 * b @ a.T  # ||f(y) - f(x_j)||^2, [M, N]
    squared[np.isnan(squared)] = np.inf
    nearest = squared.argmin(1)  # argmin_j ||f(y) - f(x_j)||^2 (Sec. III-D)
    distance = squared[np.arange(len(b)), nearest].clip(min=0)
    found = (nearest == y) & (distance <= threshold) & ~lost
    own = squared[np.arange(len(b)), y]
    rank = np.where(lost, len(a), 1 + (squared < own[:, None]).sum(1))
    nearest = np.where(lost, -1, nearest)
    rate, chance = float(found.mean()), 1 / len(a)
    return Retrieval(rate, chance, nearest, distance, found, own.clip(min=0), rank, lost, lost_contents)


@dataclass(frozen=True)
class ByPerson:
    """ID retrieval of several pictures of each of P people.

    people: their names. share [P]: of each person's pictures that were found. rank [P]: mean rank of the right face.
    all: the retrieval of all pictures, person after person.
    """

    people: tuple[str, ...]
    share: np.ndarray
    rank: np.ndarray
    all: Retrieval

    def minus(self, other: ByPerson) -> np.ndarray:
        """The difference in `share` for each person that both have, in this order."""
        theirs = dict(zip(other.people, other.share, strict=True))
        return np.array([s - theirs[p] for p, s in zip(self.people, self.share, strict=True) if p in theirs])

    def confusion(self) -> np.ndarray:
        """[P, N]: how often each person's pictures were nearest to each of the N contents; lost ones do not count."""
        counts = np.zeros((len(self.people), round(1 / self.all.chance)), int)
        whose = np.repeat(range(len(counts)), len(self.all.nearest) // len(counts))
        np.add.at(counts, (whose[~self.all.lost], self.all.nearest[~self.all.lost]), 1)
        return counts


def by_person(
    content: np.ndarray | Tensor, stylised: Tensor, contents: Sequence[str], people: Sequence[str]
) -> ByPerson:
    """`id_retrieval` person by person: ten pictures of one person are not ten independent ones.

    Args:
        content: identity vectors [N, D], one a person. contents: the names of these N.
        stylised: [P, S, D], S pictures of each of P people. people: the names of these P.

    Raises:
        ShapeError: see `id_retrieval`. UnknownName: a person who is not among the contents.
    """
    if missing := [person for person in people if person not in contents]:
        raise UnknownName(f"person {missing[0]!r}", expected="a name in `contents`", do="add this face to the contents")
    rows = np.repeat([list(contents).index(person) for person in people], stylised.shape[1])
    found = id_retrieval(content, stylised.flatten(0, 1), rows)
    mean = lambda values: values.reshape(stylised.shape[:2]).mean(1)
    return ByPerson(tuple(people), mean(found.found.astype(float)), mean(found.rank.astype(float)), found)


def follows_reference(stylised: Tensor, references: Tensor, content: Tensor) -> np.ndarray:
    """How much nearer a person's pictures are to themselves than to their references, [P]; below 0: to the references.

    The squared distance of a picture's identity vector to its reference's minus that to its content's, as a mean over
    the S pictures of each person; NaN for a person one of whose pictures has no vector.

    stylised: [P, S, D]. references: [S, D]. content: [P, D].
    """
    to_reference = (stylised - references).square().sum(2)  # [P, S]
    to_content = (stylised - content[:, None]).square().sum(2)
    return (to_reference - to_content).mean(1).numpy()


# --- folders ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folders:
    """The contents of the two folders.

    contents: ID -> picture, sorted by ID. stylised: (ID, picture), sorted. problems: (where, what is wrong).
    """

    contents: dict[str, Path]
    stylised: list[tuple[str, Path]]
    problems: list[tuple[Path, str]]


def scan(content: str | Path, stylised: str | Path) -> Folders:
    """Match the pictures of two folders by ID: a content's file name without suffix, a stylised picture's folder.

    Raises:
        StoreError: a folder is missing or has no pictures, or an ID has several content pictures.
    """
    content, stylised = Path(content), Path(stylised)
    for folder in (content, stylised):
        if not folder.is_dir():
            raise StoreError(
                f"no folder {folder}", expected="content/ID.png and stylised/ID/*.png", do="check the path"
            )
    problems: list[tuple[Path, str]] = []
    of_id: dict[str, list[Path]] = {}
    for path in _pictures(content, problems):
        of_id.setdefault(path.stem, []).append(path)
    if double := {k: v for k, v in of_id.items() if len(v) > 1}:
        names = "; ".join(", ".join(p.name for p in v) for v in double.values())
        raise StoreError(
            f"{len(double)} IDs with several pictures in {content}: {names}",
            expected="one content picture an ID",
            do="keep one picture of each",
        )
    pairs: list[tuple[str, Path]] = []
    for folder in sorted(p for p in stylised.iterdir() if not p.name.startswith(".")):
        if not folder.is_dir():
            problems.append((folder, "not in a folder named by an ID: ignored"))
            continue
        pictures = _pictures(folder, problems)
        if not pictures:
            problems.append((folder, "has no pictures"))
        pairs += [(folder.name, path) for path in pictures]
        if folder.name not in of_id:
            problems.append((folder, f"no content {folder.name}.*: its {len(pictures)} pictures count as not found"))
    for name, (path,) in sorted(of_id.items()):
        if name not in {i for i, _ in pairs}:
            problems.append((path, "has no stylised pictures"))
    if not of_id or not pairs:
        seen = "; ".join(f"{p.name}: {what}" for p, what in problems[:5])
        raise StoreError(
            f"{len(of_id)} pictures in {content}, {len(pairs)} below {stylised}",
            expected=f"content/ID{image.SUFFIXES[0]} and stylised/ID/*{image.SUFFIXES[0]}",
            do=f"check the folders: {seen}" if seen else "put pictures into both folders",
        )
    return Folders({name: of_id[name][0] for name in sorted(of_id)}, pairs, problems)


def _pictures(folder: Path, problems: list[tuple[Path, str]]) -> list[Path]:
    pictures = []
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        if path.is_file() and path.suffix.lower() in image.SUFFIXES:
            pictures.append(path)
        else:
            problems.append((path, "not a picture: ignored"))
    return pictures


# --- evaluation -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """The result of an evaluation, or its progress.

    done, total: pictures read. table: a row a stylised picture with "id", "file", "nearest" (ID), "distance" (squared,
    to the nearest), "own_distance" (to the right content), "rank" (of the right content; 1 is the nearest), "found",
    "within" (found, and not farther than `threshold`), "problem" ("" or why it could not be looked up). contents: the
    IDs that were searched. problems: a row each with "where" and "what".
    """

    done: int
    total: int
    table: pd.DataFrame
    contents: tuple[str, ...]
    problems: pd.DataFrame
    threshold: float
    face: str

    @property
    def chance(self) -> float:
        """The rate of guessing."""
        return 1 / len(self.contents)

    def rates(self) -> dict[str, float]:
        """Rates "top1" and "top1_within" over all stylised pictures, and "..._usable" over those without a problem."""
        usable = self.table[self.table["problem"] == ""]
        rates = {}
        for name, column in {"top1": "found", "top1_within": "within"}.items():
            rates[name] = float(self.table[column].mean())
            rates[f"{name}_usable"] = float(usable[column].mean()) if len(usable) else float("nan")
        return rates

    def interval(self, *, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of "top1", resampling people; (0, 1) for fewer than three people."""
        low, high = stats.interval(self.table["found"], self.table["id"], seed=seed)
        return max(low, 0.0), min(high, 1.0)

    def confusion(self) -> np.ndarray:
        """[N, N]: how often a picture of the row's person was nearest to the column's, in the order of `contents`."""
        place = {name: i for i, name in enumerate(self.contents)}
        counts = np.zeros((len(place), len(place)), int)
        for row in self.table[self.table["problem"] == ""].itertuples():
            counts[place[row.id], place[row.nearest]] += 1
        return counts

    def text(self) -> str:
        """The rates in a few lines of text."""
        rates, (low, high), n = self.rates(), self.interval(), len(self.table)
        lost = int((self.table["problem"] != "").sum())
        lines = [
            f"ID retrieval {rates['top1']:.2%} of {n} pictures of {self.table['id'].nunique()} people among "
            f"{len(self.contents)} contents (95 % {low:.2%} to {high:.2%}, chance {self.chance:.2%}, face {self.face})",
            f"within a squared distance of {self.threshold:g}: {rates['top1_within']:.2%}",
        ]
        if lost:
            lines.append(
                f"{lost} pictures could not be looked up and count as not found; of the {n - lost} others "
                f"{rates['top1_usable']:.2%} were found ({rates['top1_within_usable']:.2%} within the distance)"
            )
        return "\n".join(lines)


def evaluate(
    content: str | Path,
    stylised: str | Path,
    net: Network,
    *,
    face: str = "whole",
    batch: int = 32,
    threshold: float | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[Report]:
    """Look up every stylised picture among the contents; yields the progress after each batch, and last the report.

    Args:
        content, stylised: see `scan`. Pictures may have any sizes.
        net, face: see `embed`.
        batch: pictures read and embedded at a time.
        threshold: a found picture is "within" if its squared distance is not larger; None: see `threshold_of`.
        device: where the network is.

    Raises:
        StoreError: see `scan`; or no content, or no stylised picture, could be read.
        InvalidValue: a batch or a threshold out of range. UnknownName: an unknown `face`.
    """
    import pandas as pd

    check_face(face)
    batch = number("batch", batch, "whole [1, inf)")
    threshold = number("threshold", threshold_of(net) if threshold is None else threshold, "[0, inf)")
    folders = scan(content, stylised)
    paths = [*folders.contents.values(), *(path for _, path in folders.stylised)]
    vectors: dict[Path, Tensor] = {}
    problems = [(str(path), what) for path, what in folders.problems]
    why: dict[Path, str] = {}
    for start in range(0, len(paths), batch):
        for path, result in _embed_files(paths[start : start + batch], net, face, device):
            if isinstance(result, str):
                why[path] = result
                problems.append((str(path), result))
            else:
                vectors[path] = result
        done = min(start + batch, len(paths))
        if done < len(paths):
            yield Report(done, len(paths), pd.DataFrame(), tuple(folders.contents), _named(problems), threshold, face)

    known = [name for name, path in folders.contents.items() if path in vectors]
    usable = [(name, path) for name, path in folders.stylised if path in vectors and name in known]
    if not known or not usable:
        raise StoreError(
            f"{len(known)} contents and {len(usable)} of their stylised pictures could be read",
            expected="at least one of each",
            do="replace these pictures: " + "; ".join(f"{where}: {what}" for where, what in problems[:5]),
        )
    lookup = id_retrieval(
        torch.stack([vectors[folders.contents[name]] for name in known]),
        torch.stack([vectors[path] for _, path in usable]),
        [known.index(name) for name, _ in usable],
    )
    looked_up = {path: i for i, (_, path) in enumerate(usable)}
    rows = []
    for name, path in folders.stylised:
        row = {"id": name, "file": str(path), "nearest": "", "distance": np.nan, "own_distance": np.nan, "rank": np.nan}
        if (i := looked_up.get(path)) is None:
            problem = why.get(path) or ("its content cannot be read" if name in folders.contents else "no such content")
            rows.append({**row, "found": False, "within": False, "problem": problem})
            continue
        distance, hit = float(lookup.distance[i]), bool(lookup.found[i])
        row |= {"nearest": known[lookup.nearest[i]], "distance": distance, "own_distance": float(lookup.own[i])}
        rows.append(
            {**row, "rank": int(lookup.rank[i]), "found": hit, "within": hit and distance <= threshold, "problem": ""}
        )
    yield Report(len(paths), len(paths), pd.DataFrame(rows), tuple(known), _named(problems), threshold, face)


def _named(problems: list[tuple[str, str]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(problems, columns=["where", "what"])


def _embed_files(
    paths: list[Path], net: Network, face: str, device: str | torch.device
) -> Iterator[tuple[Path, Tensor | str]]:
    """(picture, its vector [D] or what is wrong with it); pictures of one size are embedded together."""
    by_size: dict[tuple[int, ...], list[tuple[Path, Tensor]]] = {}
    for path in paths:
        try:
            x = image.read(path)
        except HRLibError as e:
            yield path, f"cannot be read: {e.got}"
            continue
        by_size.setdefault(tuple(x.shape), []).append((path, x))
    groups = list(by_size.values())
    while groups:
        same = groups.pop(0)
        try:
            vectors = embed(net, torch.cat([x for _, x in same]).to(device), face)
        except (FaceError, ShapeError, InvalidValue) as e:
            if len(same) == 1:
                yield same[0][0], f"cannot be embedded: {e.got}; expected {e.expected}"
            groups += [[one] for one in same] if len(same) > 1 else []  # so that a bad one fails alone
            continue
        for (path, _), vector in zip(same, vectors, strict=True):
            yield path, vector
