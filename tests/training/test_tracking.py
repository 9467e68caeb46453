"""What is logged where: each line once, numbers that can be read back, and one line where a package isn't there."""

import base64
import http.server
import importlib.util
import json
import math
import threading

import cv2
import pytest

from src.config import load_config, save_config
from src.runtime.errors import UserError
from src.training.tracking import (
    Interval,
    LossLog,
    MetricsFile,
    TensorBoard,
    demand_packages,
    evaluations,
    format_losses,
    make_trackers,
)
from tests.training.names import LOSS_NAMES

METRICS = {"bbox AP": 0.25, "bbox APs": -1.0, "segm AP": 0.125}
CLASSES = {"bbox": {"AP AR": {"AP": 0.5, "AP50": None, "best": {"score": 0.3, "f1": 0.75}}}}


def follow(config, epochs, resumed=None):
    """Two steps an epoch, the loss 1 / step, and an evaluation each."""
    trackers = make_trackers(config, 2, resumed)
    for epoch in epochs:
        for step in (1, 2):
            losses = dict.fromkeys(LOSS_NAMES, 1 / (2 * epoch - 2 + step))
            for t in trackers:
                t.losses(epoch, step, losses, {"learning_rate": 0.1})
        for t in trackers:
            t.evaluation(epoch, 2, METRICS, CLASSES)
            t.epoch_end(epoch)
    for t in trackers:
        t.close()


def test_metrics_file_and_curve(shapes_config):
    config = shapes_config()
    follow(config, [1, 2])
    rows = [json.loads(line) for line in (config.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(r["epoch"], r["step"], "bbox AP" in r) for r in rows] == [
        (1, 1, False),
        (1, 2, False),
        (1, 2, True),
        (2, 1, False),
        (2, 2, False),
        (2, 2, True),
    ]
    assert rows[4]["total_loss"] == 0.25 and rows[4]["learning_rate"] == 0.1
    assert rows[2]["segm AP"] == 0.125
    assert rows[2]["classes"] == CLASSES and "classes" not in rows[1]
    assert evaluations(config.output_dir / "metrics.jsonl") == {1: METRICS, 2: METRICS}
    assert cv2.imread(str(config.output_dir / "loss_curve.png")) is not None


def test_losses_that_are_not_finite_are_no_json(shapes_config):
    config = shapes_config()
    trackers = make_trackers(config, 2, None)
    for t in trackers:
        t.losses(1, 1, dict.fromkeys(LOSS_NAMES, math.nan), {})
        t.close()
    (line,) = (config.output_dir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))["total_loss"] is None


def test_mean_over_an_interval_leaves_out_steps_that_overflowed():
    interval = Interval(3)
    full = [interval.add(dict.fromkeys(LOSS_NAMES, v)) for v in (1.0, math.inf, 2.0)]
    assert full == [False, False, True]
    assert interval.mean() == dict.fromkeys(LOSS_NAMES, 1.5)
    assert interval.pending == []


def test_a_detector_without_masks_is_told_of_no_mask_loss(tmp_path):
    losses = {name: 0.25 for name in LOSS_NAMES if name != "rcnn_mask_loss"}
    interval = Interval(2)
    interval.add(losses)
    interval.add(losses)
    means = interval.mean()
    assert means == losses
    line = format_losses(1, 2, means)
    assert "mask" not in line
    assert "rcnn_loss: 0.50000" in line and line.endswith("total_loss: 0.25000")


def test_tensorboard_reads_each_step_once(shapes_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = shapes_config(tensorboard=True)
    follow(config, [1, 2])
    follow(config, [2, 3], resumed=(1, 2))  # killed in epoch 2, of which nothing was saved
    events = EventAccumulator(str(config.output_dir / "tensorboard"))
    events.Reload()
    losses = events.Scalars("train/total_loss")
    assert [e.step for e in losses] == [1, 2, 3, 4, 5, 6]
    assert [e.value for e in losses] == pytest.approx([1 / n for n in range(1, 7)])
    assert [(e.step, e.value) for e in events.Scalars("val/bbox AP")] == [(2, 0.25), (4, 0.25), (6, 0.25)]


def test_mlflow_keeps_one_run_over_a_resume(shapes_config, monkeypatch):
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = shapes_config(mlflow=True, data_url="obs://me:hidden@bucket/data")
    follow(config, [1])
    follow(config, [2], resumed=(1, 2))
    client = mlflow.MlflowClient()
    (experiment,) = (e for e in client.search_experiments() if e.name == config.detector)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == config.brief and run.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "total_loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
        (4, 0.25),
    ]
    assert run.data.metrics["segm AP"] == 0.125
    assert run.data.params["backbone.type"] == config.backbone.type
    assert run.data.params["data_url"] == "obs://me:***@bucket/data"


def test_mlflow_server_that_is_not_there(shapes_config, refusal):
    config = shapes_config(mlflow=True, mlflow_tracking_uri="http://127.0.0.1:9")
    with refusal(UserError, "mlflow_tracking_uri http://127.0.0.1:9", "start the server"):
        make_trackers(config, 2, None)


@pytest.fixture
def server(monkeypatch):
    """An MLflow server that lets nobody in: its address without the scheme, and the logins that it was given."""
    logins = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            logins.append(base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode())
            body = f"no entry to {self.headers.get('Host')}{self.path} for {logins[-1]}".encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name that http.server looks for

        def log_message(self, *_):
            pass

    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_port}", logins
        running.shutdown()


def test_a_password_reaches_the_server_and_no_message(shapes_config, server, refusal, monkeypatch, tmp_path):
    place, logins = server
    config = shapes_config(mlflow=True, mlflow_tracking_uri=f"http://me:hidden%40word@{place}")
    with refusal(UserError, f"mlflow_tracking_uri http://me:***@{place}", "can't log there"):
        make_trackers(config, 2, None)
    assert set(logins) == {"me:hidden@word"}
    with pytest.raises(UserError) as error:
        make_trackers(config, 2, None)
    assert "hidden" not in str(error.value)
    # a resumed run's own config has no password: the environment says it
    save_config(config, tmp_path / "config.yaml")
    assert "hidden" not in (tmp_path / "config.yaml").read_text()
    own = load_config(tmp_path / "config.yaml")
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
    logins.clear()
    with refusal(UserError, "keeps no passwords", "MLFLOW_TRACKING_PASSWORD"):
        make_trackers(own, 2, (1, 2))
    assert not logins
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "other word")
    with refusal(UserError, "can't log there"):
        make_trackers(own, 2, (1, 2))
    assert set(logins) == {"me:other word"}


def test_nothing_that_a_training_writes_holds_a_password(stub_trainer, capsys):
    keys = {
        "mlflow_tracking_uri": "http://me:hidden1@127.0.0.1:9/?token=hidden2",
        "data_url": "obs://bucket/data?Signature=hidden3",
        "train_url": "https://hidden4@host/out",
    }
    stub_trainer(**keys).run()
    # whatever was masked before doesn't count as changed
    stub_trainer(resume=True, **keys, epoch_size=3).run()
    folder = stub_trainer(**keys).config.output_dir
    written = [p for p in folder.rglob("*") if p.is_file()]
    assert {"config.yaml", "loss_0.log"} <= {p.name for p in written} and any(p.suffix == ".ckpt" for p in written)
    assert not [p for p in written if b"hidden" in p.read_bytes()]
    told = capsys.readouterr()
    assert "hidden" not in told.out + told.err
    assert "data_url" not in told.out


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_missing_package_is_told(shapes_config, monkeypatch, refusal, name):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == name else found(n))
    with refusal(UserError, name, "requirements-tracking.txt"):
        demand_packages(shapes_config(**{name: True}))


@pytest.mark.parametrize("kind", [LossLog, MetricsFile])
def test_a_full_disk_ends_in_one_line(tmp_path, refusal, kind):
    (tmp_path / "log").symlink_to("/dev/full")
    log = kind(tmp_path / "log", None)
    with refusal(UserError, tmp_path / "log", "No space left", "--resume"):
        log.losses(1, 1, dict.fromkeys(LOSS_NAMES, 1.0), {})
    log.close()


def test_a_full_disk_below_tensorboard_ends_in_one_line(tmp_path, refusal):
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path / "tensorboard", 4, None)
    board.writer._writer = open("/dev/full", "wb")  # noqa: SIM115 - the file below the records
    with refusal(UserError, board.path, "No space left", "--resume"):
        board.losses(1, 1, dict.fromkeys(LOSS_NAMES, 1.0), {})
    board.close()


def test_the_last_line_of_an_epoch_tells_the_rate_that_was_used(stub_trainer):
    """The optimizer doesn't count steps that were left out."""
    trainer = stub_trainer(log_every=3, epoch_size=1, warmup_step=4)
    trainer.state.skipped = 2
    trainer.run()
    row = json.loads((trainer.config.output_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert (row["epoch"], row["step"]) == (1, 4) and row["learning_rate"] == pytest.approx(trainer.rates[1])
