#!/usr/bin/env bash
# Build the trainer's image: `make images`. All that can differ between machines is in the environment, and each has a public default.
#
#   TRAINER_IMAGE     name and tag of what is built                                            ddp-trainer:0.1.0
#   BASE_IMAGE        any Debian or Ubuntu image with Python >= 3.11                           python:3.11-slim-bookworm
#   TORCH_BASE_IMAGE  instead of BASE_IMAGE: one that has torch in /opt/venv already           (none)
#   TORCH_INDEX_URL   package index for torch, such as PyTorch's own for CPU builds            (the default index, CUDA builds)
#   BUILD_CA_BUNDLE   CA bundle for pip and uv, where a proxy signs for the package index      (none)
set -euo pipefail
cd "$(dirname "$0")/.."
image=${TRAINER_IMAGE:-ddp-trainer:0.1.0}
arguments=(--build-arg "VERSION=${image##*:}" --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)")
base=${TORCH_BASE_IMAGE:-${BASE_IMAGE:-}}
[ -z "$base" ] || arguments+=(--build-arg "BASE_IMAGE=$base")
[ -z "${TORCH_INDEX_URL:-}" ] || arguments+=(--build-arg "TORCH_INDEX_URL=$TORCH_INDEX_URL")
[ -z "${BUILD_CA_BUNDLE:-}" ] || arguments+=(--secret "id=ca,src=$BUILD_CA_BUNDLE")
command -v docker >/dev/null || { echo "images: docker is not on PATH; install Docker 20.10 or newer" >&2; exit 1; }
DOCKER_BUILDKIT=1 docker build "${arguments[@]}" -f images/trainer/Dockerfile -t "$image" .
