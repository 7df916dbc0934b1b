{{/* The containers. */}}

{{/* The one that trains. Arguments as in _pod.tpl. */}}
{{- define "ddp.container" -}}
{{- $v := .root.Values -}}
name: pytorch
image: {{ include "ddp.image" .root | quote }}
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
# The agent leaves one line of JSON; where it could not, the log's last lines say why.
terminationMessagePolicy: FallbackToLogsOnError
resources: {{- include "ddp.resources" .root | nindent 2 }}
securityContext: {{- include "ddp.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: config, mountPath: /etc/ddp, readOnly: true}
  - {name: checkpoints, mountPath: {{ $v.checkpoint.mountPath | quote }}}
  - {name: cache, mountPath: /cache}
  - {name: tmp, mountPath: /tmp}
  - {name: shm, mountPath: /dev/shm}
  {{- if $v.data.claim }}
  - {name: data, mountPath: /data, readOnly: true}
  {{- end }}
  {{- with $v.extraVolumeMounts }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}

{{/* Of helm test: the same image, environment and rights, without a GPU. Argument: the chart's context. */}}
{{- define "ddp.testContainer" -}}
image: {{ include "ddp.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.extraEnv }}
env: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom: {{- toYaml . | nindent 2 }}
{{- end }}
resources: {requests: {cpu: 100m, memory: 256Mi}, limits: {memory: 1Gi}}
securityContext: {{- include "ddp.containerSecurity" . | nindent 2 }}
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
