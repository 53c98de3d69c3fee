"""What a fold is after an epoch, on disk: written whole, read without running code, gone on from by the next run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.base import files, sealed

if TYPE_CHECKING:
    import torch

FILE = "resume.pt"


def save(folder: Path, key: str, state: dict[str, Any]) -> None:
    """Write a fold's state, plain values and tensors only.

    Raises:
        StoreError: the disk takes no more; the state of the epoch before is still there.
    """
    import torch

    try:
        archive = io.BytesIO()
        torch.save({"key": key, **state}, archive)
        sealed.write(folder / FILE, archive.getbuffer())
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # torch closes its archive, which Ctrl-C left half written
            raise KeyboardInterrupt from error
        raise


def load(folder: Path, key: str) -> dict[str, Any] | None:
    """The state that an earlier run of the same settings left; None where there is none, or one of other settings.

    A file that is damaged is set aside, and there is none.
    """
    import torch

    path = folder / FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(_content(path)), map_location="cpu", weights_only=True)
        return state if state.get("key") == key else None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - one of before carries no digest, and there is no end to what torch raises
        sealed.set_aside(path, error, "the fold is trained from its start")
        return None


def _content(path: Path) -> memoryview:
    data, carried = sealed.content(files.read(path))
    if not carried and bytes(data[-22:-18]) != b"PK\x05\x06":  # of before: the archive's end is the file's
        raise sealed.DamagedError("it has neither a digest nor an end")
    return data


def forget(folder: Path) -> None:
    """Remove what `save` wrote.

    Raises:
        StoreError: the folder cannot be written.
    """
    with files.explained(folder / FILE):
        (folder / FILE).unlink(missing_ok=True)


def copied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's weights and statistics now, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
