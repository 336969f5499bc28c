#!/bin/sh
# Runs a command as on a machine without any of the packages that tools/install-system-packages.sh --tests installs:
#
#     tools/on-a-bare-machine.sh make demo
#
# What apt would remove together with these packages is what such a machine lacks; Python and make stay. Their files are
# deleted from a layer over /usr (overlayfs) that the command alone sees, with all that it starts, and that ends with it;
# what they have elsewhere stays. The network, the home folder with its caches and .venv are this computer's. It takes
# root. Where a machine can't be made bare, the exit code is 77, and nothing was run.
set -eu

cannot() {
    echo "Nothing was run on a bare machine: $1" >&2
    exit 77
}

# Within the namespace: `--layer FOLDER FILES COMMAND…` deletes what FILES lists, then runs the command.
if [ "${1:-}" = --layer ]; then
    folder=$2 files=$3
    shift 3
    mount -t tmpfs -o mode=755 bare "$folder" || cannot "no tmpfs can be mounted."
    mkdir "$folder/upper" "$folder/work"
    mount -t overlay -o "lowerdir=/usr,upperdir=$folder/upper,workdir=$folder/work" bare /usr ||
        cannot "no overlay can be mounted over /usr."
    xargs -d '\n' rm -df -- <"$files" 2>/dev/null || true # folders that others use as well stay
    cd "$PWD"
    exec "$@"
fi

if [ $# -eq 0 ]; then
    echo "Say what to run: $0 COMMAND…" >&2
    exit 2
fi
[ "$(id -u)" -eq 0 ] || cannot "hiding packages takes root."
for command in apt-get dpkg-query unshare; do
    command -v $command >/dev/null || cannot "there is no $command."
done
unshare --mount true 2>/dev/null || cannot "mount namespaces can't be made."

is_installed() { [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

installed="" kept=""
for package in $("$(dirname "$0")/install-system-packages.sh" --tests --list); do
    if is_installed "$package"; then installed="$installed $package"; fi
done
for package in python3 make; do
    if is_installed "$package"; then kept="$kept $package+"; fi
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/layer"
removed() { apt-get --simulate "$@" | sed -n 's/^Remv \([^ ]*\).*/\1/p' | sort; }
removed autoremove >"$scratch/unused" # what nothing needs even now is no matter of these packages
# shellcheck disable=SC2086 # the lists are meant to be split
removed --auto-remove remove $installed $kept | comm -23 - "$scratch/unused" >"$scratch/hidden"
xargs -r dpkg-query --listfiles <"$scratch/hidden" | grep -E '^/.*/[^/]' | sort -u >"$scratch/named"
# Only what really lies under /usr, whatever links lead there; deepest first, so that folders come after what is in them.
sed 's|/[^/]*$||' "$scratch/named" | xargs -r -d '\n' realpath -m -- | paste - "$scratch/named" |
    awk -F'\t' '$1 ~ "^/usr/" { sub(".*/", "", $2); print $1 "/" $2 }' | sort -ru >"$scratch/files"

unshare --mount "$0" --layer "$scratch/layer" "$scratch/files" "$@"
