#!/usr/bin/env bash
# A local cluster that can train: kind, the trainer's image, the Kubeflow training operator, and the NVIDIA device plugin where there is a GPU
# (or an image of it that runs over a mock driver). Safe to run again: what is there stays.
#
#   CLUSTER                 its name                                                        ddp-e2e
#   KIND_NODE_IMAGE         node image                                                      kind's own
#   TRAINER_IMAGE           loaded into the nodes                                           ddp-trainer:0.1.0
#   TRAINING_OPERATOR_IMAGE operator's image, loaded from the local engine                  upstream's, pulled by the nodes
#   PYTORCH_INIT_IMAGE      image of the init container that the operator gives to workers  upstream's
#   NVIDIA_PLUGIN_IMAGE     device plugin over a mock driver library, loaded from the local engine
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cluster=${CLUSTER:-ddp-e2e} version=v1.9.4
trainer=${TRAINER_IMAGE:-ddp-trainer:0.1.0}
kubectl() { command kubectl --context "kind-$cluster" "$@"; }
say() { echo "kind-up: $*"; }

for tool in docker kind kubectl; do
  command -v "$tool" >/dev/null || { echo "kind-up: $tool is not on PATH; install it first" >&2; exit 1; }
done
docker image inspect "$trainer" >/dev/null 2>&1 || { echo "kind-up: there is no image $trainer; run 'make images' first" >&2; exit 1; }

if ! kind get clusters 2>/dev/null | grep -qx "$cluster"; then
  say "creating cluster $cluster"
  kind create cluster --name "$cluster" --config "$here/../../kind-config.yaml" ${KIND_NODE_IMAGE:+--image "$KIND_NODE_IMAGE"} --wait 3m
fi
kubectl wait --for=condition=Ready nodes --all --timeout=120s >/dev/null

say "loading images"
workers=$(kind get nodes --name "$cluster" | grep -v control-plane | paste -sd,)
kind load docker-image --name "$cluster" --nodes "$workers" "$trainer" ${TRAINING_OPERATOR_IMAGE:-} ${PYTORCH_INIT_IMAGE:-} ${NVIDIA_PLUGIN_IMAGE:-} 2>&1 | grep -v 'not yet present' || true

say "installing the training operator $version"
if [ -n "${TRAINING_OPERATOR_IMAGE:-}" ]; then # the manifests, unchanged, come with the Go module
  module=$(cd / && GOFLAGS=-mod=mod go mod download -json "github.com/kubeflow/training-operator@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  work=$(mktemp -d) && trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
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
kubectl -n kubeflow rollout status deployment/training-operator --timeout=180s >/dev/null
# Available comes before its webhook has a certificate, and until then every job is refused
for _ in $(seq 60); do
  [ -n "$(kubectl get validatingwebhookconfiguration validator.training-operator.kubeflow.org -o jsonpath='{.webhooks[0].clientConfig.caBundle}')" ] && break
  sleep 1
done

if [ -n "${NVIDIA_PLUGIN_IMAGE:-}" ]; then
  say "installing the NVIDIA device plugin over a mock driver"
  sed "s#@IMAGE@#$NVIDIA_PLUGIN_IMAGE#" "$here/nvidia-mock.yaml" | kubectl apply -f - >/dev/null
  kubectl -n kube-system rollout status daemonset/nvidia-device-plugin --timeout=120s >/dev/null
  for _ in $(seq 60); do # the kubelet tells of them with its next status
    gpus=$(kubectl get nodes -o jsonpath="{.items[*].status.allocatable['nvidia\.com/gpu']}")
    [ "$(wc -w <<<"$gpus")" -lt "$(tr , ' ' <<<"$workers" | wc -w)" ] || break
    sleep 1
  done
  say "nvidia.com/gpu on the nodes: ${gpus:-none}"
elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  say "a GPU is here: install the NVIDIA device plugin as docs/kubernetes.md says (the nodes need the container toolkit)"
else
  say "no GPU and no NVIDIA_PLUGIN_IMAGE: install with --set gpusPerReplica=0"
fi
say "ready: kubectl config use-context kind-$cluster"
