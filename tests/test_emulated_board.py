"""`tvmflow serve` on an emulated board, from another computer: it works, and what breaks is named."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from boards import EmulatedBoard, free_port, wait_for
from integer_networks import ONE_JOINT_MODULE, random_network

from tvmflow.bundles.build import build
from tvmflow.integer.frontend import integer_program
from tvmflow.remote import rpc
from tvmflow.remote.serve import read_token
from tvmflow.spec import DeviceError, UserError
from tvmflow.targets import TARGETS, compute_in

pytestmark = [pytest.mark.emulated, pytest.mark.slow]

SERVE = "tvmflow/bin/tvmflow serve --port"


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pi") / "tiny"
    build(tiny, TARGETS["raspberry-pi-4b"], out, verify=False)
    return out


@pytest.fixture(scope="module")
def served(emulated) -> Iterator[EmulatedBoard]:
    with emulated.serving(f"{SERVE} {emulated.port}", emulated.port):
        yield emulated


def health(port: int) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
        return json.loads(answer.read())


def deploy(board: EmulatedBoard, bundle: Path, address: str | None = None) -> dict:
    return rpc.deploy(bundle, address=address or board.address, token_file=board.token_file, seconds=0.1)


def test_deployed_and_verified_there(served, bundle):
    assert health(served.port)["status"] == "ok"
    assert read_token(served.token_file)
    report = deploy(served, bundle)
    assert report["verify"]["passed"] is True
    assert report["verify"]["method"] == "emulated"
    assert report["latency"] is None
    assert "qemu-aarch64-static" in report["latency_note"]
    assert report["device"]["before"]["bits"] == "64"
    wait_for(lambda: health(served.port)["served"] == 1)
    wait_for(lambda: len(list((served.board.home.parent / "tmp").rglob("tvmflow-serve-*/tmp*"))) == 1)  # the spare's


def test_int8_is_exact_there(served, tmp_path):
    network = random_network(np.random.default_rng(2), "per-channel", shapes=ONE_JOINT_MODULE)
    build(integer_program(network), compute_in(TARGETS["raspberry-pi-4b"], "int8"), tmp_path / "int8", verify=False)
    report = deploy(served, tmp_path / "int8")
    assert report["verify"]["passed"] is True
    assert report["verify"]["max_abs_error"] == 0
    assert report["target"]["arithmetic"] == "int8"


def test_code_of_this_computer_is_not_run_there(served, host_bundle):
    with pytest.raises(UserError, match="is aarch64 with a 64-bit system"):
        deploy(served, host_bundle)


# ------------------------------------------------------------------------------------------------- what goes wrong


@contextlib.contextmanager
def relayed(port: int, after: int, then: Callable[[], None]) -> Iterator[int]:
    """A port that leads to `port`, and does `then` once when a connection has sent it so many bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pump(source: socket.socket, sink: socket.socket, count: bool) -> None:
            sent = 0
            with contextlib.suppress(OSError):
                while content := source.recv(1024):
                    sink.sendall(content)
                    sent += len(content)
                    if count and sent > after >= sent - len(content):
                        then()
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near, _ = listener.accept()
                    far = socket.create_connection(("127.0.0.1", port))
                    threading.Thread(target=pump, args=(near, far, True), daemon=True).start()
                    threading.Thread(target=pump, args=(far, near, False), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("beyond", "kind"), [(-5000, "upload"), (3000, "lost")])
def test_a_server_that_is_killed_in_the_middle(emulated, bundle, beyond, kind, monkeypatch):
    """When so many bytes more than the library's have been sent: it is on its way, or the inputs are."""
    port, after = free_port(), (bundle / "model.so").stat().st_size + beyond
    monkeypatch.setattr(rpc, "Place", functools.partial(rpc.Place, server_port=port))  # as a tunnel of tvmflow's has it
    with emulated.serving(f"{SERVE} {port}", port) as entered:

        def kill() -> None:
            for process in psutil.Process(entered.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

        with relayed(port, after, kill) as near, pytest.raises(DeviceError) as caught:
            deploy(emulated, bundle, f"127.0.0.1:{near}")
    assert caught.value.kind == kind
