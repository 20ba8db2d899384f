#!/bin/sh
# base_image.sh FOLDER: makes the image that containers/Dockerfile starts from, where no registry can be reached: Debian by
# debootstrap, Debian's own Python 3.11 where the official image has it. As root; apt-get install podman runc catatonit
# debootstrap.
# Everything lies below FOLDER: images, and the two files of settings that it prints the variables for.
set -eu
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
name=$(sed -n 's/^FROM \(python:.*\)/\1/p' "$here/../../../containers/Dockerfile")
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

cat > "$folder/storage.conf" <<END
[storage]
driver = "overlay"
graphroot = "$folder/images"
runroot = "$folder/run"
END
# What holds in sandboxes too: the machine's own network, limits that need not be raised, no systemd. crun refuses machines
# with both versions of cgroups, runc does not. Pods need catatonit.
cat > "$folder/containers.conf" <<END
[containers]
netns = "host"
default_ulimits = ["nofile=8192:8192", "nproc=8192:8192"]
[engine]
runtime = "$(command -v runc > /dev/null && echo runc || echo crun)"
cgroup_manager = "cgroupfs"
events_logger = "file"
END
export CONTAINERS_STORAGE_CONF="$folder/storage.conf" CONTAINERS_CONF="$folder/containers.conf"

if ! podman image exists "$name"; then
    root=$folder/root
    rm -rf "$root"
    debootstrap --variant=minbase --include=ca-certificates,netbase,tzdata "${name##*-}" "$root" "$mirror" >&2
    # debootstrap does not resolve packages that others provide. No recommended packages: the official image has no gcc.
    DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install --yes --no-install-recommends \
        python3.11 python3.11-venv python3.11-dev python3-pip >&2
    for program in python python3 python3.11; do ln -sf /usr/bin/python3.11 "$root/usr/local/bin/$program"; done
    chroot "$root" apt-get clean
    rm -rf "$root"/var/lib/apt/lists/* "$root/debootstrap"
    version=$(chroot "$root" python3.11 -c 'import platform; print(platform.python_version())')
    tar -C "$root" --numeric-owner -c . | podman import --quiet --change 'ENV LANG=C.UTF-8' \
        --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change "ENV PYTHON_VERSION=$version" --change 'CMD ["python3"]' - "$name" >&2
    rm -rf "$root"
fi
echo "export CONTAINERS_STORAGE_CONF=$CONTAINERS_STORAGE_CONF CONTAINERS_CONF=$CONTAINERS_CONF"
echo "export VOXPRIOR_BASE_IMAGE=$name"
