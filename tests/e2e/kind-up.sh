#!/usr/bin/env bash
# A local cluster that can train: kind, our two images, the Kubeflow training operator, and the NVIDIA device plugin where there is a GPU
# (or an image of it that runs over a mock driver). Safe to run again: what is there stays. It ends when the API takes a PyTorchJob.
#
#   CLUSTER                 its name                                                        ddp-e2e
#   KIND_NODE_IMAGE         node image                                                      kind's own
#   TRAINER_IMAGE           loaded into the nodes                                           ddp-trainer:0.1.0
#   OPERATOR_IMAGE          loaded into the nodes                                           ddp-operator:0.1.0
#   TRAINING_OPERATOR_IMAGE operator's image, loaded from the local engine                  upstream's, pulled by the nodes
#   PYTORCH_INIT_IMAGE      image of the init container that the operator gives to workers  upstream's
#   NVIDIA_PLUGIN_IMAGE     device plugin over a mock driver library, loaded from the local engine
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cluster=${CLUSTER:-ddp-e2e} version=v1.9.4 ready_seconds=120
trainer=${TRAINER_IMAGE:-ddp-trainer:0.1.0} operator=${OPERATOR_IMAGE:-ddp-operator:0.1.0}
kubectl() { command kubectl --context "kind-$cluster" "$@"; }
say() { echo "kind-up: $*"; }
fail() { echo "kind-up: $*" >&2; exit 1; }
has_gpu() { [ -z "${NVIDIA_PLUGIN_IMAGE:-}" ] && command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }
work=$(mktemp -d) && trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT

for tool in docker kind kubectl; do
  command -v "$tool" >/dev/null || fail "$tool is not on PATH; install it first"
done
docker info >/dev/null 2>&1 || fail "the container engine does not answer; start Docker first"
for image in "$trainer" "$operator"; do
  docker image inspect "$image" >/dev/null 2>&1 || fail "there is no image $image; run 'make images' first"
done

if ! kind get clusters 2>/dev/null | grep -qx "$cluster"; then
  say "creating cluster $cluster"
  cp "$here/../../kind-config.yaml" "$work/kind.yaml"
  if has_gpu && [ "$(docker info --format '{{.DefaultRuntime}}')" = nvidia ]; then # the mounts by which nodes are given GPUs
    sed -i -E 's/^( *)# (extraMounts:|  - \{hostPath)/\1\2/' "$work/kind.yaml"
  fi
  kind create cluster --name "$cluster" --config "$work/kind.yaml" ${KIND_NODE_IMAGE:+--image "$KIND_NODE_IMAGE"} --wait 3m
  "$here/audit-up.sh" "$cluster" || say "no audit log (above); the case 'audit' cannot run"
elif ! command kubectl config get-contexts "kind-$cluster" >/dev/null 2>&1; then
  kind export kubeconfig --name "$cluster"
fi
kubectl wait --for=condition=Ready nodes --all --timeout=120s >/dev/null

say "loading images"
workers=$(kind get nodes --name "$cluster" | grep -v control-plane | paste -sd,)
# shellcheck disable=SC2086 # an empty variable is no image
kind load docker-image --name "$cluster" --nodes "$workers" "$trainer" "$operator" ${TRAINING_OPERATOR_IMAGE:-} ${PYTORCH_INIT_IMAGE:-} ${NVIDIA_PLUGIN_IMAGE:-} \
  >"$work/load.log" 2>&1 || { cat "$work/load.log" >&2; fail "images could not be loaded into $workers"; }

say "installing the training operator $version"
if [ -n "${TRAINING_OPERATOR_IMAGE:-}" ]; then # the manifests, unchanged, come with the Go module
  module=$(cd / && GOFLAGS=-mod=mod go mod download -json "github.com/kubeflow/training-operator@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  [ -d "$module" ] || fail "the Go module of the training operator $version cannot be had"
  cp -r "$module/manifests" "$work/"
  source=$work/manifests/overlays/standalone
else
  source="github.com/kubeflow/training-operator.git/manifests/overlays/standalone?ref=$version"
fi
# server-side: the CRDs are too large for the annotation that a client-side apply writes
command kubectl kustomize "$source" |
  sed ${TRAINING_OPERATOR_IMAGE:+-e "s#image: ghcr.io/kubeflow/training-v1/training-operator:.*#image: $TRAINING_OPERATOR_IMAGE#"} \
    ${PYTORCH_INIT_IMAGE:+-e "s#^\( *\)- /manager\$#\1- /manager\n\1- --pytorch-init-container-image=$PYTORCH_INIT_IMAGE#"} -e '' |
  kubectl apply --server-side --force-conflicts -f - >/dev/null
kubectl -n kubeflow rollout status deployment/training-operator --timeout=180s >/dev/null || fail "the training operator did not start: kubectl -n kubeflow get pods"
# Available comes before its webhook has a certificate and before its Service has rules, and until then every job is refused: ask with one
probe='
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata: {name: kind-up-probe, namespace: default}
spec:
  pytorchReplicaSpecs:
    Master: {replicas: 1, restartPolicy: Never, template: {spec: {containers: [{name: pytorch, image: none}]}}}'
deadline=$((SECONDS + ready_seconds))
until kubectl create --dry-run=server --request-timeout=15s -f - <<<"$probe" >"$work/probe.log" 2>&1; do
  [ "$SECONDS" -lt "$deadline" ] || fail "the training operator still refuses a job after $ready_seconds s: $(tail -1 "$work/probe.log")"
  sleep 1
done

gpus() { kubectl get nodes -o jsonpath="{.items[*].status.allocatable['nvidia\.com/gpu']}"; }
without="install with --set gpusPerReplica=0"
if [ -n "${NVIDIA_PLUGIN_IMAGE:-}" ]; then
  say "installing the NVIDIA device plugin over a mock driver"
  sed "s#@IMAGE@#$NVIDIA_PLUGIN_IMAGE#" "$here/nvidia-mock.yaml" | kubectl apply -f - >/dev/null
  kubectl -n kube-system rollout status daemonset/nvidia-device-plugin --timeout=120s >/dev/null || fail "the device plugin did not start"
  for _ in $(seq 60); do # the kubelet tells of them with its next status
    [ "$(gpus | tr ' ' '\n' | grep -c '[1-9]')" -lt "$(tr , '\n' <<<"$workers" | wc -l)" ] || break
    sleep 1
  done
  say "nvidia.com/gpu on the nodes: $(gpus)"
elif gpus | grep -q '[1-9]'; then
  say "nvidia.com/gpu is offered already: $(gpus)"
elif has_gpu; then
  "$here/nvidia-up.sh" "$cluster" && say "nvidia.com/gpu on the nodes: $(gpus)" || say "no GPU came into the cluster (above); $without"
else
  say "no GPU and no NVIDIA_PLUGIN_IMAGE: $without"
fi
say "ready: kubectl config use-context kind-$cluster"
