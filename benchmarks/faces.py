"""Faces of FFHQ's frame: where their five points are, how they are found, and who is told apart from whom.

Draws people who do not exist with the generator `ffhq_mobile1024` and prints
- the mean place of the five points, which is `nets.dlib_faces.FFHQ_POINTS`, and its spread, from 256 samples at
  truncation 0.7 (seeds 0 to 255);
- how many of these samples have exactly one face that is found;
- distances between the people of 50 seeds at truncation 0.7 and 1, by dlib's recognition network;
- the time of each step.

It needs `make faces` and takes about 15 minutes on two cores.

    python benchmarks/faces.py [--samples 256] [--people 50]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hrlib import faces, weights
from hrlib.errors import FaceError, MissingWeights


def people(G: torch.nn.Module, seeds: range, truncation_psi: float) -> Iterator[Tensor]:
    """One picture [1, 3, 512, 512] a seed (the generator's, halved); the same seeds at every truncation."""
    for seed in seeds:
        z = torch.randn(1, G.z_dim, generator=torch.Generator().manual_seed(seed))
        yield F.avg_pool2d(G.synthesis(G.mapping(z, truncation_psi=truncation_psi)).clamp(-1, 1), 2)


def places(pictures: Iterator[Tensor]) -> tuple[np.ndarray, list[str]]:
    """([found, 5, 2] in shares of the square's side, what was wrong with the other pictures)."""
    found, lost = [], []
    for x in pictures:
        try:
            found.append(faces.the_face(x).points / x.shape[3])
        except FaceError as e:
            lost.append(e.got)
    return np.array(found), lost


def distances(net: torch.nn.Module, pictures: Iterator[Tensor]) -> tuple[np.ndarray, int]:
    """(dlib's distances between all pairs of people, the number of people)."""
    vectors = []
    for x in pictures:
        try:
            vectors.append(net.embed(x)[0].double().numpy())
        except FaceError:
            continue
    a = np.array(vectors)
    pairs = np.linalg.norm(a[:, None] - a, axis=2)
    return pairs[np.triu_indices(len(a), 1)], len(a)


def report(points: np.ndarray, lost: list[str]) -> str:
    """The fit of `FFHQ_POINTS`, in text."""
    error = 1024 * points.std(0, ddof=1)
    lines = [f"one face found in {len(points)} of {len(points) + len(lost)} samples"]
    lines += [f"  lost: {what}" for what in lost]
    lines += ["mean place of the five points, and standard deviations in pixels of 1024:"]
    rows = zip(points.mean(0), error, strict=True)
    return "\n".join([*lines, *(f"  ({x:.4f}, {y:.4f})   {sx:.1f}, {sy:.1f}" for (x, y), (sx, sy) in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--people", type=int, default=50)
    asked = parser.parse_args()
    try:
        G, net = weights.load_generator("ffhq_mobile1024"), weights.load_identity("dlib")
    except MissingWeights as e:
        print(f"left out: {e}")
        return
    with torch.inference_mode():
        begun = time.perf_counter()
        drawn = list(people(G, range(4), 0.7))
        print(f"drawing {(time.perf_counter() - begun) / 4:.2f} s a picture")
        for what, see in {"finding a face": faces.find, "aligning": faces.align, "recognising": net.embed}.items():
            begun = time.perf_counter()
            for x in drawn:
                see(x)
            print(f"{what} {(time.perf_counter() - begun) / 4:.2f} s a picture")
        print(report(*places(people(G, range(asked.samples), 0.7))))
        for psi in (0.7, 1.0):
            apart, n = distances(net, people(G, range(asked.people), psi))
            shares = np.quantile(apart, [0.05, 0.5])
            print(
                f"truncation {psi:g}: {n} people, distances from {apart.min():.3f}; 5 % below {shares[0]:.3f}; median "
                f"{shares[1]:.3f}; below dlib's 0.6: {np.mean(apart < 0.6):.2%} of {len(apart)} pairs"
            )


if __name__ == "__main__":
    main()
