{{/* Where pods may run. */}}

{{/* Of any pod of the release, GPUs or not. Argument: the chart's context. */}}
{{- define "ddp.nodes" -}}
{{- with .Values.priorityClassName -}}
priorityClassName: {{ . | quote }}
{{ end -}}
{{- with .Values.schedulerName -}}
schedulerName: {{ . | quote }}
{{ end -}}
{{- with .Values.nodeSelector -}}
nodeSelector: {{- toYaml . | nindent 2 }}
{{ end -}}
tolerations:
  {{- range list "not-ready" "unreachable" }}
  - {key: node.kubernetes.io/{{ . }}, operator: Exists, effect: NoExecute, tolerationSeconds: {{ $.Values.policy.nodeLostAfterSeconds }}}
  {{- end }}
  {{- if .Values.gpusPerReplica }}
  - {key: {{ .Values.gpu.resourceName | quote }}, operator: Exists, effect: NoSchedule}
  {{- end }}
  {{- with .Values.tolerations }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}

{{/* Of a pod that trains. Arguments as in _pod.tpl. */}}
{{- define "ddp.scheduling" -}}
{{- $v := .root.Values -}}
{{- $gpus := int $v.gpusPerReplica -}}
{{- include "ddp.nodes" .root }}
{{- if and $gpus $v.gpu.runtimeClassName }}
runtimeClassName: {{ $v.gpu.runtimeClassName | quote }}
{{- end }}
{{- if and $gpus (eq $v.gpu.mode "dra") }}
resourceClaims:
  - {name: gpus, resourceClaimTemplateName: {{ include "ddp.gpuClaimTemplate" .root | quote }}}
{{- end }}
{{- $affinity := include "ddp.affinity" . | fromYaml }}
{{- with $affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{- merge (deepCopy .) (dict "labelSelector" (dict "matchLabels" (include "ddp.podLabels" $.root | fromYaml))) | toYaml | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The user's; and where every pod mounts a claim that one node at a time may mount, all pods on that node. */}}
{{- define "ddp.affinity" -}}
{{- $v := .root.Values -}}
{{- $affinity := deepCopy $v.affinity -}}
{{- if and (eq $v.topology "workers") (not (has "ReadWriteMany" $v.checkpoint.accessModes)) (not $affinity.podAffinity) -}}
{{- $same := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (dict "ddp-operator.io/run" .root.Release.Name)) -}}
{{- $_ := set $affinity "podAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $same)) -}}
{{- end -}}
{{- with $affinity }}{{ toYaml . }}{{ end -}}
{{- end }}
