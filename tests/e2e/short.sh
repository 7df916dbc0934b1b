#!/usr/bin/env bash
# The short form of the end-to-end cases, from nothing: image, cluster, one install, one pod killed, one uninstall.
# The cluster is its own (ddp-ci) and is deleted before and at the end, whatever happens; KEEP=1 leaves it. Without the image it is meant to
# take less than four minutes, and says how long it took: like all times, that is no failure here, on a machine that may be any.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CLUSTER=${CLUSTER:-ddp-ci}
aim=240
unset NVIDIA_PLUGIN_IMAGE # no GPUs in this form
KUBECONFIG=$(mktemp) # the caller's own contexts stay as they are
export KUBECONFIG
python=python3
[ ! -x .venv/bin/python ] || python=.venv/bin/python
away() { kind delete cluster --name "$CLUSTER" >/dev/null 2>&1 || true; }
finish() {
  [ -n "${KEEP:-}" ] && { echo "cluster $CLUSTER stays: export KUBECONFIG=$KUBECONFIG"; return; }
  away
  rm -f "$KUBECONFIG"
}
trap finish EXIT
images/build.sh >/dev/null 2>&1 || images/build.sh # a failure is shown; success is quiet
built=$SECONDS
away
tests/e2e/kind-up.sh
code=0
"$python" tests/e2e/run.py --short || code=$?
took=$((SECONDS - built))
echo "short form: $took s from no cluster to the end$([ "$took" -lt "$aim" ] || echo ", SLOWER than the $aim s that are meant"); the image took $built s"
exit "$code"
