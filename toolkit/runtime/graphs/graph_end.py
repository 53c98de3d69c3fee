"""How a graph ends: the operation that its numbers come from, and what in it still acts as it does in training."""

from __future__ import annotations

from typing import Any

from toolkit.core.raw_outputs import End

_ENDS: dict[str, End] = {
    "Softmax": "softmax",
    "LogSoftmax": "log-softmax",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "sigmoid",
    "QLinearSigmoid": "sigmoid",
    "QLinearSoftmax": "softmax",
    "ArgMax": "argmax",
    **dict.fromkeys(("Gemm", "MatMul", "Conv", "BatchNormalization", "Relu", "LeakyRelu", "Neg", "Log"), "linear"),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger"), "linear"),
}
# what gives the same numbers in another shape, order, type or unit, or their mean
_PASSED = {
    *("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Gather", "Split", "Concat"),
    *("Mul", "Div", "Add", "Sub", "Sum", "Mean", "Clip", "Dropout", "GlobalAveragePool", "AveragePool", "ReduceMean"),
    *("QuantizeLinear", "DequantizeLinear", "Expand"),
}
_FIRST = {  # of whose inputs only the first is numbers
    *("Reshape", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Clip", "Dropout", "ReduceMean", "Expand"),
    *("QuantizeLinear", "DequantizeLinear"),
}
_FAR = 200  # operations to go back


def last_operation(model: Any, output: str) -> End:
    """What an output of an onnx.ModelProto comes from, behind what only moves, scales or averages it; "" if it does not say."""
    made = {name: node for node in model.graph.node for name in node.output if name}
    given = {tensor.name for tensor in model.graph.initializer} | {
        name for node in model.graph.node if node.op_type == "Constant" for name in node.output
    }
    ends: set[End] = set()
    seen: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name in seen or name in given:
            continue
        seen.add(name)
        node = made.get(name)
        if node is None or len(seen) > _FAR or (node.op_type not in _ENDS and node.op_type not in _PASSED):
            return ""
        if node.op_type in _ENDS:
            ends.add(_ENDS[node.op_type])
        else:
            waiting += list(node.input)[: 1 if node.op_type in _FIRST else None]
    return ends.pop() if len(ends) == 1 else ""


def in_training(model: Any) -> list[str]:
    """Names of layers (`BatchNormalization`, `Dropout`) that a graph runs in training mode, each once."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {
        n.output[0]: a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    kinds = []
    for node in model.graph.node:
        flag = any(a.name == "training_mode" and a.i for a in node.attribute)
        old = node.op_type == "BatchNormalization" and sum(map(bool, node.output)) > 1  # before opset 14
        switch = node.input[2] if node.op_type == "Dropout" and len(node.input) > 2 else ""
        drops = switch in constants and bool(numpy_helper.to_array(constants[switch]).any())
        if flag or old or drops:
            kinds.append(node.op_type)
    return sorted(set(kinds))
