"""Carry a bundle to a board over SSH, verify it there, measure it there, and report.

SSH is what a board has: it knows who may come in, encrypts, and needs no server of ours. What runs on the board is the
bundle's own runner (`build --runner`), so neither Python nor TVM has to be there; a VTA's runner is its driver, which
takes Python and NumPy. Settings, keys and jump hosts are those of the user's SSH configuration; host keys are checked
as there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from tvmflow.bundles import bundle as bundles
from tvmflow.bundles.bundle import Bundle
from tvmflow.measure import device
from tvmflow.measure.noise import NOISY_SPREAD, disturbances
from tvmflow.network.agreement import judge
from tvmflow.remote import peers
from tvmflow.report import Report, assemble
from tvmflow.spec import NO_ELF, DeviceError, Measurement, MissingDependencyError, UserError, Vector, VerificationError
from tvmflow.system import progress
from tvmflow.system.limits import MANIFEST, PEER, RESULT
from tvmflow.system.untrusted import shortened
from tvmflow.targets import KINDS
from tvmflow.targets.kind import Timing, layer_rows

log = logging.getLogger(__name__)

CONNECT_SECONDS, UPLOAD_SECONDS, TEST_SECONDS = 10, 900.0, 300.0
PATIENCE_SECONDS = 120.0
"""What a measurement may take beyond the seconds asked for: loading, warming up, a slow link."""
RETRIES_AFTER = (1.0, 3.0)
"""Seconds to wait before a connection is tried again: a board may just be starting."""

STEADY_PACE = 1.1
"""Highest ÷ lowest p50 of windows, up to which a sustained run kept its pace."""
THROTTLED_NOW = 0xF
"""The flags of `vcgencmd get_throttled` that are about now; the others are about the time since it was switched on."""

MACHINES = {
    ("x86_64", "64"): (64, "x64"),
    ("aarch64", "64"): (64, "AArch64"),
    **dict.fromkeys((("aarch64", "32"), ("armv7l", "32"), ("armv8l", "32")), (32, "ARM")),
}
"""`uname -m` and `getconf LONG_BIT` → ELF class and machine; a 64-bit kernel may carry a 32-bit system."""
BITS = {"armv7l": "32", "armv8l": "32"}
"""Of boards that have no `getconf` to ask; of all others 64."""
MOST_CORES = 4096
OLDEST_GLIBC = (2, 28)

FACTS = """
say() { printf '%s=%s\\n' "$1" "$2"; }
first() { [ -r "$1" ] && tr -d '\\0' < "$1" | head -n 1; }
emulator() {
  [ -n "$TVMFLOW_STANDIN_ARCH" ] && echo "the stand-in for CUDA" && return
  process=$$
  while [ "${process:-0}" -gt 1 ]; do # head is a process of its own: qemu shows each the command line that it expects
    program=$(head -n 1 "/proc/$process/cmdline" 2>/dev/null | tr '\\0' '\\n' | head -n 1)
    case "${program##*/}" in qemu-aarch64* | qemu-arm* | qemu-x86_64*) echo "${program##*/}" && return ;; esac
    process=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$process/status" 2>/dev/null)
  done
  case "$(uname -m)" in aarch64 | arm*) grep -q '^CPU implementer' /proc/cpuinfo || echo "an emulator" ;; esac
}
say emulator "$(emulator)"
say machine "$(uname -m)"
say kernel "$(uname -sr)"
say bits "$(getconf LONG_BIT 2>/dev/null)"
say libc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
say model "$(first /proc/device-tree/model)"
say cpu "$(grep -m 1 'model name' /proc/cpuinfo | cut -d: -f2- | sed 's/^ //')"
say cores "$(getconf _NPROCESSORS_ONLN 2>/dev/null)"
say memory_kib "$(grep MemTotal /proc/meminfo | tr -dc 0-9)"
say load "$(cut -d' ' -f1 /proc/loadavg)"
say governor "$(first /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor)"
say clock_khz "$(first /sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq)"
say temperature_mc "$(first /sys/class/thermal/thermal_zone0/temp)"
say throttled "$(vcgencmd get_throttled 2>/dev/null | cut -d= -f2)"
"""
"""Portable shell: what the board says of itself. What it doesn't know stays empty."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """An SSH connection that its commands share."""

    host: str
    options: tuple[str, ...]

    @property
    def command(self) -> tuple[str, ...]:
        return ("ssh", *self.options, "--", self.host)

    def forward(self, port: int) -> int:
        """A port of this computer that leads to `port` of the board's own, for as long as the connection is there."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            local = free.getsockname()[1]
        forwarding = ("-O", "forward", "-L", f"127.0.0.1:{local}:127.0.0.1:{port}")
        done = self._run(
            ("ssh", *self.options, *forwarding, "--", self.host), seconds=2 * CONNECT_SECONDS, what="connecting"
        )
        if done.returncode != 0:
            raise self.failure(done.stderr, "connecting")
        return local

    def run(
        self,
        remote: str,
        *,
        seconds: float,
        what: str,
        send: Callable[[IO[bytes]], Any] | None = None,
        most_bytes: int | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the home directory, fed by `send`.

        Raises DeviceError if the connection fails, time is up, or it prints more than `most_bytes`.
        """
        done = self._run((*self.command, remote), seconds=seconds, what=what, send=send, most_bytes=most_bytes)
        if done.returncode == 255:  # ssh's own failure
            raise self.failure(done.stderr, what)
        return done

    def _run(
        self, command: Sequence[str], *, seconds: float, what: str, **limits: Any
    ) -> subprocess.CompletedProcess[str]:
        try:
            return peers.run(command, seconds=seconds, **limits)
        except peers.TimeUpError as error:
            raise DeviceError(f"{self.host} didn't finish {what} in {seconds:g} s.", "timeout") from error
        except peers.TooMuchError as error:
            raise DeviceError(f"{self.host} printed {error} while {what}; it was cut off.", "lost") from error

    def failure(self, said: str, what: str) -> DeviceError:
        """What it means that ssh gave up with these words."""
        last = last_line(said).rstrip(".")
        if "Permission denied" in said or "Host key verification failed" in said:
            return DeviceError(
                f"{self.host} can't be logged into: {last}; `ssh {self.host}` has to work without a password.", "auth"
            )
        if what == "connecting":
            return DeviceError(f"{self.host} can't be reached: {last}.", "unreachable")
        return DeviceError(f"{self.host} was lost while {what}: {last}.", "lost")


def deploy(
    path: Path,
    host: str,
    *,
    folder: str | None = None,
    ssh_config: Path | None = None,
    threads: int | None = None,
    seconds: float = 3.0,
    sustained: bool = False,
) -> Report:
    """The report on the bundle at `path` as it is on `host` ("user@pi" or a name of the SSH configuration).

    The bundle stays in `folder` there, by default one of its own under .cache/tvmflow; what is there already isn't
    sent again. `seconds` of steady runs are measured; `sustained`, in windows, with what the board says of itself
    after each. Raises UserError, DeviceError,
    VerificationError, MissingDependencyError.
    """
    with bundles.open_bundle(path) as bundle:
        if refused := KINDS[bundle.target.kind].why_not_deployed:
            raise UserError(f"{path} {refused}")
        if not bundle.manifest.get("runner"):
            raise UserError(f"{path} has no runner for a device; build it with --runner c.")
        with connect(host, ssh_config) as connection:
            before = facts(connection)
            alone = bundle.target.delivery == "library"
            if reason := why_incompatible(bundle.target.elf, before, host, alone=alone):
                raise UserError(reason)
            place = folder or f".cache/tvmflow/{bundle.digest[:16]}"
            upload(bundle, connection, place, ours=folder is None)
            log.info(f"Verifying on {host}")
            verdict = self_test(bundle, connection, place)
            if stand_in := verdict.pop("stand_in", ""):
                before["emulator"] = stand_in
            measurement = None
            if "emulator" not in before:
                log.info(f"Measuring on {host} for {seconds:g} s")
                arguments = (
                    f"--samples {seconds!r} {window_seconds(seconds)!r}" if sustained else f"--samples {seconds!r}"
                )
                samples = _runner(connection, place, arguments, threads, seconds + PATIENCE_SECONDS)
                if reason := _why_no_times(samples):
                    raise VerificationError(f"The network was run on {host}, but {reason}; build the bundle again.")
                measurement = Measurement(
                    basis="measured",
                    samples_ms=tuple(samples["samples"]),
                    threads=samples["threads"],
                    setup_ms=samples["setup"],
                    first_ms=samples["first"],
                    warmup_ms=tuple(samples["warmup"]),
                    windows=tuple(_window(row) for row in samples.get("windows", ())),
                )
            after = facts_after(lambda: facts(connection))
        return report_on(
            bundle, verdict, measurement, {"host": host, "folder": place, "before": before, "after": after}
        )


def report_on(
    bundle: Bundle,
    verdict: Mapping[str, Any],
    measurement: Measurement | None,
    board: Mapping[str, Any],
    layer_us: Sequence[Sequence[float]] = (),
) -> Report:
    """A report with what the board said of itself, and with the doubts that follow from it.

    Of an emulated board there is no measurement: its time says nothing about one.
    """
    if emulator := board["before"].get("emulator"):
        note = f"{board['host']} is emulated ({emulator}), and time there says nothing about a board."
        report = assemble(bundle, {**verdict, "method": "emulated"}, Timing(note=note))
        return {**report, "device": {"basis": "emulated", **board}}
    report = assemble(bundle, verdict, Timing(measurement=measurement, layers=layer_rows(layer_us)))
    found = doubts(bundle, board["before"], board["after"], report["latency"])
    report["latency"]["warnings"] = [*found, *changes(report["latency"].get("windows", ()))]
    return {**report, "device": {"basis": "measured", **board}}


def window_seconds(seconds: float) -> float:
    """How long a window of a sustained run is: some sixty of them, but a second to a minute each."""
    return min(60.0, max(1.0, seconds / 60))


def changes(windows: Sequence[Mapping[str, Any]]) -> list[str]:
    """In what a board changed its pace over the windows of a sustained run."""
    if not windows:
        return []
    found = []
    ordered = sorted(windows, key=lambda window: window["p50"])
    fastest, slowest = ordered[0], ordered[-1]
    if slowest["p50"] > STEADY_PACE * fastest["p50"]:
        found.append(
            f"The pace changed: p50 was {fastest['p50']:.3f} ms at {fastest['at_s']:.0f} s and {slowest['p50']:.3f} ms "
            f"at {slowest['at_s']:.0f} s."
        )
    unstable = sum(window["p90"] > NOISY_SPREAD * window["p50"] for window in windows)
    if unstable:
        found.append(f"{unstable} of {len(windows)} windows were unstable: p90 over {NOISY_SPREAD} times p50.")
    if throttled := sum(bool((throttling(window.get("throttled")) or 0) & THROTTLED_NOW) for window in windows):
        found.append(f"The board was throttled or its voltage low at the end of {throttled} of {len(windows)} windows.")
    return found


@contextlib.contextmanager
def connect(host: str, ssh_config: Path | None = None) -> Iterator[Connection]:
    """A connection to `host`, tried a few times. Raises DeviceError, MissingDependencyError, UserError."""
    if host.startswith("-") or not host or any(character.isspace() for character in host):
        raise UserError(f"--ssh takes user@host or a name of your SSH configuration, not {host!r}.")
    if ssh_config is not None and not ssh_config.is_file():
        raise UserError(f"There is no SSH configuration {ssh_config}.")
    # the path of a socket may have 107 bytes, of which ssh adds 17 for a while
    short = None if len(tempfile.gettempdir()) < 64 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="tvmflow-", dir=short) as folder:
        options = {
            "BatchMode": "yes",  # a password prompt would wait for ever
            "ConnectTimeout": CONNECT_SECONDS,
            "ConnectionAttempts": 1,
            "ServerAliveInterval": 5,
            "ServerAliveCountMax": 3,
            "ControlMaster": "auto",
            "ControlPath": f"{folder}/ssh",
            "ControlPersist": 60,
        }
        given = ["-F", str(ssh_config)] if ssh_config else []
        given += [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        connection = Connection(host=host, options=tuple(given))
        try:
            for pause in (*RETRIES_AFTER, None):
                try:
                    connection.run("true", seconds=2 * CONNECT_SECONDS, what="connecting")
                    break
                except DeviceError as error:
                    if error.kind == "auth" or pause is None:
                        raise
                    log.info(f"{error} Trying again in {pause:g} s")
                    time.sleep(pause)
            yield connection
        except FileNotFoundError as error:
            if error.filename == "ssh":
                raise MissingDependencyError("Deploying needs ssh: `apt-get install openssh-client`.") from error
            raise
        finally:
            with contextlib.suppress(OSError, peers.TimeUpError, peers.TooMuchError):
                peers.run(["ssh", *given, "-O", "exit", "--", host], seconds=CONNECT_SECONDS)


def facts(connection: Connection) -> dict[str, Any]:
    """What the board says of itself, as far as it knows: model, kernel, clock, temperature, throttling, load."""
    return parse_facts(connection.run(FACTS, seconds=60, what="asking the board for its facts").stdout)


def facts_after(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the board says of itself after a measurement, which stands also if the board says nothing any more."""
    try:
        return ask()
    except (DeviceError, OSError, ValueError) as error:
        return {"unread": [f"After the run the board's facts couldn't be read: {shortened(str(error))}"]}


def parse_facts(said: str) -> dict[str, Any]:
    """What FACTS prints, with numbers in the units of their names. What the board doesn't know is left out.

    So is what can't be read, such as an error where a number should be; then `unread` has a sentence for each.
    """
    numbers = {
        "cores": ("cores", 1),
        "memory_kib": ("memory_bytes", 1024),
        "load": ("load", 1),
        "clock_khz": ("clock_mhz", 1e-3),
        "temperature_mc": ("temperature_c", 1e-3),
    }
    texts = ("emulator", "machine", "kernel", "bits", "libc", "model", "cpu", "governor", "throttled")
    result: dict[str, Any] = {}
    unread = []
    for key, value in (line.partition("=")[::2] for line in said[: PEER.bytes].splitlines()):
        value = shortened(value)
        if not value or key not in (*texts, *numbers):
            continue
        if key in numbers:
            name, factor = numbers[key]
            with contextlib.suppress(ValueError):
                number = round(float(value) * factor, 2)
                if math.isfinite(number) and (1 <= number <= MOST_CORES or key != "cores"):
                    result[name] = number
                    continue
        elif key != "throttled" or throttling(value) is not None:
            result[key] = value
            continue
        unread.append(f"The board's {key} can't be read ({value!r}) and was left out.")
    return {**result, "unread": unread} if unread else result


def throttling(said: Any) -> int | None:
    """The flags of `vcgencmd get_throttled`, such as "0x50000"; None if it says something else."""
    return int(said, 16) if isinstance(said, str) and re.fullmatch("0x[0-9a-fA-F]{1,8}", said) else None


def why_incompatible(elf: tuple[int, str], board: Mapping[str, Any], host: str, *, alone: bool = False) -> str | None:
    """Why a board that says this of itself can't run code of that ELF class and machine; None if it can.

    A bundle without a library has none that could be another board's. What runs `alone` needs no C library of it, and
    runs on a 64-bit ARM kernel in 32 bits as well.
    """
    if elf == NO_ELF:
        return None
    machine = board.get("machine", "")
    bits = board.get("bits") or BITS.get(machine, "64")
    if MACHINES.get((machine, bits)) != elf and not (alone and MACHINES.get((machine, f"{elf[0]}")) == elf):
        return (
            f"The bundle is {elf[0]}-bit {elf[1]} code; {host} is {board.get('machine', 'of an unknown kind')} with a "
            f"{board.get('bits', '?')}-bit system. Nothing was sent."
        )
    if alone:
        return None
    name, _, version = board.get("libc", "").partition(" ")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name != "glibc" or numbers < OLDEST_GLIBC:
        return (
            f"{host} has {board.get('libc') or 'another C library than glibc'}; TVM's runtime needs glibc "
            f"{'.'.join(map(str, OLDEST_GLIBC))} or newer. Nothing was sent."
        )
    return None


def last_line(said: str) -> str:
    """The last of what a peer complained of, for people."""
    lines = [line for line in said.splitlines() if line.strip()]
    return shortened(lines[-1]) if lines else "no message"


LOOK = """
[ -L "$final" ] && echo link && exit
[ -e "$final" ] || { echo nothing && exit; }
[ -d "$final" ] || { echo file && exit; }
here=$(pwd -P) && cd "$final" || exit 1
case "$here/" in "$(pwd -P | sed 's#/$##')"/*) echo home && exit ;; esac
echo folder
section() { find . ! -name . "$@" -print0 | head -c 500000; printf '\\0'; }
section ! -type d ! -type f
section -type d
section -type f
[ ! -f manifest.json ] || head -c 16777217 manifest.json
"""
"""Portable shell: what is at the place of a bundle. Names end in NUL, and an empty one ends those of a kind."""

RECEIVE = """
umask 077
refuse() { echo "$1" >&2; exit 1; }
hold() { (cd "$1" 2>/dev/null && sha256sum -c "$2" >/dev/null 2>&1); } # the folder $1 the files of the list $2
finish() { # what went aside goes back, unless it is ours throughout and something is in its place
  if [ -e "$scratch/old" ] && ! { [ -e "$scratch/verified" ] && [ -e "$final" ]; }; then
    mv -T "$scratch/old" "$final" || return
  fi
  rm -rf "$scratch"
}
mkdir -p "$(dirname "$scratch")" && mkdir "$scratch" || exit 1
trap finish EXIT
trap 'exit 1' HUP INT TERM PIPE
scratch=$(cd "$scratch" && pwd -P) || exit 1
echo "$mark" > "$scratch/$marker" || exit 1
# what boards left that lost power meanwhile: eight digits of ours, and our mark in it
for left in "$final".tvmflow-[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]; do
  [ ! -L "$left" ] && [ "$(cat "$left/$marker" 2>/dev/null)" = "$mark" ] &&
    { [ ! -e "$left/old" ] || [ -e "$left/verified" ]; } &&
    find "$left" -maxdepth 0 -mmin +60 -exec rm -rf {} +
done
(cd "$scratch" && tar xf -) || exit 1
hold "$scratch/bundle" "$scratch/new" || refuse "what arrived isn't what was sent"
if [ -e "$final" ] || [ -L "$final" ]; then
  [ ! -L "$final" ] && hold "$final" "$scratch/new" && exit 0 # another client was first
  [ "$replace" ] && [ ! -L "$final" ] || refuse "something has come into its place meanwhile"
  # It goes aside whole, and back if it isn't what it was when it was looked at.
  mv -T "$final" "$scratch/old" || exit 1
  (cd "$scratch/old" && find . ! -type d | LC_ALL=C sort) > "$scratch/found"
  if ! cmp -s "$scratch/found" "$scratch/names" || { [ -s "$scratch/sums" ] && ! hold "$scratch/old" "$scratch/sums"; }
  then
    refuse "something in it has changed meanwhile"
  fi
  : > "$scratch/verified"
fi
mv -T "$scratch/bundle" "$final"
"""
"""Portable shell: a bundle from standard input into its place, whole or not at all."""

MARKER, MARK = ".tvmflow-upload", "made by tvmflow deploy"


def upload(bundle: Bundle, connection: Connection, place: str, *, ours: bool = False) -> None:
    """Put the bundle into the board's folder `place`, whole or not at all, unless it is there.

    What is there is replaced if all of it is the files that a bundle's manifest lists, with their SHA-256; if the place
    is `ours`, named by the bundle's digest, also where files have been damaged. Raises DeviceError, UserError.
    """
    place = f"./{place}" if place.startswith("-") else place
    place = place.rstrip("/") or "/"
    new = _sums(bundle)
    final, scratch = shlex.quote(place), shlex.quote(f"{place}.tvmflow-{secrets.token_hex(4)}")
    there = f"cd {final} 2>/dev/null && sha256sum -c - >/dev/null 2>&1"
    found = connection.run(there, seconds=TEST_SECONDS, what="checking", send=lambda stream: stream.write(new))
    if found.returncode == 0:
        log.info(f"{connection.host} has {bundle.name} already")
        return
    old = _replaceable(bundle, connection, place, ours)
    replace = "" if old is None else "yes"
    variables = f"final={final} scratch={scratch} replace={replace} marker={MARKER} mark='{MARK}'\n"
    names = "".join(f"./{name}\n" for name in sorted(old or ())).encode()
    files = {"new": new, "names": names, "sums": b"" if ours else _lines(old or {})}
    done = connection.run(
        variables + RECEIVE,
        seconds=UPLOAD_SECONDS,
        what="uploading",
        send=lambda stream: _send(bundle, files, stream, connection.host),
    )
    if done.returncode != 0:
        raise DeviceError(
            f"{bundle.path} can't be put into {place} on {connection.host}, where nothing was left of it: "
            f"{last_line(done.stderr)}.",
            "upload",
        )


def _sums(bundle: Bundle) -> bytes:
    """The bundle's files as `sha256sum` takes them. Raises UserError for names that it can't take."""
    members = {name: row["sha256"] for name, row in bundle.manifest["members"].items()}
    return _lines({**members, bundles.MANIFEST: bundle.digest})


def _lines(sums: Mapping[str, str]) -> bytes:
    if bad := next((name for name in sums if not name.isprintable()), None):
        raise UserError(f"The bundle has a member named {bad!r}, which can't be carried to a board.")
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()


def _replaceable(bundle: Bundle, connection: Connection, place: str, ours: bool) -> dict[str, str] | None:
    """The files at `place`, all of a bundle, with the SHA-256 that its manifest gives; None if there is nothing.

    Raises UserError, which names what is there and of no bundle.
    """
    final, what = shlex.quote(place), "looking at what is there"
    looked = connection.run(
        f"final={final}\n{LOOK}", seconds=TEST_SECONDS, what=what, most_bytes=MANIFEST.bytes + (2 << 20)
    )
    kind, _, rest = looked.stdout.partition("\n")
    left = f"it was left as it is. Give {'--to another folder' if not ours else '--to a folder that is none yet'}."
    if kind == "nothing":
        return None
    if kind != "folder":
        seen = {"link": "is a symbolic link", "file": "is no folder", "home": "is or holds the home folder"}
        raise UserError(f"{place} on {connection.host} {seen.get(kind, 'cannot be looked into')}; {left}")

    def refuse(name: str, why: str = "is of no bundle of tvmflow") -> UserError:
        return UserError(f"{place} on {connection.host} holds {shortened(name)!r}, which {why}; {left}")

    sections, text = [], rest
    for _ in range(3):
        content, separator, text = text.partition("\0\0") if not text.startswith("\0") else ("", "\0", text[1:])
        if not separator:
            raise UserError(f"{place} on {connection.host} can't be looked into; {left}")
        sections.append([name.removeprefix("./") for name in content.split("\0") if name])
    others, folders, found = sections
    known = {bundles.MANIFEST: "", **dict.fromkeys(bundle.manifest["members"], "")} if ours else _listed(text)
    parents = {str(parent) for name in known for parent in PurePosixPath(name).parents}
    for name in (*others, *(name for name in found if name not in known)):
        raise refuse(name)
    for name in folders:
        if name not in parents:
            raise refuse(name)
    old = {name: known[name] for name in found}
    if not ours and old:
        check = f"cd {final} && LC_ALL=C sha256sum -c - 2>/dev/null | grep -v ': OK$' | head -n 1"
        lines = _lines(old)
        checked = connection.run(check, seconds=TEST_SECONDS, what=what, send=lambda stream: stream.write(lines))
        if checked.stdout.strip():
            raise refuse(checked.stdout.strip().rpartition(": ")[0], "isn't as tvmflow wrote it")
    return old


def _listed(manifest: str) -> dict[str, str]:
    """The files of a bundle with this manifest, itself included, and their SHA-256; none if it is no bundle's."""
    try:
        content = peers.parse_json(manifest)
        members = {str(name): str(row["sha256"]) for name, row in content["members"].items()}
        ours = content["format"] == bundles.FORMAT
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    if not ours or not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in members.values()):
        return {}
    return {**members, bundles.MANIFEST: hashlib.sha256(manifest.encode()).hexdigest()}


def _send(bundle: Bundle, files: Mapping[str, bytes], stream: IO[bytes], host: str) -> None:
    """An archive of the bundle in a folder "bundle", after `files` beside it."""
    from tqdm import tqdm

    members = [bundles.MANIFEST, *bundle.manifest["members"]]
    total = sum((bundle.root / name).stat().st_size for name in members)
    with (
        progress.own_line(),
        tqdm(
            desc=f"to {host}",
            total=total,
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            disable=None if progress.wanted() else True,
        ) as bar,
        tarfile.open(mode="w|", fileobj=cast(Any, _Counting(stream, bar))) as archive,
    ):
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name in members:
            archive.add(bundle.root / name, f"bundle/{name}", filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    runs = member.name == f"bundle/{device.PROGRAM}" or member.name.endswith(".so")
    member.mode = 0o755 if runs else 0o644
    return member


class _Counting:
    """A stream that moves a progress bar."""

    def __init__(self, stream: IO[bytes], bar: Any) -> None:
        self.stream, self.bar = stream, bar

    def write(self, content: bytes) -> int:
        self.bar.update(len(content))
        return self.stream.write(content)


def self_test(bundle: Bundle, connection: Connection, place: str) -> dict[str, Any]:
    """The golden vectors on the board, as a verdict like `verify`'s. Raises VerificationError if one is off."""
    result = _runner(connection, place, "--self-test", None, TEST_SECONDS)
    vectors = bundle.vectors()
    if reason := _why_no_verdicts(result, vectors):
        raise VerificationError(f"The runner on {connection.host} gives no verdict: {reason}; build the bundle again.")
    return {
        **({"stand_in": result["stand_in"]} if "stand_in" in result else {}),
        "method": "device",
        **judge(vectors, result["vectors"], bundle.target.arithmetic, bundle.tolerances(vectors)),
    }


def _runner(connection: Connection, place: str, arguments: str, threads: int | None, seconds: float) -> dict[str, Any]:
    environment = f"TVM_NUM_THREADS={threads} " if threads else ""
    remote = f"{environment}{shlex.quote(f'{place}/{device.PROGRAM}')} {arguments}"
    done = connection.run(remote, seconds=seconds, what="running the network", most_bytes=RESULT.bytes)
    if done.returncode > 128:
        with contextlib.suppress(ValueError):  # a code of its own
            name = signal.Signals(done.returncode - 128).name
            hint = "; it was built for a CPU with other instructions" if name == "SIGILL" else ""
            raise VerificationError(f"The network crashed with {name} on {connection.host}{hint}.")
    if done.returncode not in (0, 3):
        raise VerificationError(f"The network can't be run on {connection.host}: {last_line(done.stderr)}")
    try:
        said = peers.parse_json(done.stdout)
        if not isinstance(said, dict):
            raise ValueError("it is no JSON object")
        if done.returncode == 3:
            failed = [shortened(str(row["name"])) for row in said["vectors"] if not row["passed"]]
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError(
            f"The runner on {connection.host} prints something else than its results: {shortened(done.stdout)!r}."
        ) from error
    if done.returncode == 3:
        raise VerificationError(
            f"The network computes something else on {connection.host} than the original does: {', '.join(failed)}."
        )
    return said


def _why_no_verdicts(said: Mapping[str, Any], vectors: Sequence[Vector]) -> str:
    """Why this isn't what was found of these vectors; "" if it is."""
    rows = said.get("vectors")
    if not isinstance(rows, list) or len(rows) != len(vectors):
        return f"it has {len(rows) if isinstance(rows, list) else 'no'} vectors, and the bundle {len(vectors)}"
    for vector, row in zip(vectors, rows, strict=True):
        errors = row.get("abs_errors") if isinstance(row, dict) else None
        if not isinstance(errors, list) or len(errors) != len(vector.outputs):
            return f"of the vector {vector.name} it has not one error for each output"
        if not all(error is None or (peers.is_number(error) and error >= 0) for error in errors):
            return f"of the vector {vector.name} it has errors that are no numbers"
        if row.get("same_class") not in (None, True, False):
            return f"of the vector {vector.name} it says {shortened(str(row['same_class']))!r} of the class"
    return ""


def _why_no_times(said: Mapping[str, Any]) -> str:
    """Why this isn't what the runner says of a measurement; "" if it is."""
    for name in ("samples", "warmup"):
        rows = said.get(name)
        if not isinstance(rows, list) or not all(peers.is_number(value) and value >= 0 for value in rows):
            return f"what it says of {name} are no times"
    if not said["samples"]:
        return "it took no time"
    for name in ("setup", "first", "threads"):
        if not peers.is_number(said.get(name)) or said[name] < 0:
            return f"what it says of {name} is no number"
    windows = said.get("windows", [])
    figures = ("at_s", "p50", "p90", "p99", "mean", "min", "max", "repeats")
    if not isinstance(windows, list) or not all(
        isinstance(row, dict) and all(peers.is_number(row.get(name)) for name in figures) for row in windows
    ):
        return "what it says of windows are no times"
    return ""


def _window(said: Mapping[str, Any]) -> dict[str, Any]:
    """A window without what its board couldn't read of itself."""
    numbers = {name: value for name, value in said.items() if name != "throttled" and peers.is_number(value)}
    flags = said.get("throttled")
    return {**numbers, "throttled": flags} if throttling(flags) is not None else numbers


def doubts(
    bundle: Bundle, before: Mapping[str, Any], after: Mapping[str, Any], figures: Mapping[str, Any]
) -> list[str]:
    """Why the figures may not be the board's best or may not be the board's at all."""
    found = []
    model, identity = before.get("model", ""), bundle.target.identity
    if not model.startswith(identity) or not identity:
        found.append(
            f"Built for {bundle.target.name}, measured on {model or before.get('cpu') or 'an unnamed computer'}."
        )
    if before.get("load", 0.0) > 0.5 * before.get("cores", 1.0):
        found.append(f"The board was busy: load {before['load']} before the run.")
    if after.get("governor", "performance") != "performance":
        found.append(f"The clock is governed by {after['governor']}, so it may have been low for a while.")
    if throttling(after.get("throttled")):
        found.append(f"The board reports throttling or low voltage (flags {after['throttled']}).")
    found += dict.fromkeys([*before.get("unread", ()), *after.get("unread", ())])
    return found + disturbances(figures["p50"], figures["p90"], figures["min"], figures["repeats"])
