#!/bin/sh
# Makes a virtual environment with everything the Makefile needs: requirements/install.sh PYTHON VENV
# Pinned and hashed: uv (bootstrap.txt) and all of locked.txt. torch and torchvision stand outside the lock, because which build is
# right depends on the machine: without an NVIDIA driver the CPU build (200 MB instead of 5 GB) where its index can be reached.
set -eu
python=$1 venv=$2
TORCH="torch==2.15.0 torchvision==0.29.2" # they must match each other; pyproject.toml says which range is supported

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "install: $("$python" --version) is too old; Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 2; }
"$python" -m venv "$venv" || {
  echo "install: $python cannot make virtual environments; install its venv module (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
uv() { VIRTUAL_ENV=$venv "$venv/bin/uv" --quiet "$@"; }

uv pip install --require-hashes -r requirements/locked.txt
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
  echo "install: NVIDIA driver found; $TORCH with CUDA"
  uv pip install $TORCH
elif UV_HTTP_RETRIES=0 uv pip install --torch-backend cpu $TORCH 2>/dev/null; then
  echo "install: no NVIDIA driver; $TORCH for CPU"
else
  echo "install: no NVIDIA driver, but the index of CPU builds cannot be reached; taking the default build of $TORCH (5 GB)"
  uv pip install $TORCH
fi
uv pip install --no-deps --no-build-isolation --editable .

# Byte code of what every start imports. Many images forbid Python to write it while it runs (PYTHONDONTWRITEBYTECODE): each start
# would compile torch anew, which is 2 s of CPU time a process. It is also the first sign that the installation is whole.
env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" images/trainer/warm.py
env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -c 'import torch._dynamo'
