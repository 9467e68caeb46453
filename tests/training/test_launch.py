"""The supervisor of distributed jobs, with small programs in place of training."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from src.runtime import meeting
from src.runtime.launch import Msrun
from src.runtime.meeting import MeetingError, address_of, hold_port, join_host_0, wait_for_hosts
from src.runtime.workers import Console

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


# msrun as far as the supervisor knows it: options, log files, a scheduler, what it says where a worker fails
MSRUN = """#!{python}
import os, re, subprocess, sys, time
options = dict(re.findall(r"--(\\w+)=(\\S*)", " ".join(sys.argv)))
folder, worker = options["log_dir"], sys.argv[-1]
os.makedirs(folder, exist_ok=True)
def start(name, **environment):
    log = open(f"{{folder}}/{{name}}.log", "w")
    command = [sys.executable, worker]
    return subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True)
print("PORT", options["master_port"], flush=True)
scheduler = start("scheduler", RANK_ID="0", MS_ROLE="MS_SCHED")
ranks = range(int(options["local_worker_num"]))
ps = [start(f"worker_{{r}}", RANK_ID=str(r), MS_ROLE="MS_WORKER") for r in ranks]
while any(p.poll() is None for p in ps):
    failed = [p for p in ps if p.poll()]
    if failed:
        first, code = failed[0].pid, failed[0].poll()
        print(f"Worker process {{first}} exit with exception. Error code: {{code}}.", file=sys.stderr)
        for p in ps:
            p.kill()
    time.sleep(0.2)
scheduler.kill()
if any(p.returncode for p in ps):
    raise RuntimeError("Distributed job exited with exception.")
"""
WORKER = """import os, signal, sys, time
rank, again, folder = os.environ["RANK_ID"], os.environ.get("RCNN_RESTART", "0"), {folder!r}
if os.environ["MS_ROLE"] == "MS_SCHED":
    open(folder + "/scheduler", "w").write(str(os.getpid()))
    exec({scheduler!r})
    time.sleep(600)
open(f"{{folder}}/job_{{rank}}_{{again}}", "w").write(os.environ["RCNN_JOB"])
"""


@pytest.fixture
def msrun(tmp_path):
    """Starts a job of the stand-in, its workers running `worker`; `options` go to the supervisor."""
    script = tmp_path / "msrun"
    script.write_text(MSRUN.format(python=sys.executable))
    script.chmod(0o755)
    started = []

    def start(worker, *options, port=None, name="job", scheduler="", **of_msrun):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "worker.py").write_text(WORKER.format(folder=str(folder), scheduler=scheduler) + worker)
        own = {"worker_num": 2, "local_worker_num": 2, "master_port": port or free_port(), "log_dir": folder / "log"}
        words = [f"--{k}={v}" for k, v in (own | of_msrun).items()]
        command = [sys.executable, "-m", "src.runtime.launch", *options, str(script), *words, str(folder / "worker.py")]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process, folder

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=60)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def end(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def soon(condition, seconds=20):
    """Waits for `condition`; whether it came."""
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    return condition()


REFUSE = "time.sleep(1)\nprint('step 1', flush=True)\nsys.exit(print('error: no such data set', file=sys.stderr) or 2)"


def test_a_refusal_is_told_once_in_one_line(msrun):
    process, folder = msrun(REFUSE, "--restarts", "3")
    status, out, err = end(process)
    assert (status, err) == (2, "error: no such data set\n")
    # of the console the first rank's alone
    assert out.count("step 1") == 1 and "no such data set" not in out
    assert not list(folder.glob("job_*_1"))


def test_what_the_scheduler_is_refused_too_is_told_once(msrun):
    """It runs the workers' script, as far as where it waits for them."""
    line = "error: command line: lerning_rate: unknown key"
    refuse = f"sys.exit(print({line!r}, file=sys.stderr) or 2)\n"
    worker = "time.sleep(2)\n" + refuse
    process, _ = msrun(worker, scheduler=refuse)
    assert end(process)[::2] == (2, line + "\n")
    # and what it alone is refused, too
    process, folder = msrun(SAVING, scheduler=f"time.sleep(2)\n{refuse}", name="alone")
    assert end(process)[::2] == (2, f"{line}\nthe ranks save and stop\n")
    assert len(list(folder.glob("saved_*"))) == 2


def test_a_port_that_is_taken_is_told_at_once(msrun):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, out, err = end(msrun("", port=port)[0])
        assert (status, out) == (2, "")
        assert err == f"error: port {port} is taken; name another MASTER_PORT\n"
        # of those that need none in particular
        process, _ = msrun("time.sleep(1)", "--any_port", port=port, name="any")
        status, out, err = end(process)
        assert status == 0, err
        assert f"PORT {port}\n" not in out and "PORT " in out


def test_jobs_that_start_together_take_a_port_each(msrun):
    port = free_port()
    jobs = [msrun("time.sleep(3)", "--any_port", port=port, name=f"job_{i}") for i in range(3)]
    ended = [end(process) for process, _ in jobs]
    assert [status for status, _, _ in ended] == [0, 0, 0], ended
    ports = [line for _, out, _ in ended for line in out.splitlines() if line.startswith("PORT")]
    assert len(set(ports)) == 3
    # and every worker knows whose it is
    names = [{p.read_text() for p in folder.glob("job_*")} for _, folder in jobs]
    assert all(len(n) == 1 for n in names) and len(set.union(*names)) == 3


SAVING = """
def stop(*_):
    open(f"{folder}/saved_{rank}", "w")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
time.sleep(600)
"""


def test_a_scheduler_that_dies_is_told_and_the_ranks_save(msrun):
    process, folder = msrun(SAVING)
    assert soon(lambda: (folder / "scheduler").is_file() and len(list(folder.glob("job_*"))) == 2)
    time.sleep(2)
    begin = time.monotonic()
    os.kill(int((folder / "scheduler").read_text()), signal.SIGKILL)
    status, _, err = end(process)
    assert time.monotonic() - begin < 10
    assert status == 128 + signal.SIGKILL
    assert err.startswith("error: the scheduler (process ") and "was killed by SIGKILL\nthe ranks save and stop" in err
    assert len(list(folder.glob("saved_*"))) == 2


DYING = (
    "time.sleep(1.5)\nif rank == '1' and int(again) < {times}: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(1.5)\n"
)


def test_a_job_whose_rank_died_starts_again(msrun):
    process, folder = msrun(DYING.format(times=2), "--restarts", "3")
    status, _, err = end(process)
    assert status == 0, err
    assert "status 137: starting again from the last checkpoint (1 of 3)" in err
    assert "status 137: starting again from the last checkpoint (2 of 3)" in err
    # one job, whose earlier logs stay
    assert len({p.read_text() for p in folder.glob("job_*")}) == 1
    assert {p.name for p in (folder / "log").glob("worker_1*")} == {"worker_1.log", "worker_1.log.1", "worker_1.log.2"}


def test_a_job_starts_again_as_often_as_it_may_and_not_after_a_signal(msrun):
    process, folder = msrun(DYING.format(times=9), "--restarts", "1")
    status, _, err = end(process)
    assert status == 128 + signal.SIGKILL and err.count("starting again") == 1
    process, folder = msrun(SAVING, "--restarts", "3", name="stopped")
    assert soon(lambda: len(list(folder.glob("job_*"))) == 2)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    status, _, err = end(process)
    assert status == 143 and "starting again" not in err
    assert len(list(folder.glob("saved_*"))) == 2


def test_a_worker_that_never_came_is_waited_for_as_long_as_said(msrun):
    own = [ip for ip in own_addresses() if not ip.startswith("127.")]
    if not own:
        pytest.skip("this machine has no address but loopback's")
    process, _ = msrun("", "--wait", "2", worker_num=3, node_rank=0, master_addr=own[0], name="waits")
    status, out, err = end(process)
    assert (status, out) == (2, "")
    assert err.startswith("error: 1 of 3 workers didn't come within 2 s; start each of the NODES hosts")
    process, _ = msrun("", worker_num=3, node_rank=0, name="loopback")
    status, _, err = end(process)
    assert status == 2 and "MASTER_ADDR: 127.0.0.1 is 127.0.0.1 here, which other hosts can't reach" in err


def own_addresses():
    return [a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]


# ---------------------------------------------------------------------------------------------------------
# hosts that meet


def host_0(port, told, seconds=10, job="first"):
    """Host 0's part, of one worker of two, in a thread; what it raises goes to `told`."""

    def run():
        try:
            with hold_port("127.0.0.1", port):
                wait_for_hosts("127.0.0.1", port, 1, 2, job, seconds, lambda: False)
            told.append("met")
        except MeetingError as e:
            told.append(str(e))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_hosts_meet_whoever_comes_first():
    for early in (True, False):
        port, told, names = free_port(), [], []
        other = threading.Thread(
            target=lambda port=port, names=names: names.append(
                join_host_0("127.0.0.1", port, 1, 1, 2, 10, lambda: False)
            )
        )
        if early:
            other.start()
            time.sleep(0.5)
        first = host_0(port, told)
        if not early:
            time.sleep(0.5)
            other.start()
        first.join(10)
        other.join(10)
        assert (told, names) == (["met"], ["first"])
        # and the port is free for the scheduler
        with hold_port("127.0.0.1", port):
            pass


def test_those_who_wait_say_for_whom_and_how_long(monkeypatch, capfd, refusal):
    monkeypatch.setattr(meeting, "TELL", 0.2)
    port, told = free_port(), []
    thread = host_0(port, told, seconds=1.5)
    thread.join(10)
    assert "1 of 2 workers didn't come within 1.5 s" in told[0] and "JOIN_TIMEOUT" in told[0]
    assert capfd.readouterr().out.count("waiting for 1 of 2 workers\n") >= 3
    with refusal(MeetingError, f"host 0 at 127.0.0.1:{port} didn't come within 1 s"):
        join_host_0("127.0.0.1", port, 1, 1, 2, 1, lambda: False)
    assert f"waiting for host 0 at 127.0.0.1:{port}" in capfd.readouterr().out
    with refusal(MeetingError, "stopped while waiting"):
        join_host_0("127.0.0.1", port, 1, 1, 2, 60, lambda: True)


def test_a_host_of_another_job_is_refused(refusal):
    port, told = free_port(), []
    thread = host_0(port, told)
    with refusal(MeetingError, "host 0 has a job of 2 workers", "NODES, NODE_RANK and DEVICE_NUM"):
        join_host_0("127.0.0.1", port, 1, 4, 8, 10, lambda: False)
    # nor does what says nothing of the kind disturb
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(100) == b""
    assert join_host_0("127.0.0.1", port, 1, 1, 2, 10, lambda: False) == "first"
    thread.join(10)
    assert told == ["met"]


def test_addresses_that_cant_be_met_at(refusal):
    assert address_of("127.0.0.1", 1) == "127.0.0.1"
    with refusal(MeetingError, "MASTER_ADDR: no such host: no.such.host.invalid"):
        address_of("no.such.host.invalid", 2)
    with refusal(MeetingError, "isn't an address of this host"), hold_port("203.0.113.7", free_port()):
        pass


def test_msruns_options_are_its_own_alone():
    command = ["/v/msrun", "--worker_num", "4", "--join=True", "train.py", "--master_port=7"]
    words = Msrun(command)
    assert words.given == {"worker_num": "4", "join": "True"} and words.number("master_port", 8118) == 8118
    assert words.with_options(master_port=9) == [
        *("/v/msrun", "--worker_num=4", "--join=True", "--master_port=9"),
        *("train.py", "--master_port=7"),
    ]


def test_the_console_keeps_an_error_at_the_end_for_the_end(tmp_path, capfd):
    log = tmp_path / "worker_0.log"
    log.write_text("loss 1\rloss 2\nerror: passing\nmore\nerror: last\n[ERROR] CORE(1): gone\n\n")
    console = Console(log)
    console.copy()
    assert capfd.readouterr().out == "loss 1\rloss 2\nerror: passing\nmore\n"
    console.end("error: other")
    assert capfd.readouterr().out == "error: last\n[ERROR] CORE(1): gone\n\n"
    console = Console(log)
    console.end("rank 0 ended:\n  error: last\n")
    assert "last" not in capfd.readouterr().out
