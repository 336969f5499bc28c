#!/usr/bin/env python3
"""Makes an emulated board, unless it is there: a small 64-bit ARM Debian with Python and TVM, and how to enter it.

    tools/emulated-board.py                             prints the image's folder
    tools/emulated-board.py enter IMAGE FOLDER COMMAND  runs a shell command on the board whose own files are in FOLDER

It stands for a Raspberry Pi in the tests: code runs under qemu's user-mode emulation of a Cortex-A72, proot gives it a
file system of its own, and neither needs root. The network is this computer's. Packages are Debian's, from the
sources of this computer, and wheels for aarch64 of the versions that are installed here. All of it stays in the
cache, in a folder named after this script and the versions, so that a change makes a new one; what wasn't used for a
week goes. Time there says nothing about a board. qemu's user mode knows no limit on memory (RLIMIT_AS), so it has none.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

PROGRAMS = {"qemu-aarch64-static": "qemu-user-static", "proot": "proot", "apt-get": "apt", "dpkg-deb": "dpkg"}
"""What this computer needs → Debian's package of it."""
DEBIAN = "python3 python3-venv libstdc++6 libc-bin dash coreutils findutils diffutils grep sed tar openssh-sftp-server"
WHEELS = "apache-tvm apache-tvm-ffi numpy psutil typer"
KEPT_SECONDS = 7 * 24 * 3600
PLATFORMS = [f"manylinux_2_{glibc}_aarch64" for glibc in (28, 27, 26, 24, 17)] + ["manylinux2014_aarch64"]

APT = """
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}/log";
"""

# linux/audit.h, linux/filter.h, linux/seccomp.h, linux/prctl.h; the numbers of x86-64's system calls
AUDIT_ARCH_X86_64, STATX, FACCESSAT2 = 0xC000003E, 332, 439
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW = 0x00050000, 0x7FFF0000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


def main() -> None:
    if len(sys.argv) == 5 and sys.argv[1] == "enter":
        enter(*sys.argv[2:])
    elif len(sys.argv) == 1:
        print(find_or_make())
    else:
        sys.exit(__doc__)


def find_or_make() -> Path:
    """The image's folder."""
    if platform.machine() != "x86_64":
        sys.exit("The emulated board runs on x86-64 computers.")
    if absent := [package for program, package in PROGRAMS.items() if not shutil.which(program)]:
        sys.exit(f"The emulated board needs {', '.join(absent)}: tools/install-system-packages.sh --tests")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tvmflow", "emulated-board")
    folder.mkdir(parents=True, exist_ok=True)
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS.split()]
    described = "\n".join([Path(__file__).read_text(encoding="utf-8"), *versions, debian_release()])
    image = folder / hashlib.sha256(described.encode()).hexdigest()[:16]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_whole(image):
            for old in folder.iterdir():
                if old.is_dir() and time.time() - old.stat().st_mtime > KEPT_SECONDS:
                    shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch, "image")
                make(made, Path(scratch), versions)
                shutil.rmtree(image, ignore_errors=True)  # it is there if something has changed it
                made.rename(image)
        os.utime(image)
    return image


def debian_release() -> str:
    """ "bookworm"."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    found = dict(line.partition("=")[::2] for line in lines)
    if found.get("ID") != "debian":
        sys.exit("The emulated board is made from Debian's packages for arm64, which this system's sources don't have.")
    return found.get("VERSION_CODENAME", "")


def make(image: Path, scratch: Path, versions: Sequence[str]) -> None:
    """Make the image in an empty folder."""
    root = image / "root"
    for name in ("home/pi", "tmp", "proc", "dev", "etc"):
        (root / name).mkdir(parents=True)
    for package in download_packages(scratch / "apt"):
        run("dpkg-deb", "--extract", str(package), str(root))
    (root / "etc" / "passwd").write_text(f"pi:x:{os.getuid()}:{os.getgid()}::/home/pi:/bin/sh\n")
    for name in ("resolv.conf", "hosts"):
        (root / "etc" / name).touch()
    python = next((root / "usr" / "bin").glob("python3.*[0-9]")).name
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    pip += ["--root-user-action", "ignore", "--only-binary", ":all:", "--python-version", python.removeprefix("python")]
    pip += [part for name in PLATFORMS for part in ("--platform", name)]
    run(*pip, "--target", str(root / "usr" / "local" / "lib" / python / "dist-packages"), *versions)
    # the first import compiles Python's files, which is slow
    first = "uname -m; python3 -c 'import tvm.rpc, typer, psutil'"
    said = run(sys.executable, __file__, "enter", str(image), str(scratch / "home"), first)
    if said.split() != ["aarch64"]:
        sys.exit(f"The emulated board doesn't run: it says {said!r}.")
    (image / "listing").write_text(listing(root))


def enter(image: str, home: str, command: str) -> NoReturn:
    """Become `command` on the board."""
    binds = ["/proc", "/dev", "/etc/resolv.conf", "/etc/hosts"]
    for name, place in (("home", "/home/pi"), ("tmp", "/tmp")):
        own = Path(home, name).resolve()
        own.mkdir(parents=True, exist_ok=True)
        binds.append(f"{own}:{place}")
    environment = {
        "HOME": "/home/pi",
        "USER": "pi",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "TVM_NUM_THREADS": "2",
        "TVM_THREAD_POOL_SPIN_COUNT": "0",  # a turn of the loop is a system call, which proot makes slow
    }
    proot = ["proot", "-q", "qemu-aarch64-static -cpu cortex-a72", "-r", str(Path(image).resolve() / "root")]
    proot += ["-w", "/home/pi", *(part for bind in binds for part in ("-b", bind))]
    within = ["/usr/bin/env", "-i", *(f"{key}={value}" for key, value in environment.items()), "/bin/sh", "-c", command]
    for variable in ("LD_PRELOAD", "LD_LIBRARY_PATH"):
        os.environ.pop(variable, None)
    hide_system_calls()
    os.execvp("proot", [*proot, *within])


def hide_system_calls() -> None:
    """Say of the system calls with paths that proot 5.1 doesn't know that there are none: there are older ones."""
    rows = [
        (LOAD, 0, 0, 4),  # seccomp_data.arch
        (JUMP_IF_EQUAL, 0, 4, AUDIT_ARCH_X86_64),
        (LOAD, 0, 0, 0),  # seccomp_data.nr
        (JUMP_IF_EQUAL, 1, 0, STATX),
        (JUMP_IF_EQUAL, 0, 1, FACCESSAT2),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.ENOSYS),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *row) for row in rows))
    program = struct.pack("<HxxxxxxQ", len(rows), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    one = ctypes.c_ulong(1)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, one, zero, zero, zero) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), program, zero, zero) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def download_packages(folder: Path) -> list[Path]:
    """Debian's packages for arm64 and what they depend on. apt checks their signatures."""
    for name in ("state/lists/partial", "cache/archives/partial", "log"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "apt.conf").write_text(APT.format(folder=folder))
    settings = {**os.environ, "APT_CONFIG": str(folder / "apt.conf"), "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "--quiet=2", environment=settings)
    run("apt-get", "install", "--yes", "--quiet=2", "--download-only", *DEBIAN.split(), environment=settings)
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def listing(root: Path) -> str:
    """Every file with its size. What Python compiles as it goes is left out."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and path.suffix != ".pyc")
    return "".join(sorted(f"{path.relative_to(root)} {path.stat().st_size}\n" for path in files))


def is_whole(image: Path) -> bool:
    """Whether all files are as they were made. What came since then does no harm."""
    try:
        return set((image / "listing").read_text().splitlines()) <= set(listing(image / "root").splitlines())
    except OSError:
        return False


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:3])}… failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
