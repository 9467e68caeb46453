"""Ctrl-C stays the program's while MindSpore computes."""

import ctypes
import signal
import threading
import time

import mindspore
import pytest

from src.runtime.interrupts import own_interrupts

_libc = ctypes.CDLL(None)


def action():
    """The address of what answers SIGINT."""
    out = ctypes.create_string_buffer(1024)
    _libc.sigaction(int(signal.SIGINT), None, out)
    return out.raw[:8]


@pytest.fixture
def answered():
    """The times that SIGINT was answered by the test's handler."""
    times = []
    before = signal.signal(signal.SIGINT, lambda *_: times.append(1))
    yield times
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def take_over():
    """Puts a function of MindSpore's in the handler's place, as a run of a graph does."""
    library = ctypes.CDLL(mindspore._c_expression.__file__)
    address = ctypes.cast(library.PyInit__c_expression, ctypes.c_void_p).value

    def take():
        taken = address.to_bytes(8, "little") + bytes(1016)
        _libc.sigaction(int(signal.SIGINT), taken, None)

    return take


def wait_for(wanted):
    end = time.monotonic() + 10
    while action() != wanted and time.monotonic() < end:
        time.sleep(0.002)
    # a signal to MindSpore's function would end the tests
    assert action() == wanted


def test_a_handler_that_mindspore_replaces_comes_back_at_once(answered, take_over):
    ours = action()
    with own_interrupts():
        take_over()
        wait_for(ours)
        signal.raise_signal(signal.SIGINT)
        assert len(answered) == 1
        take_over()
    assert action() == ours
    signal.raise_signal(signal.SIGINT)
    assert len(answered) == 2


def test_from_another_thread(answered, take_over):
    ours = action()

    def run():
        with own_interrupts():
            take_over()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert action() == ours


def test_what_the_program_sets_meanwhile_stays(answered):
    with own_interrupts():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert action() == bytes([1, *bytes(7)])
