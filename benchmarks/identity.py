"""How often the shipped identity network finds the right one of 200 people whom it has never seen.

Prints mean, spread and minimum of the top-1 rate over five seeds, beside chance: photographs against other views, low
resolution, look-alikes, and the other domains. About eight minutes on one core.
"""

from __future__ import annotations

import torch

from hrlib import weights
from hrlib.training import identity

PEOPLE, SEEDS = 200, range(5)


def main() -> None:
    torch.set_num_threads(1)
    net = weights.load_identity("identity_thin")
    print(identity.table(identity.measure(net, n=PEOPLE, seeds=SEEDS), PEOPLE))


if __name__ == "__main__":
    main()
