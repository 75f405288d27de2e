#!/bin/sh
# lock.sh VERSION: writes requirements/pyXY.txt (what the package needs, and what reads the Hugging Face Hub: pods
# install this, and named data sets come from there), pyXY-dev.txt (the tests as well) and pyXY-docs.txt (the
# package and what builds its pages, in versions that fit the tests').
#
# Torch's CUDA libraries are left out: a CPU build needs none of them, and a CUDA build asks for its own.
set -eu
cd "$(dirname "$0")/.."
version=$1
lock=requirements/py$(echo "$version" | tr -d .)

compile() {
  uv pip compile --upgrade --quiet --no-annotate --python-version "$version" \
    --python-platform x86_64-manylinux_2_28 --custom-compile-command 'make lock' setup.py "$@"
}

compile --extra hf --output-file "$lock.txt"
compile --extra dev --constraint "$lock.txt" --output-file "$lock-dev.txt"
sed -i -E '/^(nvidia-|cuda-|triton=)/d' "$lock-dev.txt"
compile --extra docs --constraint "$lock.txt" --constraint "$lock-dev.txt" --output-file "$lock-docs.txt"
