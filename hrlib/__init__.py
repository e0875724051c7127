"""HRInversion companion: the library below the notebooks."""

from __future__ import annotations


def heal_torchvision() -> bool:
    """Make `import torchvision` work beside a CPU build of torch; returns True when that took a repair.

    There is no CPU wheel of torchvision on every index, and the compiled part of the CUDA wheel cannot load beside a
    CPU torch; the import then fails with "operator torchvision::nms does not exist". We, timm and lpips use only its
    Python part, so declaring the two missing operator schemas is enough. Nothing can call them: they have no kernel.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as e:
        if "torchvision::" not in str(e):
            raise
    else:
        return False

    import sys

    import torch

    for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[name]  # the half-imported package
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _keep.append(library)  # dropping the object would withdraw the definitions
    import torchvision  # noqa: F401

    return True


_keep: list = []
heal_torchvision()
