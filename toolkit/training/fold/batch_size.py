"""Batches that fit: the largest one found by trying, and out-of-memory errors told from others."""

from __future__ import annotations

from collections.abc import Callable

from toolkit.errors import TrainingError, counted

_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def largest(step: Callable[[int], None], limit: int) -> int:
    """The largest power of two up to `limit` (or `limit` itself) for which `step`, a forward and backward pass, has memory.

    Tried upwards from 2, so that a machine without enough memory is never driven far over it.

    Raises:
        TrainingError: not even two images fit.
    """
    sizes = [size for size in (2**power for power in range(1, 20)) if size < limit] + [limit]
    fitting = 0
    for size in sizes:
        if not _fits(step, size):
            break
        fitting = size
    if not fitting:
        raise TrainingError(
            f"a batch of {counted(sizes[0], 'images')} does not fit into memory",
            hint="Use smaller images or a smaller network.",
            code="smaller-images",
        )
    return fitting


def _fits(step: Callable[[int], None], size: int) -> bool:
    try:
        step(size)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        free()
    return True


def free() -> None:
    """Give cached memory back to the device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
