"""Deploy over TVM's RPC: to `tvmflow serve` on a board that has Python, directly or through SSH."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow import bundle as bundles
from tvmflow.bundle import Bundle
from tvmflow.deploy import PATIENCE_SECONDS, connect, report_on
from tvmflow.report import Report
from tvmflow.serve import PORT, read_token
from tvmflow.spec import DeviceError, Measurement, TvmflowError, UserError, VerificationError
from tvmflow.toolchain import python_environment
from tvmflow.verify import compare, failure_sentence

log = logging.getLogger(__name__)

HEALTH_SECONDS = 10.0
LOOPBACK = ("127.0.0.1", "localhost")
TOKEN_COMMAND = 'cat "${XDG_CONFIG_HOME:-$HOME/.config}/tvmflow/rpc-token"'


def deploy(
    path: Path,
    *,
    ssh: str | None = None,
    ssh_config: Path | None = None,
    address: str | None = None,
    token_file: Path | None = None,
    port: int = PORT,
    threads: int | None = None,
    seconds: float = 3.0,
) -> Report:
    """The report on the bundle at `path` as it is on the board.

    Either `ssh` is the board ("user@pi"), whose server and token are reached through SSH, or `address`
    ("127.0.0.1:9090") is a port of this computer that leads there, and `token_file` has the token. Raises UserError,
    DeviceError, VerificationError.
    """
    with bundles.open_bundle(path) as bundle:
        if address is not None:
            host, local = parse_address(address)
            if token_file is None:
                raise UserError("--host needs --token-file, a copy of the file that `tvmflow serve` names.")
            return _deploy(bundle, address, (host, local, read_token(token_file)), threads, seconds)
        if ssh is None:
            raise UserError("Say where the board is: --ssh user@host, or --host 127.0.0.1:PORT.")
        with connect(ssh, ssh_config) as connection:
            said = connection.run(TOKEN_COMMAND, seconds=60, what="reading the token")
            if said.returncode != 0:
                raise DeviceError(f"{ssh} has no token for RPC: is `tvmflow serve` running there?", "unreachable")
            return _deploy(bundle, ssh, ("127.0.0.1", connection.forward(port), said.stdout.strip()), threads, seconds)


def parse_address(text: str) -> tuple[str, int]:
    """`127.0.0.1:9090` or `localhost`. Raises UserError for elsewhere: RPC isn't encrypted."""
    host, _, port = text.partition(":")
    if host not in LOOPBACK:
        raise UserError(f"--host {text}: RPC isn't encrypted, so it is spoken on this computer only; use --ssh {host}.")
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"--host takes 127.0.0.1:PORT, not {text!r}.")
    return "127.0.0.1", int(port or PORT)


def _deploy(bundle: Bundle, name: str, server: tuple[str, int, str], threads: int | None, seconds: float) -> Report:
    check_health(name, *server[:2])
    log.info(f"Verifying and measuring on {name} for {seconds:g} s")
    vectors = bundle.vectors()
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        inputs = [Path(folder, f"input-{index}.npy") for index in range(len(bundle.inputs))]
        outputs = [Path(folder, f"output-{index}.npy") for index in range(len(bundle.outputs))]
        for index, file in enumerate(inputs):
            np.save(file, np.stack([vector.inputs[index] for vector in vectors]))
        job = {
            "name": name,
            "elf": bundle.target.elf,
            "library": str(bundle.library.resolve()),
            "inputs": list(map(str, inputs)),
            "outputs": list(map(str, outputs)),
            "threads": threads,
            "seconds": seconds,
        }
        result = _call(name, server, job, seconds + PATIENCE_SECONDS)
        stacks = [np.load(file) for file in outputs]
    given = [tuple(stack[index] for stack in stacks) for index in range(len(vectors))]
    verdict = {"method": "device", **compare(vectors, given, bundle.target.arithmetic)}
    if not verdict["passed"]:
        raise VerificationError(failure_sentence(verdict, f"{bundle.path} on {name}"))
    measurement = Measurement(
        basis="measured",
        samples_ms=tuple(result["samples_ms"]),
        threads=result["threads"],
        setup_ms=result["setup_ms"],
        first_ms=result["first_ms"],
        warmup_ms=tuple(result["warmup_ms"]),
    )
    board = {"host": name, "folder": "", "before": result["before"], "after": result["after"]}
    return report_on(bundle, verdict, measurement, board)


def check_health(name: str, host: str, port: int) -> None:
    """Raises DeviceError unless a server of tvmflow answers."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/health", timeout=HEALTH_SECONDS) as answer:
            health = json.loads(answer.read(4096))
            if health["status"] != "ok":
                raise ValueError(health["status"])
    except (OSError, ValueError, KeyError, TypeError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise DeviceError(f"No `tvmflow serve` answers on {name}: {reason}.", "unreachable") from error
    if health["busy"]:
        log.info(f"{name} is busy with another session; waiting for it")


def _call(name: str, server: tuple[str, int, str], job: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One session on the board. Raises DeviceError, VerificationError."""
    host, port, token = server
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        job_file, result_file = Path(folder, "job.json"), Path(folder, "result.json")
        job_file.touch(mode=0o600)  # it holds the token
        content = {**job, "host": host, "port": port, "token": token, "session_seconds": int(seconds)}
        job_file.write_text(json.dumps(content))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tvmflow.measure.rpc_worker", str(job_file), str(result_file)],
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds,
                env=python_environment(),
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"{name} didn't finish in {seconds:g} s.", "timeout") from error
        if done.returncode == -signal.SIGINT:
            raise KeyboardInterrupt
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise DeviceError(f"{name} was lost: {lines[-1]}.", "lost")
        result: dict[str, Any] = json.loads(result_file.read_text())
    if "error" in result:
        raise _failure(name, result["error"], result["message"], (host, port))
    return result


def _failure(name: str, step: str, message: str, address: tuple[str, int]) -> TvmflowError:
    if step == "incompatible":
        return UserError(message)
    if step == "auth":
        if "cannot find server that matches" in message:
            return DeviceError(f"{name} doesn't take this token; copy the file that `tvmflow serve` names.", "auth")
        return DeviceError(f"{name} can't be reached: {message}.", "unreachable")
    if step in ("facts", "upload"):
        return DeviceError(f"{name} was lost before the bundle was there: {message}.", "upload")
    time.sleep(1.0)  # a server that is going down takes its sessions down first
    try:
        check_health(name, *address)
    except DeviceError:
        return DeviceError(f"{name} was lost while it ran the network: {message}.", "lost")
    what = "can't be loaded" if step == "load" else "crashed or took too much"
    return VerificationError(f"The network {what} on {name}: {message}.")
