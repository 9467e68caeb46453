"""Two ranks under msrun on this machine's CPU, against one process; and what the ranks say when something is wrong."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from multiprocessing import Pipe
from pathlib import Path

import mindspore as ms
import numpy as np
import psutil
import pytest

from src.checkpoints.files import load_checkpoint
from src.data.loader import EvalLoader, TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.data.shapes import make_shapes
from src.runtime import ranks
from src.runtime.errors import UserError
from src.runtime.launch import JOB_VARIABLE
from src.runtime.newer import zip_equal
from src.runtime.ranks import Group, join_group
from src.runtime.workers import asks_for_several

ROOT = Path(__file__).parents[2]
# Frozen batch norms, for a rank's batch statistics are its own; samplers that take all there is. A small learning rate,
# for random weights' scores nearly tie: at a high one, float32's last bits decide on proposals by the fifth step.
KEYS = {
    "img_width": 192,
    "img_height": 128,
    "epoch_size": 1,
    "backbone.width_multiplier": 0.25,
    "backbone.norm_eval": True,
    "train_cfg.rcnn.mask_buckets": 1,
    "train_cfg.rpn.sampler.num": 8192,
    "train_cfg.rcnn.sampler.num": 512,
    "opt_type": "sgd",
    "lr": 0.002,
    "warmup_step": 0,
    "run_eval": True,
}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def msrun(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Two workers under the supervisor."""
    command = [sys.executable, "-m", "src.runtime.launch", str(Path(sys.executable).with_name("msrun"))]
    command += ["--worker_num=2", "--local_worker_num=2", f"--master_port={free_port()}", f"--log_dir={folder}/log"]
    # msrun starts `python` of PATH
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [*command, "--join=True", "--cluster_time_out=60", *words],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Makes train.py's arguments."""
    root = make_shapes(tmp_path_factory.mktemp("twelve") / "root", train=12, val=5, seed=5)
    records = tmp_path_factory.mktemp("records")

    def make(outputs: Path, **more) -> list[str]:
        places = {"train_dataset": root, "val_dataset": root, "mindrecord_dir": records, "train_outputs": outputs}
        return ["--config_path", "configs/shapes.yaml", *(f"--{k}={v}" for k, v in (KEYS | places | more).items())]

    return make


SYNCED = {"backbone.norm": "sync", "backbone.norm_eval": "false", "neck.fpn.norm": "sync", "mask_head.norm": "sync"}
SYNCED |= {"bbox_head.norm": "sync", "bbox_head.num_convs": 1, "bbox_head.conv_out_channels": 32}


@pytest.mark.full
@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({}, id="frozen norms"),
        pytest.param(SYNCED, id="synced norms"),
        pytest.param({"ema_decay": 0.5}, id="moving average"),
    ],
)
def test_two_ranks_train_as_one_process_does(words, tmp_path, keys):
    alone = [sys.executable, "train.py", *words(tmp_path / "one", batch_size=2, **keys)]
    subprocess.run(alone, cwd=ROOT, check=True, capture_output=True, timeout=400)
    done = msrun(tmp_path, "train.py", *words(tmp_path / "two", batch_size=1, run_distribute="true", **keys))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    runs = [tmp_path / name / "shapes" for name in ("one", "two")]
    logs = [[json.loads(line) for line in (r / "metrics.jsonl").read_text().splitlines()] for r in runs]
    steps = [row for row in logs[0] if "total_loss" in row]
    assert len(steps) >= 5 and len(logs[0]) == len(logs[1])
    # batch statistics of random weights, at maps of few pixels, pass on float32's last bits: pixels changed by 1e-7 of
    # themselves change gradients by 1 % and more. The gradients of such norms are test_norms_of_ranks.py's.
    exact = keys is not SYNCED
    steps = steps if exact else steps[:1]
    for one, two in zip(steps, logs[1]):
        for name in (n for n in one if n.endswith("_loss")):
            assert two[name] == pytest.approx(one[name], abs=1e-5), (name, one["step"])
    assert len(list((runs[1] / "checkpoints").glob("*.ckpt"))) == 1
    weights = [load_checkpoint(next((r / "checkpoints").glob("*.ckpt"))) for r in runs]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items() if exact else ():
        np.testing.assert_allclose(weights[1][name], value, rtol=0, atol=1e-5, err_msg=name)
    # the ranks' shares of the evaluation, put together in the data set's order
    results = [json.loads((r / "results_epoch_1.json").read_text()) for r in runs]
    ids = [[r["image_id"] for r in rows] for rows in results]
    assert ids[1] == (ids[0] if exact else sorted(ids[1]))
    assert len(set(ids[1])) == 5


@pytest.mark.full
def test_one_process_goes_on_with_what_two_ranks_began(words, tmp_path):
    """And the run's saved config, which says run_distribute, forbids neither that nor an evaluation."""
    keys = {"batch_size": 1, "run_distribute": "true", "epoch_size": 2, "run_eval": "false"}
    both_ranks = words(tmp_path / "two", **keys, save_every_epochs=1, keep_checkpoint_max=2)
    done = msrun(tmp_path, "train.py", *both_ranks)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    runs = [tmp_path / name / "shapes" for name in ("two", "one")]
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    [first, last] = sorted((runs[1] / "checkpoints").glob("*.ckpt"))
    alone = [sys.executable, "train.py", "--resume", str(first)]
    done = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "run_distribute: true in the config; started alone, this is one process" in done.stdout
    assert "resuming with ranks 2 -> 1: accumulate 1 -> 2, so that a step has the same 2 images" in done.stdout
    weights = [load_checkpoint(r / "checkpoints" / last.name) for r in runs]
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=0, atol=1e-5, err_msg=name)
    evaluate = ["eval.py", "--config_path", str(runs[0] / "config.yaml"), "--checkpoint_path", str(last)]
    done = subprocess.run([sys.executable, *evaluate], cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_rank_with_other_weights_ends_the_job(words, tmp_path):
    script = tmp_path / "other_seed.py"
    script.write_text(
        "import os, runpy, sys\nsys.path.insert(0, os.getcwd())\n"
        "sys.argv[0] = 'train.py'\nsys.argv += ['--seed', os.environ.get('MS_NODE_ID', '0')]\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    done = msrun(tmp_path, str(script), *words(tmp_path / "two", batch_size=1, run_distribute="true"))
    assert done.returncode == 2, done.stderr[-3000:]
    assert "error: the weights of rank 1 differ from rank 0's before the first step" in done.stderr


def test_ranks_share_the_images_of_an_epoch(shapes_config):
    config = shapes_config(batch_size=2)
    folder = ensure_mindrecord(config, "train", training=True)
    shares = [TrainLoader(config, folder, rank, 2).epoch_rows(3)[0].tolist() for rank in (0, 1)]
    together = [row for pair in zip_equal(*shares) for row in pair]
    assert len(set(together)) == len(together) == 2 * 2 * len(TrainLoader(config, folder, 0, 2))
    # and in the order of one process with batches of four
    alone = TrainLoader(shapes_config(batch_size=4), folder).epoch_rows(3)[0].tolist()
    assert together == alone[: len(together)]


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_share_the_images_of_an_evaluation(shapes_config, count):
    config = shapes_config(test_batch_size=2)
    folder = ensure_mindrecord(config, "val", training=False)
    seen = []
    for rank in range(count):
        for batch in EvalLoader(config, folder, rank, count):
            seen += batch["image_id"][batch["valid"]].tolist()
    whole = [i for b in EvalLoader(config, folder) for i in b["image_id"][b["valid"]].tolist()]
    assert sorted(seen) == sorted(whole)


def both(call):
    """What `call(group)` returns or raises on each of two connected ranks."""
    ends, out = Pipe(), [None, None]

    def run(rank):
        try:
            out[rank] = call(Group(rank, 2, [ends[rank]]))
        except UserError as e:
            out[rank] = e

    threads = [threading.Thread(target=run, args=(r,)) for r in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    return out


def test_what_rank_0_alone_does_all_learn_of():
    assert both(lambda g: g.exchange(g.rank * 10)) == [[0, 10], [0, 10]]
    assert both(lambda g: g.gather("ab"[g.rank])) == [["a", "b"], []]
    assert both(lambda g: g.from_first(lambda: f"made by {g.rank}")) == ["made by 0", "made by 0"]

    def refuse():
        raise UserError("no space")

    assert [str(e) for e in both(lambda g: g.from_first(refuse))] == ["no space", "no space"]


def test_rank_that_is_gone_is_named(refusal):
    ends = Pipe()
    ends[1].close()
    with refusal(UserError, "rank 0", "rank 1 has ended"):
        Group(0, 2, [ends[0]]).barrier()


def test_started_otherwise_than_configured(shapes_config, monkeypatch, refusal):
    for name in ("MS_ROLE", "MS_WORKER_NUM", "OMPI_COMM_WORLD_SIZE", "RANK_TABLE_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert join_group(False).size == 1
    # a run's saved config says how it was started, and not how it has to be
    assert join_group(True, asked=False).size == 1
    assert asks_for_several(["train.py", "--run_distribute=true"])
    assert asks_for_several(["--lr", "1", "--run_distribute", "true"])
    assert not asks_for_several(["train.py", "--resume", "outputs/run_distribute"])
    with refusal(UserError, "run_distribute", "msrun"):
        join_group(True)
    monkeypatch.setenv("MS_WORKER_NUM", "2")
    with refusal(UserError, "--run_distribute true"):
        join_group(False)


def test_ranks_of_two_jobs_are_told_apart(monkeypatch, refusal):
    monkeypatch.setenv(JOB_VARIABLE, "first")
    first, other = ranks.job_mark(), 7

    class Gathered:
        def __call__(self, row):
            rows = np.stack([row.asnumpy(), row.asnumpy()])
            rows[1, 0] = other
            return ms.Tensor(rows.reshape(-1))

    monkeypatch.setattr(ranks, "AllGather", Gathered)
    with refusal(UserError, "rank 1 is of another job than rank 0", "MASTER_PORT"):
        ranks.connect(0, 2)
    monkeypatch.delenv(JOB_VARIABLE)
    assert first > 0 and ranks.job_mark() == 0


def test_a_ranks_address_is_one_that_other_hosts_reach(monkeypatch):
    """Also where a host's own name leads to loopback, as Debian's /etc/hosts has it."""
    own = [a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]
    if all(ip.startswith("127.") for ip in own):
        pytest.skip("this machine has no address but loopback's")
    monkeypatch.setattr(socket, "gethostname", lambda: "127.0.1.1")
    monkeypatch.delenv("MS_SCHED_HOST", raising=False)
    assert not ranks.own_address().startswith("127.")
    # of a job on one host, the scheduler's own
    monkeypatch.setenv("MS_SCHED_HOST", "127.0.0.1")
    assert ranks.own_address() == "127.0.0.1"
