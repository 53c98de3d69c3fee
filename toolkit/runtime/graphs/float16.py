"""Half precision: a float32 graph as a float16 one that still takes uint8 images and gives float32 logits."""

from __future__ import annotations

from typing import Any

from toolkit.base.quiet import quiet
from toolkit.runtime.graphs.shared_trunks import HEAVY

# Sums over many values and exponentials, which float16 (largest value 65,504) can overflow or round away
WIDE = (
    "Softmax",
    "LogSoftmax",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "ReduceL2",
    "GlobalAveragePool",
    "LayerNormalization",
)


def to_fp16(model: Any) -> Any:
    """A float16 version of an onnx.ModelProto, by onnxruntime's converter (onnxruntime.transformers.float16).

    Inputs and outputs keep their types. What comes before the first heavy operator stays float32: the mean is subtracted from
    pixels of 0 to 255 there, and float16 knows 123.675 only to 0.03. So do sums and exponentials.
    """
    import onnx
    from onnxruntime.transformers import float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for place, node in enumerate(copy.graph.node):
        node.name = node.name or f"node{place}"
    first = next((place for place, node in enumerate(copy.graph.node) if node.op_type in HEAVY), 0)
    early = [node.name for node in copy.graph.node[:first]]
    with quiet("onnxruntime"):
        return float16.convert_float_to_float16(
            copy,
            keep_io_types=True,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *WIDE],
            node_block_list=early,
        )
