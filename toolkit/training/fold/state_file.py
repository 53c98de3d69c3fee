"""What a fold is after an epoch, on disk: written whole, read without running code, gone on from by the next run."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from toolkit.base import files
from toolkit.errors import TrainingError

if TYPE_CHECKING:
    import torch

FILE = "resume.pt"


def save(folder: Path, key: str, state: dict[str, Any]) -> None:
    """Write a fold's state, plain values and tensors only.

    Raises:
        StoreError: the disk takes no more; the state of the epoch before is still there.
    """
    import torch

    def fill(file: IO[bytes]) -> None:
        try:
            torch.save({"key": key, **state}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # torch closes its archive, which Ctrl-C left half written
                raise KeyboardInterrupt from error
            if isinstance(error.__context__, OSError):  # or a full disk did
                raise error.__context__ from error
            raise

    files.write(folder / FILE, fill)


def load(folder: Path, key: str) -> dict[str, Any] | None:
    """The state that an earlier run of the same settings left; None where there is none, or one of other settings.

    Raises:
        TrainingError: the file is damaged.
    """
    import torch

    path = folder / FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise TrainingError(
            f"{path} cannot be read ({type(error).__name__}): {error}",
            hint="Train the fold from its start.",
            code="train-again",
        ) from error
    return state if state.get("key") == key else None


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
