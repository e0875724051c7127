"""The part of each layer that a window of the picture needs, so that the window can be drawn alone and exactly.

A 3x3 convolution needs one more row on each side; an up-sampling one computes rows 2q and 2q + 1 from q - 1 .. q + 1.
Followed back through the layers, a window therefore grows by at most three rows of any layer, whatever the picture's
size. Rows outside the canvas are the zeros that convolutions pad with, as in the whole picture.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import InvalidValue

Window = tuple[slice, slice]  # (rows, columns), non-negative starts and stops


def whole(size: tuple[int, int]) -> Window:
    """The window of a whole picture (H, W)."""
    return slice(0, size[0]), slice(0, size[1])


def within(window: Window, origin: Window, scale: int = 1) -> Window:
    """`window` as an index into an array that starts at `origin` times `scale`."""
    return tuple(
        slice(w.start - scale * o.start, w.stop - scale * o.start) for w, o in zip(window, origin, strict=True)
    )


def checked(window: Window | None, size: tuple[int, int]) -> Window:
    """A window inside a picture of `size`; None means the whole. `InvalidValue` if it is empty or sticks out."""
    if window is None:
        return whole(size)
    for part, length in zip(window, size, strict=True):
        if part.step not in (None, 1) or not 0 <= (part.start or 0) < (part.stop or length) <= length:
            raise InvalidValue(
                f"window {window} of a picture of {size[0]}x{size[1]}",
                expected="(slice(first, end), slice(first, end)) inside the picture, not empty",
                do="count rows and columns in pixels of the picture",
            )
    return tuple(slice(part.start or 0, part.stop or length) for part, length in zip(window, size, strict=True))


def needed(window: Window, canvas: Mapping[int, tuple[int, int]]) -> dict[str, Window]:
    """{"b4.conv0": ..., "b4.conv1": ..., "b8.conv0": ...}: what each layer must compute for `window` of the last block.

    canvas: {4: (h, w), 8: ..., R: (H, W)}, the sizes of the blocks. "b4.conv0" stands for the constant input.
    """
    found, out = {}, window  # out: what the block's conv1 must compute
    for res in sorted(canvas, reverse=True):
        found[f"b{res}.conv1"] = out
        lengths = canvas[res]
        wide = tuple(slice(max(0, o.start - 1), min(n, o.stop + 1)) for o, n in zip(out, lengths, strict=True))
        found[f"b{res}.conv0"] = wide
        if res > 4:
            out = tuple(
                slice(max(0, o.start // 2 - 1), min(n, (o.stop - 1) // 2 + 2))
                for o, n in zip(wide, canvas[res // 2], strict=True)
            )
    return found
