"""What torch's exporter makes anew for each export, made once: its table of 500 translations, half the time of a small export."""

from __future__ import annotations

from functools import cache


def keep_the_registry() -> None:
    """From now on in this process, exports share the table of the installed torch and onnxscript."""
    from torch.onnx._internal.exporter import _registration

    registry = _registration.ONNXRegistry
    make = registry.from_torchlib.__func__
    if hasattr(make, "cache_info"):
        return
    kept = cache(lambda **said: make(registry, **said))
    registry.from_torchlib = staticmethod(kept)
