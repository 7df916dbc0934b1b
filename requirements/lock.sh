#!/bin/sh
# Renews the hash locks after a change of pyproject.toml, by the uv of the environment: requirements/lock.sh [VENV] [--upgrade]
# No index address goes into them, so that they work behind any mirror. torch and torchvision are left out, with all they bring:
# install.sh picks the build that is right for the machine.
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv}; [ $# = 0 ] || shift
compile() { "$venv/bin/uv" --quiet pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header \
  --no-annotate --no-emit-index-url "$@" >/dev/null; }

compile --extra trainer --extra report --extra operator --extra dev --output-file requirements/locked.txt "$@"
compile --extra trainer --constraints requirements/locked.txt --output-file requirements/trainer.txt "$@"
compile --extra operator --constraints requirements/locked.txt --output-file requirements/operator.txt "$@"
printf 'torch\ntorchvision\n' | compile --extra bench --excludes - --constraints requirements/locked.txt \
  --output-file requirements/bench.txt "$@"
