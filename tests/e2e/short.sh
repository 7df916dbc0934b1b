#!/usr/bin/env bash
# The short form of the end-to-end cases, from nothing: image, cluster, one install, one pod killed, one uninstall.
# The cluster is its own (ddp-ci) and is deleted at the end, whatever happens; KEEP=1 leaves it.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CLUSTER=${CLUSTER:-ddp-ci}
unset NVIDIA_PLUGIN_IMAGE # no GPUs in this form
KUBECONFIG=$(mktemp) # the caller's own contexts stay as they are
export KUBECONFIG
python=python3
[ ! -x .venv/bin/python ] || python=.venv/bin/python
[ -n "${KEEP:-}" ] || trap 'kind delete cluster --name "$CLUSTER" >/dev/null 2>&1; rm -f "$KUBECONFIG"' EXIT
images/build.sh >/dev/null 2>&1 || images/build.sh # a failure is shown; success is quiet
tests/e2e/kind-up.sh
"$python" tests/e2e/run.py --short
