#!/bin/sh
# Installs what tvmflow runs other computers' code with on this one: qemu's emulators of ARM systems, the boards' C and C++
# libraries, qemu's machines with microcontrollers, llvm-mca with the emulators that take plugins, by which cycles are
# modelled, and the SSH client that deploying takes. With --tests also the SSH server that the tests of deploying run for
# themselves (Debian starts one of its own, too), proot for the emulated board of tools/emulated-board.py, the bare-metal
# compiler and CMake of the example in microcontrollers' bundles, Oclgrind, which sees data races of GPU kernels, and
# Chromium, in which reports are looked at, and a Rust compiler if there is none. With --list it installs nothing and
# prints their names. Everything else, linkers included, comes with `pip install tvmflow`.
set -eu

packages="qemu-user-static libc6-arm64-cross libstdc++6-arm64-cross libc6-armhf-cross qemu-system-arm \
    qemu-user llvm-22 openssh-client"
listed=""
for option in "$@"; do
    case $option in
    --tests)
        packages="$packages openssh-server proot gcc-arm-none-eabi cmake oclgrind chromium"
        command -v rustc >/dev/null || packages="$packages rustc"
        ;;
    --list) listed=yes ;;
    *)
        echo "$0 takes --tests and --list, no $option." >&2
        exit 2
        ;;
    esac
done
if [ -n "$listed" ]; then
    # shellcheck disable=SC2086 # the list is meant to be split
    printf '%s\n' $packages
    exit 0
fi

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

$sudo apt-get update --quiet
offered="" absent=""
for package in $missing; do
    if [ -n "$(apt-cache madison "$package")" ]; then offered="$offered $package"; else absent="$absent $package"; fi
done
if [ -n "$offered" ]; then
    echo "Installing:$offered"
    # shellcheck disable=SC2086 # the list is meant to be split
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends $offered
fi
if [ -n "$absent" ]; then
    echo "This system's package sources have no$absent; all others are installed. \`tvmflow doctor\` says what goes" \
        "without them." >&2
    exit 1
fi
