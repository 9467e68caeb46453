"""The supervisor of distributed jobs, with small programs in place of training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
# what msrun does, in small: starts workers in sessions of their own, each with its rank, and waits for all of them
STARTER = """
import os, subprocess, sys, time
ps = [subprocess.Popen([sys.executable, sys.argv[1]], env=os.environ | {"RANK_ID": str(r), "MS_ROLE": "MS_WORKER"},
                       stdout=open(f"{sys.argv[2]}/worker_{r}.log", "w"), stderr=subprocess.STDOUT,
                       start_new_session=True) for r in range(3)]
print("PIDS", *[p.pid for p in ps], flush=True)
while any(p.poll() is None for p in ps):
    time.sleep(1)
sys.exit(any(p.returncode for p in ps))
"""


class Job:
    def __init__(self, folder, worker):
        (folder / "starter.py").write_text(STARTER)
        (folder / "worker.py").write_text(worker)
        command = [sys.executable, "-m", "src.runtime.launch", sys.executable]
        command += [str(folder / "starter.py"), str(folder / "worker.py"), str(folder)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.pids = [int(p) for p in self.process.stdout.readline().split()[1:]]

    def end(self):
        """Exit status and console; no worker may be left."""
        _, console = self.process.communicate(timeout=60)
        left = [p for p in self.pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
        for p in left:
            os.kill(p, signal.SIGKILL)
        assert left == []
        return self.process.returncode, console


@pytest.fixture
def start(tmp_path):
    return lambda worker: Job(tmp_path, worker)


def test_worker_killed_from_outside(start):
    job = start("import time\nprint('step 7 of rank', flush=True)\ntime.sleep(600)")
    time.sleep(2)
    os.kill(job.pids[1], signal.SIGKILL)
    status, console = job.end()
    assert status == 128 + signal.SIGKILL
    assert "rank 1" in console and "SIGKILL" in console and "step 7 of rank" in console


def test_worker_that_raises(start):
    job = start(
        "import os, sys, time\ntime.sleep(1)\n"
        "if os.environ['RANK_ID'] == '2': sys.exit('error: no such data set')\ntime.sleep(600)"
    )
    status, console = job.end()
    assert status == 1
    assert "rank 2" in console and "error: no such data set" in console


def test_workers_that_finish(start):
    status, console = start("import time\ntime.sleep(1)").end()
    assert (status, console) == (0, "")


def test_sigterm_reaches_workers_which_save(start, tmp_path):
    job = start(
        "import os, signal, sys, time\n"
        "def stop(*_):\n    time.sleep(1)\n"
        f"    open(f'{tmp_path}/saved_' + os.environ['RANK_ID'], 'w')\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\ntime.sleep(600)"
    )
    time.sleep(2)
    job.process.send_signal(signal.SIGTERM)
    status, _ = job.end()
    assert status == 143
    assert len(list(tmp_path.glob("saved_*"))) == 3


def test_command_that_is_not_there():
    command = [sys.executable, "-m", "src.runtime.launch", "no-such-msrun", "--worker_num=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "no-such-msrun" in done.stderr


def test_supervisor_that_is_killed_leaves_nothing(start, tmp_path):
    job = start(
        "import os, signal, sys, time\n"
        f"def stop(*_):\n    open(f'{tmp_path}/saved_' + os.environ['RANK_ID'], 'w')\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\ntime.sleep(600)"
    )
    time.sleep(2)
    family = psutil.Process(job.process.pid).children(recursive=True)
    job.process.kill()
    gone, left = psutil.wait_procs(family, timeout=30)
    assert left == []
    assert len(list(tmp_path.glob("saved_*"))) == 3
    job.end()
