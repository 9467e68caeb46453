"""Pictures show what they were given, where it is."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from src.drawing.curves import CurveError, plot_loss_curve, read_loss_log, running_steps
from src.drawing.objects import draw_detections, draw_ground_truth, mask_layer, side_by_side
from src.evaluation.pictures import draw_records

HEIGHT, WIDTH = 240, 320
BOX = [100, 80, 220, 180]
NAMES = ["background", "cat", "dog"]


@pytest.fixture
def image():
    return np.full((HEIGHT, WIDTH, 3), 128, np.uint8)


def disc(cx=160, cy=130, radius=45):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (((x - cx) ** 2 + (y - cy) ** 2) < radius**2).astype(np.uint8)


def changed(before, after):
    return (before != after).any(2)


def test_a_detection_is_drawn_where_it_is(image):
    given = image.copy()
    out = draw_detections(image, [BOX], [0.9], [1], [mask_layer([rle.encode(np.asfortranarray(disc()))])], NAMES)
    assert out.shape == image.shape
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(image, given)
    touched = changed(image, out)
    assert touched[130, 160]  # the mask's middle
    assert touched[80, 150]  # the box's edge
    assert touched[150, 100]
    assert not touched[90, 110]  # in the box, beside the mask
    assert not touched[200:].any()
    assert touched[:80].any()  # the label above


def test_masks_are_translucent(image):
    image[:, 160:] = 30
    out = draw_detections(image, [BOX], [0.9], [1], [mask_layer(disc()[None])], NAMES).astype(int)
    difference = out[130, 140] - out[130, 180]
    assert (difference > 30).all()  # the picture shows through


def test_bitmap_and_rle_look_the_same(image):
    bitmap = disc()
    a = draw_detections(image, [BOX], [0.9], [1], [mask_layer(bitmap[None])], NAMES)
    b = draw_detections(image, [BOX], [0.9], [1], [mask_layer([rle.encode(np.asfortranarray(bitmap))])], NAMES)
    np.testing.assert_array_equal(a, b)


def test_threshold_hides(image):
    shown = draw_detections(image, [BOX, [5, 200, 50, 235]], [0.9, 0.3], [1, 2], (), NAMES, score_thr=0.5)
    np.testing.assert_array_equal(shown, draw_detections(image, [BOX], [0.9], [1], (), NAMES))
    np.testing.assert_array_equal(draw_detections(image, [BOX], [0.3], [1], (), NAMES), image)


def test_classes_have_their_colours(image):
    outs = [draw_detections(image, [BOX], [0.9], [k], [mask_layer(disc()[None])], NAMES) for k in (1, 2)]
    assert np.abs(outs[0][130, 160].astype(int) - outs[1][130, 160]).max() > 40


def test_name_and_score_are_in_the_label(image):
    def label(text_name, score):
        return draw_detections(image, [BOX], [score], [1], (), ["", text_name])[60:80]

    assert changed(label("cat", 0.9), label("cat", 0.8)).any()
    assert changed(label("cat", 0.9), label("cow", 0.9)).any()


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_labels_are_legible_on_any_background(shade):
    """The text stands on a plate of its own, dark on light or light on dark."""
    image = np.full((HEIGHT, WIDTH, 3), shade, np.uint8)
    for label in range(1, 12):
        out = draw_ground_truth(image, [[100, 80, 220, 180]], [label], (), ["w"] * 20)
        plate = cv2.cvtColor(out[62:79, 101:110], cv2.COLOR_BGR2GRAY).astype(int)
        assert plate.max() - plate.min() > 80


def test_labels_stay_in_the_picture_and_apart(image):
    boxes = [[0, 0, 60, 40], [300, 220, 320, 240], [290, 0, 320, 30], [100, 80, 160, 120], [102, 82, 162, 122]]
    out = draw_detections(image, boxes, [0.9] * 5, [1, 2, 1, 2, 1], (), NAMES)
    for box in boxes[:3]:
        x1, y1, x2, y2 = box
        around = changed(image, out)[max(y1 - 20, 0) : y2 + 20, max(x1 - 70, 0) : x2 + 70]
        assert around.sum() > 2 * (x2 - x1 + y2 - y1)  # more than the box alone


def test_boxes_beyond_the_picture_and_empty_masks(image):
    boxes = [[-50, -50, 400, 300], [400, 300, 500, 400], [10, 10, 10, 10]]
    out = draw_detections(
        image, boxes, [0.9] * 3, [1, 2, 1], [mask_layer(np.zeros((3, HEIGHT, WIDTH), np.uint8))], NAMES
    )
    assert out.shape == image.shape


def test_nothing_to_draw(image):
    np.testing.assert_array_equal(draw_detections(image, np.zeros((0, 4)), [], []), image)
    np.testing.assert_array_equal(draw_records(image, [], {}), image)


def test_unnamed_class(image):
    assert changed(image, draw_ground_truth(image, [BOX], [77], (), NAMES)).any()


def test_zoom(image):
    out = draw_detections(image, [BOX], [0.9], [1], [mask_layer(disc()[None])], NAMES, zoom=2)
    assert out.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    touched = changed(np.full_like(out, 128), out)
    assert touched[260, 320]
    assert touched[160, 300]
    assert not touched[182, 222]


def test_records_of_results_and_annotations(image):
    polygon = [[120.0, 100.0, 200.0, 100.0, 200.0, 160.0, 120.0, 160.0]]
    crowd = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    crowd[200:230, 10:60] = 1
    counts, value, run = [], 0, 0
    for v in crowd.ravel(order="F"):
        if v != value:
            counts, value, run = [*counts, run], v, 0
        run += 1
    counts.append(run)
    annotations = [
        {"bbox": [100, 80, 120, 100], "category_id": 5, "segmentation": polygon},
        {
            "bbox": [10, 200, 50, 30],
            "category_id": 5,
            "iscrowd": 1,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts},
        },
    ]
    touched = changed(image, draw_records(image, annotations, {5: "cat"}))
    assert touched[130, 160]
    assert touched[215, 30]
    result = annotations[0] | {"score": 0.4, "segmentation": rle.encode(np.asfortranarray(disc()))}
    assert not changed(image, draw_records(image, [result], {5: "cat"}, score_thr=0.5)).any()
    assert changed(image, draw_records(image, [result], {5: "cat"}, score_thr=0.3))[130, 160]


@pytest.mark.parametrize("category", [0, 1])
def test_a_crowd_is_called_so_whatever_its_id(image, category):
    crowd = {"bbox": [100, 80, 120, 100], "category_id": category, "iscrowd": 1}
    one = draw_records(image, [crowd], {category: "cat"})
    # grey and named "cat crowd", as no class is
    np.testing.assert_array_equal(
        one, draw_detections(image, [[100, 80, 220, 180]], None, [-7], class_names={-7: "cat crowd"})
    )
    assert (one != draw_records(image, [crowd | {"iscrowd": 0}], {category: "cat"})).any()


def test_side_by_side(image):
    right = np.full((HEIGHT, 200, 3), 60, np.uint8)
    out = side_by_side(image, right, ("truth", "found"))
    assert out.shape[0] > HEIGHT
    assert out.shape[1] >= WIDTH + 200
    np.testing.assert_array_equal(out[-HEIGHT:, :WIDTH], image)
    np.testing.assert_array_equal(out[-HEIGHT:, -200:], right)
    head = out[:-HEIGHT]
    assert (head[:, :WIDTH] < 128).any()  # both captions are written
    assert (head[:, -200:] < 128).any()


# ---- losses

NAMES_OF_LOSSES = "rpn_loss rcnn_loss rpn_cls_loss rpn_reg_loss rcnn_cls_loss rcnn_reg_loss rcnn_mask_loss".split()


def log_text(epochs=3, steps=20):
    lines = []
    for e in range(1, epochs + 1):
        for s in range(1, steps + 1):
            value = 2 / (1 + 0.1 * ((e - 1) * steps + s))
            parts = ", ".join(f"{n}: {value / 7:.5f}" for n in NAMES_OF_LOSSES)
            lines.append(f"epoch: {e} step: {s}, {parts}, total_loss: {value:.5f}\n")
    return "".join(lines)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "loss_0.log"
    path.write_text(log_text())
    return path


def test_log_is_read(log):
    rows = read_loss_log(log)
    assert len(rows) == 60
    assert (rows[20]["epoch"], rows[20]["step"]) == (2, 1)
    assert rows[0]["total_loss"] == pytest.approx(2 / 1.1, abs=1e-5)
    assert set(NAMES_OF_LOSSES) < rows[0].keys()


def test_a_line_cut_short_is_left_out(log):
    log.write_text(log_text()[:-20])
    assert len(read_loss_log(log)) == 59


@pytest.mark.parametrize("damaged", ["epoch: 1 step: 9, total_loss: banana", "epoch: 1 st", "\x00\x00\x00"])
def test_a_damaged_line_is_named(log, refusal, damaged):
    lines = log_text().splitlines()
    lines[8] = damaged
    log.write_text("\n".join(lines) + "\n")
    with refusal(CurveError, "loss_0.log, line 9"):
        read_loss_log(log)


def test_steps_run_on_through_the_epochs(log):
    steps, ends = running_steps(read_loss_log(log))
    assert steps.tolist() == list(range(1, 61))
    assert ends == [20, 40, 60]
    # a run that goes on: its last epoch isn't done
    assert running_steps(read_loss_log(log)[:50])[1] == [20, 40]
    assert running_steps(read_loss_log(log)[:5])[1] == [5]
    through = [{"epoch": e, "step": 10 * e + s} for e in (0, 1) for s in range(10)]
    assert running_steps(through)[0].tolist() == list(range(20))


@pytest.mark.parametrize("ap", [None, {1: {"bbox AP": 0.1, "segm AP": 0.05}, 3: {"bbox AP": 0.4}}])
def test_curve_is_a_picture(log, tmp_path, ap):
    out = tmp_path / "deep" / "curve.png"
    plot_loss_curve(log, out, ap)
    picture = cv2.imread(str(out))
    assert picture.shape[0] >= 500
    assert picture.shape[1] >= 800
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_curve_of_one_step_and_of_losses_that_are_zero_or_not_finite(tmp_path):
    plot_loss_curve([{"epoch": 1, "step": 1, "total_loss": 1.0}], tmp_path / "one.png")
    rows = [
        {"epoch": 1, "step": i + 1, "total_loss": v, "rpn_loss": 0.0} for i, v in enumerate([1, np.nan, 0.5, np.inf])
    ]
    plot_loss_curve(rows, tmp_path / "odd.png")
    assert cv2.imread(str(tmp_path / "one.png")) is not None
    assert cv2.imread(str(tmp_path / "odd.png")) is not None


def test_logs_and_places_that_cannot_be_used(log, tmp_path, refusal):
    with refusal(CurveError, tmp_path / "none.log", "can't read"):
        plot_loss_curve(tmp_path / "none.log", tmp_path / "a.png")
    (tmp_path / "empty.log").write_text("nothing here\n")
    with refusal(CurveError, "empty.log", "no line of losses"):
        plot_loss_curve(tmp_path / "empty.log", tmp_path / "a.png")
    (tmp_path / "binary.log").write_bytes(b"epoch: 1 step: 1, \xff\xfe\n")
    with refusal(CurveError, "binary.log", "not text"):
        plot_loss_curve(tmp_path / "binary.log", tmp_path / "a.png")
    with refusal(CurveError, "loss_0.log/a.png", "can't write"):
        plot_loss_curve(log, log / "a.png")
    with refusal(CurveError, "no losses"):
        plot_loss_curve([], tmp_path / "a.png")
