"""Checkpoints: weights that say which network they belong to, read without running anybody's code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.base import files, sealed
from toolkit.core.cards import KEY, Card
from toolkit.core.lineage import Lineage, SeenIds
from toolkit.errors import ModelError, counted, few
from toolkit.models import architectures, networks

if TYPE_CHECKING:
    import torch

_ARCHITECTURE = "toolkit.architecture"
_SEEN = "toolkit.seen"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights by name, and what a recipe wrote beside them: card, architecture, the ids it has seen (else None)."""

    path: Path
    state: Mapping[str, torch.Tensor]
    card: Card | None = None
    architecture: Mapping[str, Any] | None = None
    seen: SeenIds | None = None

    @property
    def lineage(self) -> Lineage:
        """Whose labels the weights have learned from, as far as the file says it."""
        return self.card.known_lineage if self.card else Lineage(unknown=(self.path.name,))


def save(path: Path, model: torch.nn.Module, card: Card, architecture: Mapping[str, Any], seen: SeenIds | None = None) -> Path:
    """Write a model's weights as safetensors with its card and the architecture (see `networks.create`) that rebuilds it.

    `seen` are the ids whose labels it has learned.

    Raises:
        StoreError: the file cannot be written.
    """
    from safetensors.torch import save as to_bytes

    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    named, origin = json.dumps(dict(architecture), sort_keys=True), seen.to_text() if seen else ""
    metadata = {KEY: card.sealed(_content(state, named + origin)), _ARCHITECTURE: named}
    metadata |= {_SEEN: origin} if seen else {}
    data = to_bytes(state, metadata)
    return files.write(path, lambda file: file.write(data))


def read(path: Path) -> Checkpoint:
    """Read .safetensors, or a .pth/.pt/.ckpt that holds nothing but tensors and plain values.

    Raises:
        ModelError: missing, damaged, or a pickle that would run code.
        CardError: a card that cannot be read, or whose digest says that it or the weights were changed.
    """
    _there(path)
    return _read_safetensors(path, tensors=True) if path.suffix == ".safetensors" else _read_pickle(path)


def read_origin(path: Path) -> Checkpoint:
    """The checkpoint without its weights: what it says of itself, which of other files than .safetensors is nothing.

    Raises:
        ModelError: missing or damaged.
    """
    _there(path)
    return _read_safetensors(path, tensors=False) if path.suffix == ".safetensors" else Checkpoint(path, {})


def _there(path: Path) -> None:
    try:
        files.plain(path)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def build(checkpoint: Checkpoint, architecture: Mapping[str, Any] | None = None) -> torch.nn.Module:
    """The network with the checkpoint's weights, in eval mode; `architecture` overrides what the checkpoint says.

    What the checkpoint says itself is taken only where timm or torchvision has such a network (see `architectures`); an
    `architecture` is the caller's own, and may name a function of theirs.

    Raises:
        ModelError: the network is unknown, or its parameters and the checkpoint's differ in name or shape.
    """
    chosen = dict(architecture or checkpoint.architecture or {})
    if "model_name" not in chosen:
        raise ModelError(f"{checkpoint.path} does not say which network it belongs to", hint="Name it.", code="network")
    if not architecture:
        architectures.vouched(chosen, where=str(checkpoint.path))
        architectures.check_size(chosen, checkpoint.state, where=str(checkpoint.path))
    model = networks.create(chosen)
    expected, state = model.state_dict(), checkpoint.state
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    shapes = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    if missing or extra or shapes:
        sizes = few(f"{name}: {tuple(state[name].shape)} for {tuple(expected[name].shape)}" for name in shapes)
        raise ModelError(
            f"{checkpoint.path} does not fit {chosen['model_name']}: {counted(len(missing), 'parameters')} missing "
            f"({few(missing)}), "
            f"{len(extra)} unknown ({few(extra)}), {len(shapes)} of another shape ({sizes})",
            hint="Another network, or another number of classes than competition.toml has?",
            code="network",
        )
    model.load_state_dict(dict(state))
    return model.eval()


def _read_safetensors(path: Path, *, tensors: bool) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is not a complete safetensors file: {error}") from error
    text, origin = metadata.get(_ARCHITECTURE), metadata.get(_SEEN, "")
    content = _content(state, (text or "") + origin) if tensors else None
    card = Card.from_json(metadata[KEY], where=str(path), content=content) if KEY in metadata else None
    architecture = None if text is None else architectures.parse(text, where=str(path))
    return Checkpoint(path, state, card, architecture, SeenIds.from_text(origin))


def _content(state: Mapping[str, torch.Tensor], architecture: str) -> str:
    """What weights and the text of their architecture come to."""
    import torch

    seal = sealed.Sealing(architecture)
    for name, tensor in sorted(state.items()):
        seal.add(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        seal.add(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return seal.hexdigest()


def _read_pickle(path: Path) -> Checkpoint:
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged pickle makes of torch's reader
        raise ModelError(
            f"{path} cannot be read as plain weights ({type(error).__name__})",
            hint="Only tensors and plain values are read: a pickle can run code. Save model.state_dict() as .safetensors.",
        ) from error
    for key in ("state_dict_ema", "state_dict", "model_state_dict", "model"):  # timm, Lightning, common loops
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)} if isinstance(loaded, dict) else {}
    if not tensors:
        raise ModelError(f"{path} holds no state dict", hint="Save model.state_dict().")
    for prefix in ("module.", "model.", "_orig_mod."):  # DataParallel, Lightning, torch.compile
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return Checkpoint(path, tensors)
