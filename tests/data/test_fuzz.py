"""A share of the random changes of benchmarks/fuzz.py: every reader of a changed data set sees the same of it."""

import pytest

from benchmarks.fuzz import DifferenceError, Outcome, run_case
from benchmarks.mutations import FORMATS, Mutation
from benchmarks.mutations.files import accents_decomposed, copies_of_images_in_hidden_folders, hidden_folders
from benchmarks.truth import perfect_results
from src.data.loader import BatchMaker

SEED = 20


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("form", FORMATS)
def test_a_changed_data_set_is_read_alike_or_refused(form, number, tmp_path):
    """Equal counts in inspect, loader and truth, and perfect predictions are perfect; run_case raises otherwise."""
    outcome = run_case(form, SEED, number, tmp_path)
    assert outcome.status in ("accepted", "skipped", "refused")
    assert outcome.told or outcome.status == "accepted"


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """Runs the case that `change` makes of a valid set, by default of COCO's."""

    def run(change, benign=False, form="coco") -> Outcome:
        made = [Mutation("here", "change", FORMATS, benign, change)]
        monkeypatch.setattr("benchmarks.fuzz.applicable", lambda form: {"here": made})
        # of an odd number, so that images can be left out
        return run_case(form, 0, 1, tmp_path)

    return run


def coco(data):
    return data.docs["annotations/instances_train2017.json"]


def test_the_valid_set_is_accepted_whole(broken):
    assert broken(lambda data, random: None, benign=True).status == "accepted"


def test_what_is_lost_without_a_word_is_found(broken, monkeypatch):
    """The check itself: a loader that gives an object less than inspect counts."""
    make = BatchMaker.train_batch

    def lossy(self, batch):
        out = make(self, batch)
        out["gt_valid"][:, 0] = False
        return out

    monkeypatch.setattr(BatchMaker, "train_batch", lossy)
    with pytest.raises(DifferenceError, match="inspect says 1[0-9] objects in 5 images, trained"):
        broken(lambda data, random: None)


def test_predictions_that_are_not_perfect_are_found(broken, monkeypatch):
    monkeypatch.setattr("benchmarks.fuzz.perfect_results", lambda truth: perfect_results(truth)[1:])
    with pytest.raises(DifferenceError, match="perfect predictions have bbox AP 0"):
        broken(lambda data, random: None)


def test_no_image_is_told_with_the_file(broken):
    outcome = broken(lambda data, random: coco(data).update(images=[], annotations=[]))
    assert outcome.status == "refused"
    assert "instances_train2017.json: it lists no image" in outcome.told


def test_a_name_that_no_file_can_have(broken):
    outcome = broken(lambda data, random: coco(data)["images"][0].update(file_name="a\0.jpg"))
    assert outcome.status == "skipped"
    assert "file name" in outcome.told


def test_images_without_annotated_size(broken):
    def change(data, random):
        for image in coco(data)["images"]:
            del image["height"], image["width"]

    assert broken(change, benign=True).status == "accepted"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("change", [hidden_folders, copies_of_images_in_hidden_folders])
def test_copies_in_hidden_folders_are_no_data(broken, form, change):
    """As Jupyter and file browsers leave them; not even where a name has to be looked for."""

    def both(data, random):
        change(data, random)
        if form in ("coco", "txt"):
            accents_decomposed(data, random)

    assert broken(both, benign=True, form=form).status == "accepted"
