#!/usr/bin/env bash
# NVIDIA's device plugin in a kind cluster whose nodes see GPUs, as its users install it: the container toolkit in each node, the RuntimeClass
# nvidia, the plugin by Helm (or by its manifest). Called by kind-up.sh; every step has a bound, and a failure is a sentence and exit 1.
#
# NOT YET RUN on a machine with a GPU. The steps are those of NVIDIA's own k8s-device-plugin (demo/clusters/kind) and nvkind. The nodes need
# the network, and the host NVIDIA's container toolkit as Docker's default runtime, with accept-nvidia-visible-devices-as-volume-mounts on.
set -euo pipefail
cluster=${1:?name of the kind cluster} version=0.17.4
kubectl() { command kubectl --context "kind-$cluster" "$@"; }
fail() { echo "nvidia-up: $*" >&2; exit 1; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT

toolkit() { # in the node, as root
  cat <<'NODE'
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
# toolkits before 1.19 hide the driver's folder behind a mask, which containers in the node would inherit
if grep -q '^ModifyDeviceFiles: 1' /proc/driver/nvidia/params; then umount -R /proc/driver/nvidia || true; fi
if ! command -v nvidia-ctk; then
  key=/usr/share/keyrings/nvidia-container-toolkit.gpg from=https://nvidia.github.io/libnvidia-container
  apt-get update -qq && apt-get install -y -qq curl gpg
  curl -fsSL "$from/gpgkey" | gpg --dearmor --yes -o "$key"
  curl -fsSL "$from/stable/deb/nvidia-container-toolkit.list" | sed "s#deb https://#deb [signed-by=$key] https://#" >/etc/apt/sources.list.d/nvidia.list
  apt-get update -qq && apt-get install -y -qq nvidia-container-toolkit
fi
# the default, so that a pod needs no runtimeClassName; older ones cannot ask containerd for its configuration
nvidia-ctk runtime configure --runtime=containerd --set-as-default --config-source=command ||
  nvidia-ctk runtime configure --runtime=containerd --set-as-default
systemctl restart containerd
NODE
}

nodes=()
for node in $(kind get nodes --name "$cluster" | grep -v control-plane); do
  docker exec "$node" test -e /dev/nvidiactl || continue
  nodes+=("$node")
  echo "nvidia-up: container toolkit in $node"
  toolkit | timeout 300 docker exec -i --privileged "$node" bash >"$log" 2>&1 || { tail -5 "$log" >&2; fail "$node did not take the container toolkit"; }
  kubectl label node "$node" --overwrite nvidia.com/gpu.present=true >/dev/null # where the plugin's chart puts it
done
[ ${#nodes[@]} -gt 0 ] || fail "no node sees a GPU: make nvidia Docker's default runtime (see kind-config.yaml), then 'make kind-down kind-up'"
kubectl wait --for=condition=Ready nodes --all --timeout=120s >/dev/null || fail "the nodes did not come back after containerd's restart"

kubectl delete runtimeclass nvidia --ignore-not-found >/dev/null # its handler cannot be changed
printf 'apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: nvidia}\nhandler: nvidia\n' | kubectl apply -f - >/dev/null
if command -v helm >/dev/null; then
  timeout 300 helm upgrade --install nvidia-device-plugin nvidia-device-plugin --kube-context "kind-$cluster" --version "$version" \
    --repo https://nvidia.github.io/k8s-device-plugin --namespace nvidia-device-plugin --create-namespace \
    --set runtimeClassName=nvidia --wait --timeout 4m >"$log" 2>&1 || { tail -5 "$log" >&2; fail "the device plugin $version could not be installed"; }
else
  timeout 60 kubectl apply -f "https://raw.githubusercontent.com/NVIDIA/k8s-device-plugin/v$version/deployments/static/nvidia-device-plugin.yml" \
    >"$log" 2>&1 || { tail -5 "$log" >&2; fail "the device plugin $version could not be installed"; }
fi
for _ in $(seq 90); do
  kubectl get nodes -o jsonpath="{.items[*].status.allocatable['nvidia\.com/gpu']}" | grep -q '[1-9]' && exit 0
  sleep 1
done
fail "the device plugin runs, but no node offers nvidia.com/gpu after 90 s; see its pods' logs"
