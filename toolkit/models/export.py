"""From a torch model and a card to a self-contained .onnx: parity proved on real images, or nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base import files
from toolkit.base.arrays import F32
from toolkit.base.quiet import quiet
from toolkit.core.activations import probabilities
from toolkit.core.cards import Card, Output
from toolkit.errors import ModelError, ParityError, few
from toolkit.models import network_outputs
from toolkit.runtime.graphs import onnx_file

if TYPE_CHECKING:
    import torch

OPSET = 20  # with IR 10: what torch 2.15 writes and onnxruntime 1.31 reads (onnx's own defaults are newer than it accepts)
BATCHES = (1, 2, 7)
TOLERANCE = 1e-4


def export(model: torch.nn.Module, card: Card, path: Path, *, samples: NDArray[np.uint8]) -> Card:
    """Write `model` with its card to `path`, after onnxruntime gave what torch gives; return the card with the gaps measured.

    `model` takes float32 images (N, 3, H, W), normalised by the card's mean and std, and gives logits (N, card.width); it is
    copied, put in eval mode and exported in float32 on the CPU (CUDA's TF32 would look like drift). The graph takes uint8 RGB
    (N, 3, H, W) with any N. `samples` are evaluation pixels of real images, uint8 (N, 3, H, W), used in batches of 1, 2 and 7.

    Raises:
        ModelError: torch cannot export the model, its input or output do not fit the card, or it gives no logits of each image.
        ParityError: onnxruntime differs from torch by more than 1e-4; nothing stands at `path`.
        StoreError: `path` cannot be written.
    """
    import torch

    samples = enough(samples, card)
    reference = _wrapped(model, card)
    try:
        with torch.inference_mode():
            expected = [reference(torch.from_numpy(batch)).numpy() for batch in batches(samples)]
            together = reference(torch.from_numpy(samples[: sum(BATCHES)])).numpy()
    except (RuntimeError, ValueError, TypeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{card.title}: the model itself fails on batches of {few(BATCHES)} images: {first}") from error
    if expected[0].shape[1:] != (card.width,):
        raise ModelError(f"{card.title}: the model gives {expected[0].shape[1:]} logits, its card says {card.width}")
    network_outputs.check_rows(np.concatenate(expected)[: len(together)], together, card)
    proto = _to_onnx(reference, samples[:2], card)
    onnx_file.strip(proto)
    gaps = _prove(proto.SerializeToString(), samples, expected, card)
    done = replace(card, parity=gaps, versions=_versions())
    onnx_file.embed(proto, done)
    files.write(path, lambda file: file.write(proto.SerializeToString()))
    return done


def parity(expected: F32, found: F32, outputs: Sequence[Output]) -> dict[str, float]:
    """The gaps between two tables of logits (N, width): the largest in `logit` and `probability`, and `flips`, changed labels.

    A bound on the gap in probability bounds the flips too: a label can change only where the reference's margin between its
    two best classes is at most twice the gap, so that the arithmetic does not decide between them.
    """
    probability, flips = 0.0, 0
    for output in outputs:
        ours, theirs = (probabilities(logits, output) for logits in (found, expected))
        probability = max(probability, float(np.abs(ours - theirs).max(initial=0.0)))
        decided = [(p >= 0.5) if output.multilabel else p.argmax(axis=1) for p in (ours, theirs)]
        flips += int((decided[0] != decided[1]).sum())
    return {
        "logit": float(np.abs(found - expected).max(initial=0.0)),
        "probability": probability,
        "flips": float(flips),
    }


def opened(data: bytes, title: str) -> Any:
    """An onnxruntime session on the CPU of a model's bytes, for comparing outputs.

    Raises:
        ModelError: onnxruntime cannot load it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=0)  # it would print
    except Exception as error:  # onnxruntime's exception classes have no common name
        raise ModelError(f"{title}: onnxruntime cannot load the model: {error}") from error


def _prove(data: bytes, samples: NDArray[np.uint8], expected: Sequence[F32], card: Card) -> dict[str, float]:
    """Run the bytes in onnxruntime on every batch size; the worst gaps, or ParityError."""
    found = [_run(data, batch, card) for batch in batches(samples)]
    every, theirs = np.concatenate(found), np.concatenate(expected)
    if not np.isfinite(theirs).all():
        raise ModelError(f"{card.title}: the model itself gives NaN or infinite logits on real images")
    gaps = parity(theirs, every, card.outputs)
    allowed = TOLERANCE * max(1.0, float(np.abs(theirs).max()))
    if gaps["logit"] > allowed or gaps["probability"] > TOLERANCE:
        raise ParityError(
            f"{card.title}: onnxruntime differs from torch in logits by {gaps['logit']:.2e} (allowed {allowed:.2e}), "
            f"probabilities by {gaps['probability']:.2e} (allowed {TOLERANCE:.0e}), in {gaps['flips']:.0f} labels; not written",
            gap=gaps["probability"],
            hint="Look for layers that act differently in training, weights changed since, or BatchNorm statistics that moved.",
        )
    return gaps


def _run(data: bytes, batch: NDArray[np.uint8], card: Card) -> F32:
    session = opened(data, card.title)
    try:
        return np.asarray(session.run(None, {session.get_inputs()[0].name: batch})[0])
    except Exception as error:  # onnxruntime's exception classes have no common name
        raise ModelError(f"{card.title}: onnxruntime cannot run the export on a batch of {len(batch)}: {error}") from error


def _to_onnx(model: torch.nn.Module, samples: NDArray[np.uint8], card: Card) -> Any:
    """The model as an onnx.ModelProto with a dynamic batch."""
    import torch

    try:
        with quiet("torch.onnx", "torch.export", "onnxscript", "onnx_ir"):
            program = torch.onnx.export(
                model,
                (torch.from_numpy(samples),),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever the user's own forward raises
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{card.title}: torch cannot export the model: {first}", hint="Try the model's export mode (timm: exportable=True)."
        ) from error
    assert program is not None
    return program.model_proto


def _wrapped(model: torch.nn.Module, card: Card) -> torch.nn.Module:
    """An eval-mode float32 CPU copy of the model behind its normalisation: uint8 in, logits out."""
    import torch

    class Normalised(torch.nn.Module):
        mean: torch.Tensor
        scale: torch.Tensor

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.register_buffer("mean", 255 * torch.tensor(card.mean, dtype=torch.float32).reshape(1, 3, 1, 1))
            self.register_buffer("scale", 1 / (255 * torch.tensor(card.std, dtype=torch.float32).reshape(1, 3, 1, 1)))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner((images.float() - self.mean) * self.scale)
            return logits

    return Normalised(copy.deepcopy(model).to(device="cpu", dtype=torch.float32)).eval()


def enough(samples: NDArray[np.uint8], card: Card) -> NDArray[np.uint8]:
    """The samples, uint8 (N, 3, H, W), repeated to the ten rows that batches of 1, 2 and 7 take.

    Raises:
        ModelError: no images, or not of the card's size.
    """
    if samples.dtype != np.uint8 or samples.shape[1:] != (3, *card.preprocess.size) or not len(samples):
        raise ModelError(
            f"{card.title}: parity needs uint8 images (N, 3, {card.preprocess.size[0]}, {card.preprocess.size[1]}), "
            f"got {samples.dtype} {samples.shape}"
        )
    need = sum(BATCHES)
    return np.ascontiguousarray(np.resize(samples, (max(need, len(samples)), *samples.shape[1:])))


def batches(samples: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """All samples in batches of 1, 2, 7, 7 and so on."""
    start = 0
    for size in (*BATCHES, *[BATCHES[-1]] * len(samples)):
        if start >= len(samples):
            return
        yield samples[start : start + size]
        start += size


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("toolkit", "torch", "timm", "onnx")}
