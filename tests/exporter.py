"""torch's exporter without what it does anew for each export: its tables, and the translation of a network seen before.

Nineteen twentieths of training one small fold are spent in `torch.onnx.export`, and most exports of these tests differ in the
values of their weights alone. A translation is remembered, before it is optimised, by all that it depends on: the network's
structure and code, the shapes and the words of the call. Next time the weights are put where the exporter put those of the first,
and torch's own optimisation follows, so that the graph is the same but for numbers in names. It is remembered only where the exporter left
every weight as it is under its own name. `toolkit.models.export` proves each graph against the network either way. Tests of the
export itself use `plain`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

HOOKS = ("_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_pre_hooks")
OWN = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", *HOOKS}  # of a module, looked at one by one
INSTALLED = ("builtins", "torch", "torchvision", "timm")
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


class UnknownError(Exception):
    """A network keeps something of which nobody can say whether it is the same as another's."""


def keep_the_registry() -> None:
    """From now on in this process, exports share the tables of the installed torch and onnxscript."""
    import torch._export.utils as ops
    from torch.onnx._internal.exporter import _decomp, _registration

    registry = _registration.ONNXRegistry
    if hasattr(registry.from_torchlib, "cache_info"):
        return  # a process that was forked from one that did it
    make = registry.from_torchlib.__func__
    kept = cache(lambda **said: make(registry, **said))
    registry.from_torchlib = staticmethod(kept)

    overloads = cache(_decomp.get_onnx_implemented_overloads)
    _decomp.get_onnx_implemented_overloads = lambda registry: list(overloads(registry))
    table, tables = _decomp.create_onnx_friendly_decomposition_table, {}

    def decompositions(implemented):
        key = frozenset(implemented)
        if key not in tables:
            tables[key] = table(implemented)
        return dict(tables[key])

    _decomp.create_onnx_friendly_decomposition_table = decompositions

    names, materialise = ops.torch._C._dispatch_get_registrations_for_dispatch_key, ops._materialize_cpp_cia_ops
    known: set[int] = set()

    def materialised():
        count = len(names("CompositeImplicitAutograd"))
        if count not in known:
            materialise()
            known.add(count)

    ops._materialize_cpp_cia_ops = materialised


def remember(folder: Path) -> None:
    """From now on in this process, what was translated before is taken from `folder`, and what was not is left there."""
    import torch

    if isinstance(torch.onnx.export, partial):
        torch.onnx.export = torch.onnx.export.args[0]
    folder.mkdir(parents=True, exist_ok=True)
    torch.onnx.export = partial(exported, torch.onnx.export, folder)


@contextmanager
def plain() -> Iterator[None]:
    """torch's own function, whatever is remembered."""
    import torch

    remembering = torch.onnx.export
    torch.onnx.export = remembering.args[0] if isinstance(remembering, partial) else remembering
    try:
        yield
    finally:
        torch.onnx.export = remembering


def exported(export: Callable[..., Any], folder: Path, model: Any, *given: Any, **said: Any) -> Any:
    """What `torch.onnx.export` gives, as far as toolkit reads it."""
    if not said.get("dynamo") or {"f", "optimize", "report", "verify"} & set(said) or len(given) != 1:
        return export(model, *given, **said)
    try:
        path = folder / key(model, given, said)
        weights = {name: value.detach().contiguous().numpy().tobytes() for name, value in model.state_dict().items()}
    except UnknownError:
        return export(model, *given, **said)
    with suppress(FileNotFoundError):
        return optimised(filled(path.read_bytes(), weights))
    program = export(model, *given, **said, optimize=False)
    if (bare := emptied(program.model, weights)) is None:
        program.optimize()
        return program
    descriptor, partly = tempfile.mkstemp(dir=folder)
    with os.fdopen(descriptor, "wb") as file:
        file.write(bare)
    Path(partly).rename(path)
    return optimised(filled(bare, weights))


def optimised(proto: Any) -> Any:
    """The program that torch has before it optimises, optimised as torch does."""
    from onnx_ir import serde
    from torch.onnx._internal.exporter._onnx_program import ONNXProgram

    program = ONNXProgram(serde.deserialize_model(proto), None)
    program.optimize()
    return program


def emptied(model: Any, weights: dict[str, bytes]) -> bytes | None:
    """The graph without its weights; None where one is not there as it is."""
    from onnx_ir import serde
    from onnx_ir.passes.common import NameFixPass

    there, proto = set(), serde.serialize_model(NameFixPass()(model.clone()).model)
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            if tensor.raw_data != weights[tensor.name]:
                return None
            there.add(tensor.name)
            tensor.raw_data = b""
    left = [name for name in weights if name not in there and not name.endswith("num_batches_tracked")]
    return None if left else proto.SerializeToString()


def filled(bare: bytes, weights: dict[str, bytes]) -> Any:
    """The graph with these weights."""
    import onnx

    proto = onnx.ModelProto.FromString(bare)
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            tensor.raw_data = weights[tensor.name]
    return proto


def key(model: Any, given: tuple[Any, ...], said: dict[str, Any]) -> str:
    """All that a translation depends on but the values of weights; `UnknownError` where that cannot be told."""
    import onnxscript
    import torch

    held = list(model.state_dict(keep_vars=True).values())
    alike = [next(i for i, other in enumerate(held) if other is value) for value in held]
    versions = (torch.__version__, onnxscript.__version__)
    seen = (*versions, part(model), alike, [shape(one) for one in given[0]], part(sorted(said.items())))
    return hashlib.sha256(pickle.dumps(repr(seen))).hexdigest()


def shape(value: Any) -> Any:
    """Of a tensor, all but its values."""
    if value is None:
        return None
    if value.device.type != "cpu":
        raise UnknownError(value.device)
    return (type(value).__name__, tuple(value.shape), str(value.dtype), value.requires_grad, value.stride())


def part(value: Any) -> Any:
    """Something whose `repr` is alike for what is alike: of functions the code, of modules all parts."""
    import torch

    if isinstance(value, PLAIN):
        return value
    if isinstance(value, torch.Tensor):
        return (*shape(value), value.detach().contiguous().numpy().tobytes())
    if isinstance(value, torch.nn.Module):
        return module(value)
    if isinstance(value, torch.dtype | torch.device | torch.memory_format | torch.layout):
        return str(value)
    if type(value).__module__ == "torch.export.dynamic_shapes":
        return ("dimension", type(value).__name__, value.__name__, value.min, value.max)
    if isinstance(value, dict):
        return ("dict", type(value).__name__, [(part(name), part(one)) for name, one in value.items()])
    if isinstance(value, list | tuple):
        return (type(value).__name__, [part(one) for one in value])
    if isinstance(value, set | frozenset):
        return ("set", sorted(repr(part(one)) for one in value))
    if isinstance(value, type):
        return code_of(value)
    return function(value)


def function(value: Any) -> Any:
    if isinstance(value, FunctionType):
        held = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        cells = [part(cell.cell_contents) for name, cell in held if name != "__class__"]  # which `super()` needs
        return (value.__module__, value.__qualname__, part(value.__code__), part(value.__defaults__), cells)
    if isinstance(value, CodeType):
        return (value.co_code, value.co_names, value.co_varnames, [part(one) for one in value.co_consts])
    if isinstance(value, partial):
        return ("partial", part(value.func), part(value.args), part(value.keywords))
    if isinstance(value, MethodType) and isinstance(value.__self__, type):
        return ("method", part(value.__func__), part(value.__self__))
    if type(value).__name__ == "builtin_function_or_method":
        return ("builtin", value.__module__, value.__qualname__)
    raise UnknownError(type(value))


def module(value: Any) -> Any:
    """A module's class, settings, weights and children."""
    if any(getattr(value, name) for name in HOOKS):
        raise UnknownError("hooks")
    kept = [(name, part(one)) for name, one in sorted(vars(value).items()) if name not in OWN and not name.endswith("_hooks")]
    passing = value._non_persistent_buffers_set
    buffers = [(name, part(one) if name in passing else shape(one)) for name, one in value._buffers.items()]
    weights = [(name, shape(one)) for name, one in value._parameters.items()]
    return (code_of(type(value)), kept, weights, buffers, sorted(passing), part(value._modules))


@cache
def code_of(kind: type) -> Any:
    """A class by its name and, where it is not of an installed package, by the code of its methods.

    What `__init__` does can be seen in the module; what methods reach for outside is taken to be what it was.
    """
    name = (kind.__module__, kind.__qualname__)
    if kind.__module__.partition(".")[0] in INSTALLED:
        return name
    found = sorted((word, value) for word, value in vars(kind).items() if isinstance(value, FunctionType))
    methods = [(word, function(value)) for word, value in found if word != "__init__"]
    return (name, methods, [code_of(base) for base in kind.__mro__[1:]])
