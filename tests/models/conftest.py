"""How small networks of a few runs each are run."""

import mindspore as ms
import pytest


@pytest.fixture
def operator_by_operator(request):
    """Without a graph, whose compiling would take most of the time; as a graph, as users run it, in the full run."""
    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE if request.config.getoption("--full") else ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=before)
