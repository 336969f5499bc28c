"""SSH servers on this computer that stand for boards: one that is this computer, one that is emulated."""

from __future__ import annotations

import contextlib
import getpass
import inspect
import os
import random
import re
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from conftest import INSTALL, ROOT, needs_commands

from tvmflow.bundles.bundle import open_bundle
from tvmflow.remote.deploy import connect, deploy, upload
from tvmflow.remote.handshake import session_key
from tvmflow.remote.serve import MAGIC, Limits, Server

KEPT = (
    "tvmflow",
    "targets",
    "schedules",
    "models",
    "docs",
    "tests",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
"""What of a checkout a wheel is built from."""
TOKEN = "0123456789abcdef" * 2
EMULATOR = ROOT / "tools" / "emulated-board.py"

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass(frozen=True, kw_only=True)
class Board:
    """An SSH server, its home folder, and a client's configuration in which it is called "board".

    What is in `commands` comes before the system's programs; `rewrite` is a sed script over each command.
    """

    home: Path
    commands: Path
    rewrite: Path
    config: Path
    process: subprocess.Popen

    def deploy(self, bundle: Path, **options):
        return deploy(bundle, "board", ssh_config=self.config, seconds=0.2, **options)

    def carry(self, bundle: Path, folder: str | None = None) -> Path:
        """What a deploy does before the bundle is run; where it lies on the board."""
        with open_bundle(bundle) as opened, connect("board", self.config) as connection:
            place = folder or f".cache/tvmflow/{opened.digest[:16]}"
            upload(opened, connection, place, ours=folder is None)
        return self.home / place

    def command(self, name: str, script: str) -> None:
        (self.commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.commands / name).chmod(0o755)


def free_port() -> int:
    """A port that no outgoing connection is given, so that it stays free until somebody listens on it.

    Whoever waits for a server on a port of the system's own range connects to it again and again. Once in about 28,000
    times the system gives such a connection the very port that it asks for: it answers itself, which looks as though
    the server were there, and takes the port from it.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("none of a hundred ports is free")


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def ssh_board(folder: Path, enter: str = "") -> Iterator[Board]:
    """A board whose files are in `folder`. `enter` is the command that runs a client's there, by default a shell."""
    if SSHD is None:
        pytest.skip(f"not installed: sshd; {INSTALL} brings what is needed")
    needs_commands("ssh")
    for name in ("home", "commands"):
        (folder / name).mkdir(parents=True)
    for key in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "client.pub", folder / "authorized")
    (folder / "authorized").chmod(0o600)
    (folder / "rewrite").write_text("")
    # what the server runs for a client: its command, in the board's home, with the board's programs
    here = (
        f"cd {folder}/home; export HOME=$PWD PATH={folder}/commands:$PATH\n"
        f'exec sh -c "$(printf "%s" "$SSH_ORIGINAL_COMMAND" | sed -f {folder}/rewrite)"'
    )
    (folder / "enter").write_text(f"#!/bin/sh\n{enter or here}\n")
    (folder / "enter").chmod(0o755)
    port = free_port()
    # Connecting takes half a second less without a post-quantum key exchange; and a shell that isn't the outermost one
    # doesn't read the .bashrc of whoever runs the tests, which is none of a board's and may take long.
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nForceCommand {folder}/enter\n"
        f"PermitRootLogin yes\nKexAlgorithms curve25519-sha256\nSetEnv SHLVL=2\n"
        f"Subsystem sftp /usr/lib/openssh/sftp-server\n"
    )
    known = (folder / "host.pub").read_text()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {known}")
    (folder / "config").write_text(
        f"Host board raspberrypi\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n"
        f" IdentityFile {folder}/client\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {folder}/known\n StrictHostKeyChecking yes\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.05)
    try:
        yield Board(
            home=folder / "home",
            commands=folder / "commands",
            rewrite=folder / "rewrite",
            config=folder / "config",
            process=process,
        )
    finally:
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for running in (*started, process):
            with contextlib.suppress(psutil.NoSuchProcess):
                running.kill()
        process.wait()


@dataclass(frozen=True, kw_only=True)
class EmulatedBoard:
    """A 64-bit ARM system under emulation (tools/emulated-board.py) that is reached over SSH, with tvmflow installed.

    `port` is where `tvmflow serve` is to listen, `image` its file system, `checkout` a copy of this one.
    """

    board: Board
    port: int
    image: Path
    checkout: Path

    @property
    def token_file(self) -> Path:
        return self.board.home / ".config" / "tvmflow" / "rpc-token"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def walk(self, section: str) -> list[str]:
        """Run what a section of docs/walkthrough.md says, as it says it; what came to standard output, by command.

        A section that starts something "in a second terminal" has its server for as long.
        """
        outputs: list[str] = []
        with contextlib.ExitStack() as background:
            for kind, commands in walkthrough(section):
                for command in commands:
                    command = command.replace("9090", str(self.port))
                    if kind == "sh background":
                        _, _, remote = command.partition("raspberrypi ")
                        background.enter_context(self.serving(remote, self.port))
                        continue
                    done = subprocess.run(
                        ["sh", "-c", command], cwd=self.checkout, env=self.environment, capture_output=True, text=True
                    )
                    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
                    outputs.append(done.stdout)
        return outputs

    @property
    def environment(self) -> dict[str, str]:
        """In which `ssh raspberrypi` leads to this board, and nothing of the user's is read."""
        paths = [self.board.commands, Path(sys.executable).parent, os.environ["PATH"]]
        return {**os.environ, "PATH": os.pathsep.join(map(str, paths))}

    @contextlib.contextmanager
    def serving(self, command: str, port: int) -> Iterator[subprocess.Popen]:
        """A server on the board, once it listens. Whatever served on the port before has to end first."""
        wait_for(lambda: not listens(port))
        with self.running(f"exec {command}") as process:
            for _ in range(1200):
                if listens(port):
                    break
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
            else:
                raise AssertionError(f"nothing listens on port {port} after two minutes")
            yield process

    @contextlib.contextmanager
    def running(self, command: str) -> Iterator[subprocess.Popen]:
        """A command on the board, which is ended with all that it started."""
        enter = [sys.executable, EMULATOR, "enter", self.image, self.board.home.parent, command]
        process = subprocess.Popen(enter, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            yield process
        finally:
            for started in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    started.kill()
            process.wait()


@contextlib.contextmanager
def emulated_board(folder: Path) -> Iterator[EmulatedBoard]:
    """An empty board whose files are in `folder`."""
    made = subprocess.run([sys.executable, EMULATOR], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(made.stderr.strip())
    image = Path(made.stdout.strip())
    enter = shlex.join(map(str, (sys.executable, EMULATOR, "enter", image, folder)))
    checkout = folder / "checkout"
    shutil.copytree(
        ROOT, checkout, ignore=lambda path, names: [name for name in names if name not in KEPT and Path(path) == ROOT]
    )
    with ssh_board(folder, f'exec {enter} "$SSH_ORIGINAL_COMMAND"') as board:
        for program in ("ssh", "scp"):
            board.command(program, f'exec {shutil.which(program)} -F {board.config} -o BatchMode=yes "$@"')
        yield EmulatedBoard(board=board, port=free_port(), image=image, checkout=checkout)


def walkthrough(section: str) -> list[tuple[str, list[str]]]:
    """The blocks of commands in a section of docs/walkthrough.md: "sh" or "sh background", and the lines."""
    text = (ROOT / "docs" / "walkthrough.md").read_text()
    (found,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return [
        (kind, body.splitlines())
        for kind, body in re.findall(r"^```(sh[^\n]*)\n(.*?)^```", found, re.DOTALL | re.MULTILINE)
    ]


@contextlib.contextmanager
def running(folder: Path, **limits) -> Iterator[Server]:
    """A server of `tvmflow serve` in this process, whose token is TOKEN."""
    server = Server(TOKEN, port=0, limits=Limits(**limits), folder=folder)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


def greeting(port: int, token: str = TOKEN) -> bytes:
    """How TVM's client begins a session, once the server has shown that it knows the token."""
    key = f"client:{session_key(port, token)}".encode()
    return struct.pack("<ii", MAGIC, len(key)) + key


def wait_for(condition) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"it didn't happen in a minute: {inspect.getsource(condition).strip()}")
