"""Pictures larger than memory: the same losses, pictures and gradients, tile by tile, in a planned amount of memory."""

from .exact import TiledGenerator, TiledLoss, tiles

__all__ = ["TiledGenerator", "TiledLoss", "tiles"]
