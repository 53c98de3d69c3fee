"""Architectures that a file names: a white list, since makers of networks take paths, addresses and switches that fetch.

What the user types, and what a recipe passes to `networks.create`, is not looked at here: both are the user's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

from toolkit.base import documents, schema
from toolkit.base.schema import Range, Size
from toolkit.errors import ModelError, counted
from toolkit.models import networks

CLASSES = 100_000
_PARAMETERS = 1 << 30  # 4 GiB of float32; the largest of timm's classifiers has fewer

_Count = Annotated[int, Range(1, CLASSES)]
_Width = Annotated[int, Range(1, 8192)]
_Depth = Annotated[int, Range(0, 256)]
_Share = Annotated[float, Range(0, 1)]
_Widths = _Width | Annotated[list[_Width], Size(16)]
_Depths = _Depth | Annotated[list[_Depth], Size(16)]
_Box = tuple[_Share, _Share, _Share, _Share]


class _Architecture(TypedDict, total=False):
    """Numbers that say how large a network is; no text but its name, so that no path, address or module gets in."""

    model_name: Annotated[str, Size(120)]
    num_classes: _Count
    factors: Annotated[tuple[_Count, ...], Size(16)]
    crops: Annotated[tuple[_Box, ...], Size(16)]
    in_chans: Annotated[int, Range(3, 3)]
    img_size: Annotated[int, Range(1, 4096)] | tuple[Annotated[int, Range(1, 4096)], Annotated[int, Range(1, 4096)]]
    channels: _Widths
    stem_width: _Width
    base_width: _Width
    cardinality: _Width
    layers: _Depths
    depths: _Depths
    dims: _Widths
    depth: _Depths
    embed_dim: _Widths
    num_heads: _Widths
    mlp_ratio: Annotated[float, Range(0, 64)]
    patch_size: _Width
    window_size: _Width
    output_stride: _Width
    class_token: bool
    drop_rate: _Share
    drop_path_rate: _Share
    proj_drop_rate: _Share
    attn_drop_rate: _Share
    dropout: _Share
    stochastic_depth_prob: _Share
    transform_input: bool
    init_weights: bool
    outputs: Literal["probabilities", "percent", "sigmoid"]


def parse(text: str, *, where: str) -> dict[str, Any]:
    """The architecture that a file's metadata says, as JSON; its name is not looked up yet (see `vouched`).

    Raises:
        ModelError: it is no JSON, or has a key or a value that is not on the list.
    """
    try:
        raw: dict[str, Any] = schema.checked(documents.parse_json(text), _Architecture)
    except ValueError as error:
        raise ModelError(
            f"{where}: the network that it names cannot be made: {error}",
            hint="Only a name and sizes are taken from a file; name the network yourself.",
            code="network",
        ) from error
    return raw


def vouched(architecture: Mapping[str, Any], *, where: str) -> Mapping[str, Any]:
    """The same architecture, where timm or torchvision itself has the network.

    Raises:
        ModelError: it is a file's function, an address, or a name that neither knows.
    """
    name = str(architecture.get("model_name", ""))
    if networks.known(name):
        return architecture
    if ".py:" in name:
        raise ModelError(
            f"{where} says that {name!r} makes its network, and code runs only where you name it",
            hint="If it is yours, name it.",
            code="network",
        )
    raise ModelError(
        f"{where} names a network that neither timm nor torchvision has: {name!r}", hint="Name it.", code="network"
    )


def check_size(architecture: Mapping[str, Any], state: Mapping[str, Any], *, where: str) -> None:
    """Make sure that a network is as large as the weights beside it, before memory is taken for it.

    Raises:
        ModelError: it would have other parameters, or more than any classifier has.
    """
    import torch

    try:
        with torch.device("meta"):
            parameters = list(networks.create(architecture).parameters())
    except Exception:  # noqa: BLE001 - some compute while they are made; what is wrong with sizes is said when it is made
        return
    wanted, there = sum(p.numel() for p in parameters), sum(tensor.numel() for tensor in state.values())
    if wanted > min(_PARAMETERS, max(there, 1)):
        raise ModelError(
            f"{where} has {counted(there, 'numbers')} for a network of {counted(wanted, 'parameters')}",
            hint="Another network, or another number of classes?",
            code="network",
        )
