"""How a user's mistake is told: one line, which a terminal shows as it is."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from src.runtime.errors import InternalError, UserError, run_command, shown

ROOT = Path(__file__).parents[2]


def told(message, capsys):
    def main():
        raise UserError(message)

    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    return err[:-1]


def test_one_line(capsys):
    message = "a\nb\r\tc\x1b[31m\x9b2J\u2028\u202e\x7f: no such file"
    assert told(message, capsys) == r"error: a\nb\r\tc\x1b[31m\x9b2J\u2028\u202e\x7f: no such file"
    assert told("Grüße 写真.jpg: don't", capsys) == "error: Grüße 写真.jpg: don't"


def test_a_long_message_keeps_its_beginning_and_its_end(capsys):
    line = told(f"mine.yaml: brief: {'x' * 10**6}: too long; shorten it", capsys)
    assert line.startswith("error: mine.yaml: brief: xxx")
    assert line.endswith("xxx: too long; shorten it")
    assert len(line) < 2100


def test_it_is_one_line_for_programs_too():
    assert str(UserError("a\nb")) == r"a\nb"


@pytest.mark.parametrize(
    ("value", "told"), [("a\nb", r"'a\nb'"), ([1] * 10**6, "[1, 1, 1, 1, 1, 1, ...]"), (None, "None")]
)
def test_a_value_is_shown_short(value, told):
    assert shown(value) == told
    assert len(shown("x" * 10**6)) < 100


def ended(main, capsys):
    with pytest.raises(SystemExit) as end:
        run_command(main)
    return end.value.code, capsys.readouterr().err


def test_our_own_bug_says_so_and_keeps_its_cause(capsys):
    def main():
        try:
            {}["width"]
        except KeyError as e:
            raise InternalError.of(e, "reading image 3") from e

    status, told = ended(main, capsys)
    assert status == 1
    *before, last = told.splitlines()
    assert last.startswith("error: a fault of this program, not of your data: reading image 3: KeyError: 'width' (")
    assert "test_errors.py, line " in last
    assert '    {}["width"]' in "\n".join(before)


def test_any_other_fault_is_ours_too(capsys):
    status, told = ended(lambda: [][1], capsys)
    assert status == 1
    assert "Traceback" in told
    last = told.splitlines()[-1]
    assert (
        last
        == "error: a fault of this program, not of your data: IndexError: list index out of range; please report it"
    )


@pytest.mark.parametrize("words", [["train.py"], ["-m", "src.config"]])
def test_a_command_broken_off_while_it_loads_says_nothing(words, tmp_path):
    """A module that takes long to load stands for MindSpore."""
    (tmp_path / "yaml.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environment}
    # what was started in the background ignores it, and so would what that starts
    with subprocess.Popen(["env", "--default-signal=INT", sys.executable, *words], **pipes) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert err == ""


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_seen_enough_is_no_fault(lines):
    code = f"from src.runtime.errors import run_command\nrun_command(lambda: print('line\\n' * {lines}))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
