"""Features of a frozen backbone, computed once per image and kept on disk, so that an epoch of its head takes seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.models import networks
from toolkit.training.fold.decoded_cache import Mapped, Pixels, room, store, whole
from toolkit.training.fold.samples import Fold, Rows, Samples

if TYPE_CHECKING:
    import torch

BATCH = 64


def precomputed(model: torch.nn.Module, rows: Rows, fold: Fold, prepare: Callable[[torch.Tensor], torch.Tensor]) -> Rows:
    """The same rows with what goes into the network's last layer in place of pixels, float32 (N, D).

    Computed for all images of the samples, so that every fold of the same backbone shares them, and kept in the fold's cache
    under a digest of pixels, weights and what `prepare` makes of a probe; without a cache, in memory.

    Raises:
        ModelError: the network has no last layer to train alone.
        StoreError: the disk takes no more.
    """
    samples = rows.samples
    first = _batch(model, samples.pixels, slice(0, 1), fold, prepare)
    shape = (samples.pixels.shape[0], *first.shape[1:])
    parts = _features(model, samples.pixels, fold, prepare)
    features: Pixels
    if fold.cache is None or not isinstance(samples.pixels, Mapped):
        features = np.concatenate(list(parts))
    else:
        path = fold.cache / f"features-{_key(model, samples.pixels, prepare)}.npy"
        with fold.team.leading():
            if not whole(path, shape, np.float32):
                room(path, int(np.prod(shape)) * 4)
                store(path, shape, np.float32, parts)
        features = Mapped(path)
    extra = precomputed(model, rows.extra, fold, prepare) if rows.extra else None
    return Rows(Samples(samples.ids, features, samples.labels), rows.places, rows.soft, extra)


def _features(
    model: torch.nn.Module, pixels: Pixels, fold: Fold, prepare: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[NDArray[np.float32]]:
    for start in range(0, pixels.shape[0], BATCH):
        yield _batch(model, pixels, slice(start, start + BATCH), fold, prepare)
        if fold.progress:
            fold.progress(min(start + BATCH, pixels.shape[0]), pixels.shape[0])


def _batch(
    model: torch.nn.Module, pixels: Pixels, rows: slice, fold: Fold, prepare: Callable[[torch.Tensor], torch.Tensor]
) -> NDArray[np.float32]:
    """What goes into the last layer for some images; without TF32, as the export computes it."""
    import torch

    _, layer = networks.classifier(model)
    seen: list[Any] = []
    hook = layer.register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            images = torch.from_numpy(np.ascontiguousarray(pixels[rows])).to(fold.device)
            model.to(fold.device).eval()(prepare(images).contiguous(memory_format=torch.channels_last))
    finally:
        hook.remove()
    found: NDArray[np.float32] = seen[-1].float().cpu().numpy()
    return found


def _key(model: torch.nn.Module, pixels: Mapped, prepare: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Digest of everything that decides the features: pixels, weights but the last layer's, the graph, normalisation."""
    import torch

    name, _ = networks.classifier(model)
    description = hashlib.blake2b(f"{pixels.path.name} {name} {model} {torch.__version__}".encode(), digest_size=8)
    for parameter, tensor in model.state_dict().items():
        if not parameter.startswith(f"{name}."):
            description.update(parameter.encode())
            description.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    probe = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    description.update(prepare(probe.contiguous()).cpu().numpy().tobytes())
    return description.hexdigest()
