"""MINDIR files as MindSpore Lite 2.0 reads them.

MindSpore 2.8 writes version 3 of the format, where an operator's arguments are constant inputs. Lite 2.0 reads version
1, where they are attributes of the operator. Later releases of Lite read version 3 as it is.
"""

from __future__ import annotations

from pathlib import Path

from mindspore.train import mind_ir_pb2 as ir

from src.runtime.files import whole

__all__ = ["rewrite_as_version_1"]

# how many inputs an operator keeps, and the attributes that the others become
ARGUMENTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "BiasAdd": (2, ("data_format",)),
    "MatMul": (2, ("transpose_a", "transpose_b")),
    "Softmax": (1, ("axis",)),
    "BatchNorm": (5, ("is_training", "epsilon", "momentum", "data_format")),
    "Concat": (1, ("axis",)),
    "ReduceMean": (2, ("keep_dims",)),
    "ReduceSum": (2, ("keep_dims", "skip_mode")),
    "ResizeNearestNeighbor": (1, ("size", "align_corners", "half_pixel_centers")),
}
LAYOUTS = {0: "NCHW", 1: "NHWC"}


def rewrite_as_version_1(path: str | Path) -> None:
    """Rewrites the MINDIR file `path`, beside, then renamed. Raises UserError."""
    path = Path(path)
    model = ir.ModelProto()
    model.ParseFromString(path.read_bytes())
    model.mind_ir_version = 1
    primitives = {p.name: p for p in model.primitives}
    for graph in (model.graph, *model.functions):
        move_arguments(model, graph, primitives)
    with whole(path) as written:
        written.write_bytes(model.SerializeToString())


def move_arguments(model: ir.ModelProto, graph: ir.GraphProto, primitives: dict[str, ir.PrimitiveProto]) -> None:
    """Turns the trailing constants of `graph`'s operators into attributes, and drops those that nothing uses then."""
    constants = {name: n.attribute[0] for n in graph.node if n.op_type == "Constant" for name in n.output}
    for node in graph.node:
        primitive = primitives.get(node.op_type.removeprefix("REF::"))
        if primitive is None or primitive.op_type not in ARGUMENTS:
            continue
        kept, names = ARGUMENTS[primitive.op_type]
        if len(node.input) <= kept:
            continue
        # nodes with different arguments may share a primitive: each gets its own
        own = model.primitives.add()
        own.CopyFrom(primitive)
        own.name = f"{primitive.op_type}:own{len(model.primitives)}"  # numbers alone are MindSpore's
        node.op_type = f"REF::{own.name}"
        for name, given in zip(names, list(node.input)[kept:]):
            set_attribute(own, name, constants[given])
        del node.input[kept:]
    used = {name for n in graph.node for name in n.input}
    nodes = [n for n in graph.node if n.op_type != "Constant" or used.intersection(n.output)]
    kept_graph = ir.GraphProto()
    kept_graph.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(kept_graph.node)


def set_attribute(primitive: ir.PrimitiveProto, name: str, value: ir.AttributeProto) -> None:
    """Gives `primitive` the attribute `name` in place of one that it has."""
    others = [a for a in primitive.attribute if a.name not in (name, "format" if name == "data_format" else name)]
    kept = ir.PrimitiveProto()
    kept.attribute.extend(others)
    added = kept.attribute.add()
    added.CopyFrom(value)
    added.name = name
    if name == "data_format":
        # a layout is text here, and beside it the number by which Lite itself knows it
        added.Clear()
        added.name, added.type, added.s = name, ir.AttributeProto.STRING, LAYOUTS[value.i].encode()
        number = kept.attribute.add()
        number.name, number.type, number.i = "format", ir.AttributeProto.INT64, value.i
    del primitive.attribute[:]
    primitive.attribute.extend(kept.attribute)
