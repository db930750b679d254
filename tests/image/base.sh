#!/usr/bin/env bash
# Makes an image that stands for docker.io/library/python:3.11-slim where no registry can be reached: Debian 12, whose
# Python is 3.11, with python and pip where the official image has them. Root, buildah and debootstrap; 3 minutes.
set -euo pipefail
name=${1:-docker.io/library/python:3.11-slim}
mirror=${2:-http://deb.debian.org/debian}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$folder" "$mirror"
rm -rf "$folder"/var/cache/apt/archives/*.deb "$folder"/var/lib/apt/lists/* "$folder"/usr/share/{doc,man,locale}
for program in python:python3.11 python3:python3.11 python3.11:python3.11 pip:pip3 pip3:pip3; do
    ln -s "../../bin/${program#*:}" "$folder/usr/local/bin/${program%:*}"
done
container=$(buildah from scratch)
buildah add --quiet "$container" "$folder" /
buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --env LANG=C.UTF-8 \
    --cmd python3 --label cnn-jobs.stands-for="$name" "$container"
buildah commit --quiet --rm "$container" "$name"
