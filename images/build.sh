#!/usr/bin/env bash
# Build the images: `make images`, or `images/build.sh trainer|operator` for one. All that can differ between machines is in the
# environment, and each has a public default.
#
#   TRAINER_IMAGE     name and tag of what is built                                            ddp-trainer:0.1.0
#   OPERATOR_IMAGE    the same of the operator                                                 ddp-operator:0.1.0
#   BASE_IMAGE        any Debian or Ubuntu image with Python >= 3.11                           python:3.11-slim-bookworm
#   TORCH_BASE_IMAGE  instead of BASE_IMAGE for the trainer: one that has torch in /opt/venv   (none)
#   TORCH_INDEX_URL   package index for torch, such as PyTorch's own for CPU builds            (the default index, CUDA builds)
#   BAKE              data that is decoded into the trainer's image: sample or none            sample
#   BUILD_CA_BUNDLE   CA bundle for pip and uv, where a proxy signs for the package index      (none)
#   IMAGE_SOURCE      address of the source code, for the label                                git's origin, if it is an https one
set -euo pipefail
cd "$(dirname "$0")/.."
which=${*:-trainer operator}
case ${BAKE:=sample} in sample | none) ;; *) echo "images: BAKE is $BAKE; it can be sample or none (one's own data: docs/kubernetes.md)" >&2; exit 2 ;; esac
# the commit's time, not the clock's: the same commit makes the same image, which `kind load` then need not load again
common=(--build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)"
  --build-arg "CREATED=$(git log -1 --format=%cI 2>/dev/null || date -u +%Y-%m-%dT%H:%M:%SZ)")
[ -z "${BUILD_CA_BUNDLE:-}" ] || common+=(--secret "id=ca,src=$BUILD_CA_BUNDLE")
source=${IMAGE_SOURCE:-$({ git config --get remote.origin.url 2>/dev/null || true; } | sed -n 's#^https://\([^@/]*@\)\{0,1\}\(.*\)$#https://\2#p')} # no password
[ -z "$source" ] || common+=(--label "org.opencontainers.image.source=${source%.git}")
command -v docker >/dev/null || { echo "images: docker is not on PATH; install Docker 20.10 or newer" >&2; exit 1; }

build() { # folder, name and tag, base or nothing, further arguments
  local folder=$1 image=$2 base=$3
  shift 3
  DOCKER_BUILDKIT=1 docker build "${common[@]}" --build-arg "VERSION=${image##*:}" ${base:+--build-arg "BASE_IMAGE=$base"} "$@" \
    -f "images/$folder/Dockerfile" -t "$image" .
}
for name in $which; do
  case $name in
    trainer) build trainer "${TRAINER_IMAGE:-ddp-trainer:0.1.0}" "${TORCH_BASE_IMAGE:-${BASE_IMAGE:-}}" --build-arg "BAKE=$BAKE" \
      ${TORCH_INDEX_URL:+--build-arg "TORCH_INDEX_URL=$TORCH_INDEX_URL"} ;;
    operator) build operator "${OPERATOR_IMAGE:-ddp-operator:0.1.0}" "${BASE_IMAGE:-}" ;;
    *) echo "images: there is no image $name; there are trainer and operator" >&2; exit 2 ;;
  esac
done
