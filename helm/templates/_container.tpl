{{/* The container that trains, and its volumes. Arguments as in _pod.tpl. */}}

{{- define "ddp.container" -}}
{{- $v := .root.Values -}}
name: pytorch
image: {{ include "ddp.image" .root }}
imagePullPolicy: {{ $v.image.pullPolicy }}
args: [--config, /etc/ddp/config.json]
{{- $env := list }}
{{- if eq $v.topology "workers" }}
{{- /* the controller injects neither rank nor address into a job without a Master */}}
{{- $env = append $env (dict "name" "PET_NODE_RANK" "valueFrom" (dict "fieldRef" (dict "fieldPath" "metadata.labels['training.kubeflow.org/replica-index']"))) }}
{{- $env = append $env (dict "name" "MASTER_ADDR" "value" (printf "%s-worker-0" .job)) }}
{{- $env = append $env (dict "name" "MASTER_PORT" "value" "23456") }}
{{- end }}
{{- with concat $env $v.extraEnv }}
env: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.extraEnvFrom }}
envFrom: {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - {name: pytorchjob-port, containerPort: 23456}
  - {name: telemetry, containerPort: 9400}
# Liveness only: a pod that is not ready has no DNS name, and the gang could not meet. It says that the agent is alive, not that it trains.
livenessProbe:
  httpGet: {path: /healthz, port: telemetry}
  initialDelaySeconds: 30
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 12
resources: {{- include "ddp.resources" .root | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: config, mountPath: /etc/ddp, readOnly: true}
  - {name: checkpoints, mountPath: {{ $v.checkpoint.mountPath }}}
  - {name: cache, mountPath: /cache}
  - {name: tmp, mountPath: /tmp}
  - {name: shm, mountPath: /dev/shm}
  {{- if $v.data.claim }}
  - {name: data, mountPath: /data, readOnly: true}
  {{- end }}
  {{- with $v.extraVolumeMounts }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}

{{- define "ddp.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- $gpus := int .Values.gpusPerReplica -}}
{{- if $gpus -}}
{{- if eq .Values.gpu.mode "dra" -}}
{{- $_ := set $resources "claims" (list (dict "name" "gpus")) -}}
{{- else -}}
{{- $_ := set $resources "limits" (merge (dict .Values.gpu.resourceName $gpus) (default dict $resources.limits)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

{{- define "ddp.volumes" -}}
{{- $v := .root.Values -}}
- name: config
  configMap: {name: {{ .job }}}
- name: checkpoints
  {{- if or (eq .role "master") (eq $v.topology "workers") }}
  persistentVolumeClaim: {claimName: {{ include "ddp.claimName" .root }}}
  {{- else }}
  # only rank 0 touches the claim; here it is a scratch folder under the same path
  emptyDir: {sizeLimit: 1Gi}
  {{- end }}
- name: cache
  emptyDir: {sizeLimit: {{ $v.data.cacheSize }}}
- name: tmp
  emptyDir: {sizeLimit: 5Gi}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ $v.shm.size }}}
{{- if $v.data.claim }}
- name: data
  persistentVolumeClaim: {claimName: {{ $v.data.claim }}, readOnly: true}
{{- end }}
{{- with $v.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
