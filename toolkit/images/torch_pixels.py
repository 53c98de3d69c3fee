"""The fast way to pixels: TorchCodec decodes, torchvision resizes; both give what Pillow gives, to a level or two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit.core.cards import Preprocess
from toolkit.images.decode import Pixels

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_EXIF_CHUNK = {"PNG": b"eXIf", "WEBP": b"EXIF"}


def decode(data: bytearray, header: ImageFile) -> Pixels | None:
    """Decode JPEG, PNG and WebP with TorchCodec; None leaves the file to Pillow.

    Animations and PNG or WebP with EXIF are: TorchCodec would decode every frame and read EXIF in its own way.
    """
    if header.format not in ("JPEG", "PNG", "WEBP") or getattr(header, "n_frames", 1) > 1:
        return None
    if header.format != "JPEG" and _EXIF_CHUNK[header.format] in data:
        return None
    import torch

    decode_image = _decoder()
    try:
        pixels: Pixels = decode_image(torch.frombuffer(data, dtype=torch.uint8)).permute(1, 2, 0).numpy()
    except (MemoryError, ImportError):
        raise
    except Exception:  # noqa: BLE001 - whatever it raises, Pillow is asked next
        return None
    width, height = header.size
    return pixels if pixels.shape == (height, width, 3) else None


def _decoder() -> Any:
    """TorchCodec's function.

    Raises:
        ImportError: TorchCodec is not there, or one of the libraries that it loads is not (which it calls a RuntimeError).
    """
    try:
        from torchcodec.decoders import decode_image
    except (RuntimeError, OSError) as error:
        raise ImportError(f"torchcodec cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return decode_image


def resize(image: Pixels, size: tuple[int, int], preprocess: Preprocess) -> Pixels:
    """Resize with torchvision, in the caller's thread alone.

    Raises:
        MemoryError: there is not enough for the result.
    """
    import torch
    from torchvision.transforms.v2 import InterpolationMode, functional

    if not image.flags.writeable or min(image.strides) < 0:  # torch warns about the first and refuses the second
        image = image.copy()
    try:
        resized = functional.resize(
            torch.from_numpy(image).permute(2, 0, 1),
            list(size),
            interpolation=InterpolationMode(preprocess.interpolation),
            antialias=preprocess.antialias,
        )
    except RuntimeError as error:
        if "allocate memory" in str(error):
            raise MemoryError(f"not enough memory to resize an image to {size[1]:,} × {size[0]:,}") from error
        raise
    # A view: torch's own copy to another layout would start a pool of threads inside each caller's thread.
    out: Pixels = resized.permute(1, 2, 0).numpy()
    return out
