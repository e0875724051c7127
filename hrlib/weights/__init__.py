"""Weight files: the catalogue, verified downloads, strict loading, saving, safe conversion of foreign checkpoints.

G = weights.load_generator("portraits_inr128")     # a catalogue name, a file of ours, or a foreign checkpoint
"""

from .files import Entry, cached, catalogue, entry, fetch, is_path, path, status
from .load import (
    TORCH_SUFFIXES,
    checked_finite,
    convert,
    load_codes,
    load_discriminator,
    load_generator,
    load_generator3d,
    load_identity,
    load_st_lpips,
    load_state,
    load_strictly,
    load_stylist,
    register,
    save_network,
    save_state,
)

__all__ = [
    "TORCH_SUFFIXES",
    "Entry",
    "cached",
    "catalogue",
    "checked_finite",
    "convert",
    "entry",
    "fetch",
    "is_path",
    "load_codes",
    "load_discriminator",
    "load_generator",
    "load_generator3d",
    "load_identity",
    "load_st_lpips",
    "load_state",
    "load_strictly",
    "load_stylist",
    "path",
    "register",
    "save_network",
    "save_state",
    "status",
]
