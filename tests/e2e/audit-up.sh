#!/usr/bin/env bash
# The API server of a kind cluster writes down what the accounts of namespaces' pods ask of it: the case `audit` reads it. Safe to run again.
# It patches the static pod of the API server, which the kubelet then starts anew: the server is away for some seconds.
set -euo pipefail
cluster=${1:-ddp-e2e} node=${1:-ddp-e2e}-control-plane wait_seconds=120
manifest=/etc/kubernetes/manifests/kube-apiserver.yaml
in_node() { docker exec -i "$node" "$@"; }
if in_node grep -q audit-policy-file "$manifest"; then exit 0; fi

in_node sh -c 'mkdir -p /etc/kubernetes/audit /var/log/kubernetes && cat >/etc/kubernetes/audit/policy.yaml' <<'POLICY'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: None, userGroups: ["system:serviceaccounts:kube-system", "system:serviceaccounts:kubeflow", "system:serviceaccounts:local-path-storage"]}
  - {level: Metadata, userGroups: ["system:serviceaccounts"]}
  - {level: None}
POLICY
# into a copy beside it, and moved: the kubelet reads any file of that folder at any moment
in_node sh -c "sed -e 's#^    - kube-apiserver\$#&\n    - --audit-policy-file=/etc/kubernetes/audit/policy.yaml\n    - --audit-log-path=/var/log/kubernetes/audit.log\n    - --audit-log-maxsize=200#' \
  -e 's#^    volumeMounts:\$#&\n    - {mountPath: /etc/kubernetes/audit, name: audit-policy, readOnly: true}\n    - {mountPath: /var/log/kubernetes, name: audit-log}#' \
  -e 's#^  volumes:\$#&\n  - {hostPath: {path: /etc/kubernetes/audit, type: Directory}, name: audit-policy}\n  - {hostPath: {path: /var/log/kubernetes, type: Directory}, name: audit-log}#' \
  $manifest >/etc/kubernetes/.apiserver.yaml && mv /etc/kubernetes/.apiserver.yaml $manifest"
deadline=$((SECONDS + wait_seconds))
until in_node test -e /var/log/kubernetes/audit.log && kubectl --context "kind-$cluster" get --raw /readyz >/dev/null 2>&1; do
  [ "$SECONDS" -lt "$deadline" ] || { echo "audit-up: the API server is not back after $wait_seconds s: docker exec $node crictl ps -a" >&2; exit 1; }
  sleep 1
done
