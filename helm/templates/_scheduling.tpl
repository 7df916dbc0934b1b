{{/* Where pods may run. Arguments as in _pod.tpl. */}}

{{- define "ddp.scheduling" -}}
{{- $v := .root.Values -}}
{{- $gpus := int $v.gpusPerReplica -}}
{{- with $v.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $v.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- if and $gpus $v.gpu.runtimeClassName }}
runtimeClassName: {{ $v.gpu.runtimeClassName }}
{{- end }}
{{- if and $gpus (eq $v.gpu.mode "dra") }}
resourceClaims:
  - {name: gpus, resourceClaimTemplateName: {{ include "ddp.fullname" .root }}-gpus-{{ $gpus }}}
{{- end }}
{{- with $v.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
tolerations:
  {{- range list "not-ready" "unreachable" }}
  - {key: node.kubernetes.io/{{ . }}, operator: Exists, effect: NoExecute, tolerationSeconds: {{ $v.policy.nodeLostAfterSeconds }}}
  {{- end }}
  {{- if $gpus }}
  - {key: {{ $v.gpu.resourceName }}, operator: Exists, effect: NoSchedule}
  {{- end }}
  {{- with $v.tolerations }}{{ toYaml . | nindent 2 }}{{ end }}
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
