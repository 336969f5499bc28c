"""Deploy over TVM's RPC: to `tvmflow serve` on a board that has Python, directly or through SSH."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.bundles import bundle as bundles
from tvmflow.measure.local import layer_times
from tvmflow.network.agreement import compare, failure_sentence
from tvmflow.remote import peers
from tvmflow.remote import tracker as trackers
from tvmflow.remote.deploy import PATIENCE_SECONDS, connect, last_line, report_on, window_seconds
from tvmflow.remote.handshake import session_key
from tvmflow.remote.serve import PORT, check_token, read_token
from tvmflow.report import Report
from tvmflow.spec import DeviceError, Measurement, TvmflowError, UserError, VerificationError
from tvmflow.system import children
from tvmflow.system.tensors import load
from tvmflow.system.untrusted import shortened

log = logging.getLogger(__name__)

PROFILED_RUNS = 50
LOOPBACK = ("127.0.0.1", "localhost")
TOKEN_COMMAND = 'cat "${XDG_CONFIG_HOME:-$HOME/.config}/tvmflow/rpc-token"'


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a board's `tvmflow serve` answers: `port` is of this computer, `name` is the board for people.

    `server_port` is where it listens on the board, if that is another.
    """

    name: str
    port: int
    token: str
    server_port: int | None = None


@contextlib.contextmanager
def reach(
    *,
    ssh: str | None = None,
    ssh_config: Path | None = None,
    address: str | None = None,
    token_file: Path | None = None,
    port: int = PORT,
    tracker: str | None = None,
    key: str = "",
) -> Iterator[Place]:
    """The server of a board, for as long as the block lasts.

    Either `ssh` is the board ("user@pi"), whose server at `port` and token are reached through SSH, or `address`
    ("127.0.0.1:9090") is a port of this computer that leads there, and `token_file` has the token, or `tracker` is the
    address of one that knows boards of the kind `key`. The server has to prove that it knows the token, which it isn't
    told. Raises UserError, DeviceError.
    """
    if tracker is not None:
        free = trackers.request(trackers.parse_address(tracker), trackers.check_key(key))
        address = f"{LOOPBACK[0]}:{free}"
    if address is not None:
        local = parse_address(address)
        if token_file is None:
            raise UserError("--host and --tracker need --token-file, a copy of the file that `tvmflow serve` names.")
        place = Place(name=address, port=local, token=read_token(token_file))
        check_proof(place)
        yield place
        return
    if ssh is None:
        raise UserError("Say where the board is: --ssh user@host, or --host 127.0.0.1:PORT.")
    with connect(ssh, ssh_config) as connection:
        said = connection.run(TOKEN_COMMAND, seconds=60, what="reading the token")
        if said.returncode != 0:
            raise DeviceError(f"{ssh} has no token for RPC: is `tvmflow serve` running there?", "unreachable")
        try:
            token = check_token(said.stdout.strip(), f"The token of {ssh}")
        except UserError as error:
            raise DeviceError(str(error), "auth") from error
        place = Place(name=ssh, port=connection.forward(port), token=token, server_port=port)
        check_proof(place)
        yield place


def deploy(
    path: Path,
    *,
    threads: int | None = None,
    seconds: float = 3.0,
    sustained: bool = False,
    profiled: bool = False,
    **where: Any,
) -> Report:
    """The report on the bundle at `path` as it is on the board that `reach` finds by `where`.

    `seconds` of steady runs are measured; `sustained`, in windows, with what the board says of itself after each.
    `profiled`, layers are timed too, in a session of their own. Raises UserError, DeviceError, VerificationError.
    """
    with bundles.open_bundle(path) as bundle, reach(**where) as place:
        if profiled and (reason := bundle.target.facts.why_whole()):
            raise UserError(reason)
        check_health(place)
        log.info(f"Verifying and measuring on {place.name} for {seconds:g} s")
        vectors = bundle.vectors()
        with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
            inputs = [Path(folder, f"input-{index}.npy") for index in range(len(bundle.inputs))]
            outputs = [Path(folder, f"output-{index}.npy") for index in range(len(bundle.outputs))]
            for index, file in enumerate(inputs):
                np.save(file, np.stack([vector.inputs[index] for vector in vectors]))
            job = {
                "name": place.name,
                "elf": bundle.target.elf,
                "library": str(bundle.library.resolve()),
                "inputs": list(map(str, inputs)),
                "outputs": list(map(str, outputs)),
                "threads": threads,
                "seconds": seconds,
                "window_seconds": window_seconds(seconds) if sustained else None,
                "device": bundle.target.facts.DEVICE,
                "profile": None,
            }
            result = _call(place, job, seconds + PATIENCE_SECONDS)
            stacks = [load(file) for file in outputs]
            given = [tuple(stack[index] for stack in stacks) for index in range(len(vectors))]
            verdict = {
                "method": "device",
                **compare(vectors, given, bundle.target.arithmetic, bundle.tolerances(vectors)),
            }
            if not verdict["passed"]:
                raise VerificationError(failure_sentence(verdict, f"{path} on {place.name}"))
            times = result["times"]
            layer_us: Sequence[Sequence[float]] = ()
            if times and profiled:
                log.info(f"Profiling on {place.name}")
                described = {
                    "device": job["device"],
                    "kernels": sorted({layer.kernel for layer in bundle.layers}),
                    "repeats": PROFILED_RUNS,
                }
                calls = _call(place, {**job, "profile": described}, PATIENCE_SECONDS)["calls"]
                layer_us = layer_times(calls, bundle.layers)
        measurement = times and Measurement(
            basis="measured",
            samples_ms=tuple(times["samples_ms"]),
            threads=times["threads"],
            setup_ms=times["setup_ms"],
            first_ms=times["first_ms"],
            warmup_ms=tuple(times["warmup_ms"]),
            windows=tuple(times["windows"]),
        )
        board = {"host": place.name, "folder": "", "before": result["before"], "after": result["after"]}
        return report_on(bundle, verdict, measurement, board, layer_us)


def parse_address(text: str) -> int:
    """The port in `127.0.0.1:9090` or `localhost`. Raises UserError for elsewhere: RPC isn't encrypted."""
    host, _, port = text.partition(":")
    if host not in LOOPBACK:
        raise UserError(f"--host {text}: RPC isn't encrypted, so it is spoken on this computer only; use --ssh {host}.")
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"--host takes 127.0.0.1:PORT, not {text!r}.")
    return int(port or PORT)


def check_health(place: Place) -> None:
    """Raises DeviceError unless a server of tvmflow answers."""
    if health(place)["busy"]:
        log.info(f"{place.name} is busy with another session; waiting for it")


def check_proof(place: Place) -> None:
    """Raises DeviceError unless what answers there knows the token, which it isn't told."""
    session_key(place.port, place.token, server_port=place.server_port, name=place.name)


def health(place: Place) -> dict[str, Any]:
    """What a server says of itself. Raises DeviceError unless it is one of tvmflow's and well."""
    said = _get(place, "health")
    if said.get("status") != "ok" or said.get("busy") not in (True, False):
        raise DeviceError(f"What answers on {place.name} is no `tvmflow serve`.", "unreachable")
    return said


def _get(place: Place, path: str) -> dict[str, Any]:
    try:
        return peers.get(place.port, path)
    except (OSError, ValueError) as error:
        reason = shortened(str(error))
        raise DeviceError(f"No `tvmflow serve` answers on {place.name}: {reason}.", "unreachable") from error


def _call(place: Place, job: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One session on the board. Raises DeviceError, VerificationError."""
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        job_file, result_file = Path(folder, "job.json"), Path(folder, "result.json")
        job_file.touch(mode=0o600)  # it holds the token
        content = {
            **job,
            "port": place.port,
            "server_port": place.server_port,
            "token": place.token,
            "session_seconds": int(seconds),
        }
        job_file.write_text(json.dumps(content))
        try:
            done = peers.run(
                children.python("tvmflow.remote.rpc_worker", job_file, result_file),
                seconds=seconds,
                env=children.environment(),
            )
        except peers.TimeUpError as error:
            raise DeviceError(f"{place.name} didn't finish in {seconds:g} s.", "timeout") from error
        except peers.TooMuchError as error:
            raise DeviceError(f"{place.name} had {error} to complain of; it was cut off.", "lost") from error
        if done.returncode == -signal.SIGINT:
            raise KeyboardInterrupt
        if done.returncode != 0:
            reason = last_line(done.stderr) if done.stderr.strip() else f"exit code {done.returncode}"
            raise DeviceError(f"{place.name} was lost: {reason}.", "lost")
        result: dict[str, Any] = json.loads(result_file.read_text())
    if result.get("error") == "proof":
        raise DeviceError(result["message"], result["kind"])
    if "error" in result:
        raise _failure(place, result["error"], result["message"])
    return result


def _failure(place: Place, step: str, message: str) -> TvmflowError:
    name = place.name
    if step == "incompatible":
        return UserError(message)
    if step == "auth":
        if "cannot find server that matches" in message:
            return DeviceError(f"{name} refused a session after proving that it knows the token; try again.", "auth")
        return DeviceError(f"{name} can't be reached: {message}.", "unreachable")
    if step in ("facts", "upload"):
        return DeviceError(f"{name} was lost before the bundle was there: {message}.", "upload")
    time.sleep(1.0)  # a server that is going down takes its sessions down first
    try:
        check_health(place)
    except DeviceError:
        return DeviceError(f"{name} was lost while it ran the network: {message}.", "lost")
    what = "can't be loaded" if step == "load" else "crashed or took too much"
    return VerificationError(f"The network {what} on {name}: {message}.")
