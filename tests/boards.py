"""An SSH server on this computer that stands for a board."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tvmflow.deploy import deploy

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

    def command(self, name: str, script: str) -> None:
        (self.commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.commands / name).chmod(0o755)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def ssh_board(folder: Path) -> Iterator[Board]:
    """A board whose files are in `folder`."""
    if SSHD is None or not shutil.which("ssh"):
        pytest.skip(
            "no SSH server: apt-get install openssh-server openssh-client (tools/install-system-packages.sh --tests)"
        )
    for name in ("home", "commands"):
        (folder / name).mkdir(parents=True)
    for key in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "client.pub", folder / "authorized")
    (folder / "authorized").chmod(0o600)
    (folder / "rewrite").write_text("")
    # what the server runs for a client: its command, in the board's home, with the board's programs
    (folder / "enter").write_text(
        f"#!/bin/sh\ncd {folder}/home; export HOME=$PWD PATH={folder}/commands:$PATH\n"
        f'exec sh -c "$(printf "%s" "$SSH_ORIGINAL_COMMAND" | sed -f {folder}/rewrite)"\n'
    )
    (folder / "enter").chmod(0o755)
    port = free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nForceCommand {folder}/enter\n"
        f"PermitRootLogin yes\n"
    )
    known = (folder / "host.pub").read_text()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {known}")
    (folder / "config").write_text(
        f"Host board\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n IdentityFile {folder}/client\n"
        f" IdentitiesOnly yes\n UserKnownHostsFile {folder}/known\n StrictHostKeyChecking yes\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.05)
    yield Board(
        home=folder / "home",
        commands=folder / "commands",
        rewrite=folder / "rewrite",
        config=folder / "config",
        process=process,
    )
    process.kill()
    process.wait()
