"""Signals that ask a training to end."""

import os
import signal
import subprocess
import sys

import pytest

from finetune.training.stop_request import StopRequest


@pytest.fixture
def heard() -> list[int]:
    """What reaches the handlers that were there before."""
    heard: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in numbers}
    yield heard
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_goes_to_whom_it_went_before(heard, number, capsys):
    stop = StopRequest()
    with pytest.raises(SystemExit) as ended, stop.awaited():
        stop.heed()
        signal.raise_signal(number)
        assert (stop.signal, heard) == (number, [])
        signal.raise_signal(number)
        assert heard == [number]
    assert ended.value.code == 128 + number
    told = f"{number.name}: stops once this step is done and saved; again stops at once\n"
    assert capsys.readouterr().err == told
    signal.raise_signal(number)
    assert heard == [number, number]


UNREAD = """
import os, signal, sys
from finetune.training.stop_request import StopRequest

stop = StopRequest()
try:
    with stop.awaited():
        signal.raise_signal(signal.SIGINT)
        print("goes on", file=sys.stderr)
        print(stop.signal.name, flush=True)
except SystemExit as ended:
    print(ended.code)
"""


def test_output_that_nobody_reads_any_more_is_no_hindrance():
    """Ctrl-C ends `tee` as well."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", UNREAD], stdout=subprocess.PIPE, stderr=writing, text=True, check=True)
    os.close(writing)
    assert done.stdout.split() == ["SIGINT", "130"]


def test_signals_are_taken_again_from_others(heard):
    stop = StopRequest()
    with pytest.raises(SystemExit), stop.awaited():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.listen()
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    assert heard == []


def test_an_error_is_not_hidden_by_a_stop(heard):
    stop = StopRequest()
    with pytest.raises(ValueError, match="mine"), stop.awaited():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("mine")
    assert heard == []


def test_what_the_process_was_started_to_ignore_is_ignored(heard):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopRequest()
    with stop.awaited():
        stop.listen()
        signal.raise_signal(signal.SIGINT)
        assert stop.signal is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert heard == []


def test_slurms_warning_is_heard_under_slurm_alone(monkeypatch):
    usual = signal.getsignal(signal.SIGUSR1)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with StopRequest().awaited():
        assert signal.getsignal(signal.SIGUSR1) is usual
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    stop = StopRequest()
    with pytest.raises(SystemExit) as ended, stop.awaited():
        signal.raise_signal(signal.SIGUSR1)
    assert ended.value.code == 138
    assert signal.getsignal(signal.SIGUSR1) is usual
