#!/bin/sh
# Installs what running ARM code on this computer takes, qemu's user-mode emulators and the boards' C and C++ libraries,
# and the SSH client that deploying takes; with --tests also the SSH server that the tests of deploying run for themselves
# (Debian starts one of its own, too), proot for the emulated board of tools/emulated-board.py, what microcontrollers
# take: qemu's machines, the bare-metal compiler and CMake of the example in their bundles; Oclgrind, which sees data races
# of GPU kernels; Chromium, in which reports are looked at; and llvm-mca with the emulators that take plugins, by which
# cycles are modelled. Everything else, linkers included, comes with `pip install tvmflow`.
set -eu

packages="qemu-user-static libc6-arm64-cross libstdc++6-arm64-cross libc6-armhf-cross openssh-client"
[ "${1:-}" = --tests ] && packages="$packages openssh-server proot \
    qemu-system-arm gcc-arm-none-eabi cmake oclgrind chromium llvm-22 qemu-user"

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "This is no Debian or Ubuntu system: install qemu's user-mode emulators for aarch64 and arm with its own package" \
        "manager, and set QEMU_LD_PREFIX to a folder with an ARM system's lib/." >&2
    exit 1
fi

missing=""
for package in $packages; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
if [ -z "$missing" ]; then
    echo "All there: $packages"
    exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
    sudo=""
elif command -v sudo >/dev/null; then
    sudo="sudo"
else
    echo "Run this as root, for there is no sudo; missing:$missing" >&2
    exit 1
fi

echo "Installing:$missing"
$sudo apt-get update --quiet
# shellcheck disable=SC2086 # the list is meant to be split
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends $missing
