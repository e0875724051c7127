"""HRInversion companion: the library below the notebooks."""

from __future__ import annotations

import importlib.abc
import sys


class _TorchvisionHealer(importlib.abc.MetaPathFinder):
    """Make `import torchvision` work beside a CPU build of torch, whoever imports it (timm and lpips do).

    Not every index has a CPU wheel of torchvision, and the compiled part of the CUDA wheel cannot load beside a CPU
    torch: the import fails with "operator torchvision::nms does not exist". This library, timm and lpips use only the
    Python part, so declaring the two missing operator schemas is enough. They have no kernel, so nothing can call them.

    The declaration must come after torchvision has tried to load its compiled part and before it registers functions
    for those operators, hence a hook on that import. The hook finds no modules, and costs nothing until then.
    """

    library = None  # kept, because the definitions disappear with the object

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name not in ("torchvision._autograd_registrations", "torchvision._meta_registrations"):
            return
        if self.library is None and not sys.modules["torchvision.extension"]._has_ops():
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_healer = _TorchvisionHealer()
sys.meta_path.insert(0, _healer)


def torchvision_was_healed() -> bool:
    """Whether torchvision's compiled part did not load, so that `_TorchvisionHealer` had to step in."""
    import torchvision  # noqa: F401

    return _healer.library is not None
