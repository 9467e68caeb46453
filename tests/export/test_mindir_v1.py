"""MINDIR rewritten for MindSpore Lite 2.0."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.train import mind_ir_pb2 as ir

from src.export.mindir_v1 import rewrite_as_version_1


class Net(nn.Cell):
    """Two convolutions of one kind with bias, and a dense layer."""

    def __init__(self):
        super().__init__()
        self.convs = nn.SequentialCell(*(nn.Conv2d(4, 4, 1, has_bias=True) for _ in range(2)))
        self.dense = nn.Dense(64, 3)

    def construct(self, x):
        return self.dense(self.convs(x).reshape(-1, 64))


def test_arguments_become_attributes(tmp_path):
    path = tmp_path / "net.mindir"
    ms.export(Net(), Tensor(np.zeros((1, 4, 4, 4), np.float32)), file_name=str(path), file_format="MINDIR")
    path.chmod(0o644)
    rewrite_as_version_1(path)
    model = ir.ModelProto()
    model.ParseFromString(path.read_bytes())
    assert model.mind_ir_version == 1
    primitives = {p.name: p for p in model.primitives}
    seen = {"BiasAdd": 0, "MatMul": 0}
    for graph in (model.graph, *model.functions):
        constants = {o for n in graph.node if n.op_type == "Constant" for o in n.output}
        used = {i for n in graph.node for i in n.input}
        # nothing is left that only the newer version knows of
        assert constants <= used
        for node in graph.node:
            primitive = primitives.get(node.op_type.removeprefix("REF::"))
            if primitive is None or primitive.op_type not in seen:
                continue
            seen[primitive.op_type] += 1
            assert len(node.input) == 2
            attributes = {a.name: a for a in primitive.attribute}
            if primitive.op_type == "BiasAdd":
                assert attributes["data_format"].s in ("NCHW", b"NCHW") and attributes["format"].i == 0
            else:
                assert attributes["transpose_b"].i == 1 and attributes["transpose_a"].i == 0
    assert seen["BiasAdd"] >= 2 and seen["MatMul"] == 1
