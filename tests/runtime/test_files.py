"""Files whole or not there; folders held by one process, until it ends in whatever way."""

import os
import signal
import subprocess
import sys

import pytest

from src.runtime.errors import UserError
from src.runtime.files import InUseError, beside, hold, remove_leftovers, whole


def test_a_failure_leaves_the_older_and_nothing_beside(tmp_path):
    path = tmp_path / "a [1].json"
    path.write_text("old")
    with pytest.raises(KeyError), whole(path) as written:
        written.write_text("new")
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == "old"
    with whole(path) as written:
        written.write_text("new")
        assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == "new"


def test_a_disk_that_is_full_is_told(tmp_path, refusal):
    beside(tmp_path / "a.json").symlink_to("/dev/full")
    with refusal(UserError, tmp_path / "a.json", "No space left", "name another"), whole(tmp_path / "a.json") as p:
        p.write_text("x")
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_never_replaced(tmp_path, refusal):
    """A rename would remove it: for root also /dev/null itself."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "null.json").symlink_to("/dev/null")
    for name, what in (("pipe.json", "pipe"), ("null.json", "device")):
        with refusal(UserError, tmp_path / name, what, "name another"), whole(tmp_path / name) as written:
            written.write_text("x")
    assert (tmp_path / "pipe.json").is_fifo() and (tmp_path / "null.json").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_limit_is_no_full_disk(tmp_path):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    code += "from pathlib import Path; from src.runtime.errors import UserError; from src.runtime.files import whole\n"
    code += "try:\n    with whole(Path('a')) as p: p.write_text('x' * 200)\nexcept UserError as e: print(e)"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "a: can't write: File too large; raise the limit of a file's size (ulimit -f)" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".mp4", ""])
def test_what_killed_processes_left_goes_that_of_living_ones_stays(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [tmp_path / f"a.writing-{pid}{suffix}" for pid in (dead.pid, os.getppid())]
    for p in left:
        p.write_text("half")
    remove_leftovers(path)
    assert [p.exists() for p in left] == [False, True]


HOLDER = """
import sys, time
from pathlib import Path
from src.runtime.files import hold
with hold(Path(sys.argv[1]), "the run", "wait", shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a process that holds tmp_path/lock."""
    processes = []

    def begin(kind="alone"):
        words = [sys.executable, "-c", HOLDER, tmp_path / "lock", kind]
        processes.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield begin
    for p in processes:
        p.kill()
        p.wait()


def test_the_holder_is_named_and_a_dead_one_holds_nobody_off(tmp_path, start, refusal):
    process = start()
    told = refusal(InUseError, "the run: in use by process", process.pid, "wait")
    with told, hold(tmp_path / "lock", "the run", "wait"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with hold(tmp_path / "lock", "the run", "wait"):
        pass


def test_readers_hold_together_and_keep_writers_off(tmp_path, start, refusal):
    start("shared")
    with hold(tmp_path / "lock", "the run", "wait", shared=True):
        pass
    with refusal(InUseError, "in use"), hold(tmp_path / "lock", "the run", "wait"):
        pass
