"""What is read from a board is bounded, in bytes and in seconds, and ends with the process that says it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tvmflow.remote import peers

ENDLESS = "import sys\nwhile True: sys.{}.write('x' * 65536)"
LIMITED = """
from tvmflow.remote import peers
from tvmflow.system.limits import SESSION
SESSION.bytes = 64 << 20
peers.limit_memory()
try:
    bytearray(2**31 - 1)
except MemoryError:
    print("refused")
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_is_printed_without_end_is_cut_off(stream):
    with pytest.raises(peers.TooMuchError, match="more than 1,000,000 bytes"):
        peers.run([sys.executable, "-c", ENDLESS.format(stream)], seconds=60, most_bytes=1_000_000)


def test_what_takes_too_long_is_ended():
    started = time.monotonic()
    with pytest.raises(peers.TimeUpError, match="longer than 1 s"):
        peers.run(["sleep", "60"], seconds=1)
    assert time.monotonic() - started < 30


def test_who_reads_nothing_is_not_waited_for():
    with pytest.raises(peers.TimeUpError):
        peers.run(["sleep", "60"], seconds=1, send=lambda stream: stream.write(b"x" * (1 << 22)))


def test_who_talks_while_it_is_told_is_heard():
    """Neither side waits for the other with full pipes."""
    content = b"x" * (1 << 22)
    done = peers.run(["cat"], seconds=60, most_bytes=1 << 23, send=lambda stream: stream.write(content))
    assert (done.returncode, done.stdout.encode()) == (0, content)


def test_a_process_that_closes_its_ears(tmp_path):
    done = peers.run(["sh", "-c", "exec <&-; echo enough; exit 3"], seconds=60, send=lambda stream: stream.write(b"x"))
    assert (done.returncode, done.stdout) == (3, "enough\n")


def test_what_holds_the_pipes_open_is_not_waited_for():
    """As the process that keeps an SSH connection does."""
    started = time.monotonic()
    done = peers.run(["sh", "-c", "sleep 5 & echo done"], seconds=60)
    assert done.stdout == "done\n"
    assert time.monotonic() - started < 4


def test_what_fails_to_be_sent_is_raised():
    def fail(_stream: object) -> None:
        raise ValueError("no such member")

    with pytest.raises(ValueError, match="no such member"):
        peers.run(["cat"], seconds=60, send=fail)


def test_a_length_that_a_peer_names_is_not_believed():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr
