"""Lets torchvision (and with it timm and open_clip) import where torch is a CPU build and torchvision is not.

torchvision's wheel of the plain registry is linked to CUDA libraries that a CPU torch lacks; its import then ends with
"operator torchvision::nms does not exist". Declaring the two operators is enough for models and transforms; calling
`torchvision.ops.nms` or `torchvision.io.decode_jpeg` still fails, and nothing here calls them.
"""

from __future__ import annotations

import sys
from typing import Any

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: Any = None  # a torch.library.Library; its operators live as long as it does


def ensure() -> None:
    """Imports torchvision; declares its missing operators only where that very import fails for want of them."""
    global _library  # noqa: PLW0603 (once a process)
    try:
        import torchvision
    except RuntimeError as err:
        if "operator torchvision::" not in str(err) or _library is not None:
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torch

        _library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            _library.define(operator + SCHEMA)
        import torchvision  # noqa: F401
