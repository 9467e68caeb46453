"""How the built operators are found, and what happens without them."""

import warnings

import pytest

from src.ops import library
from src.ops.nms import BatchedNMS


@pytest.fixture
def no_library(monkeypatch):
    monkeypatch.setattr(library, "find_library", lambda: None)
    library._warn_once.cache_clear()
    yield
    library._warn_once.cache_clear()


def test_one_warning_in_all_without_the_library(no_library):
    with pytest.warns(RuntimeWarning, match="build_custom.sh"):
        assert not BatchedNMS(0.5, 10).custom
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not BatchedNMS(0.5, 10).custom


def test_no_warning_where_the_standard_operators_are_asked_for(no_library):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not BatchedNMS(0.5, 10, builtin=True).custom


def test_another_cpu_has_another_library(monkeypatch):
    here = library.library_path()
    library.library_path.cache_clear()
    monkeypatch.setattr(library, "_cpu_features", lambda: "another CPU")
    try:
        assert library.library_path() != here
    finally:
        library.library_path.cache_clear()
