"""What parameters are called never changes: published checkpoints hold the names.

parameters.json.gz holds names and shapes, in order, of every config's detector as version 1.0 began with them.
"""

import gzip
import json
from pathlib import Path

import pytest
from mindspore.nn.utils import no_init_parameters

from src.config import load_config
from src.models.build import build_detector

ROOT = Path(__file__).resolve().parents[2]
STORED = json.loads(gzip.decompress(Path(__file__).with_name("parameters.json.gz").read_bytes()))
FIRST = {number: name for name, number in reversed(STORED["configs"].items())}


def test_every_config_is_in_the_list():
    found = {p.stem for p in (ROOT / "configs").glob("*.yaml")}
    assert not STORED["configs"].keys() - found
    # a new config's are added to the list by whoever adds it
    assert not found - STORED["configs"].keys()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FIRST.values() else pytest.mark.full) for n in STORED["configs"]]
)
def test_names_and_shapes_stay(name):
    with no_init_parameters():
        detector = build_detector(load_config(ROOT / f"configs/{name}.yaml"))
    made = [f"{p.name} {'x'.join(map(str, p.shape))}" for p in detector.get_parameters()]
    assert made == STORED["parameters"][STORED["configs"][name]]
