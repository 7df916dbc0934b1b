{{/* The pods. Arguments: root (the chart's context), job (the job's name), role (master or worker). */}}

{{- define "ddp.replicaSpecs" -}}
{{- $v := .root.Values -}}
{{- $workers := int $v.replicas -}}
{{- if eq $v.topology "master" -}}
{{- $workers = sub $workers 1 -}}
Master:
  replicas: 1
  restartPolicy: ExitCode
  template:
    {{- include "ddp.podTemplate" (dict "root" .root "job" .job "role" "master") | nindent 4 }}
{{- end }}
{{- if $workers }}
Worker:
  replicas: {{ $workers }}
  restartPolicy: ExitCode
  template:
    {{- include "ddp.podTemplate" (dict "root" .root "job" .job "role" "worker") | nindent 4 }}
{{- end }}
{{- end }}

{{- define "ddp.podTemplate" -}}
{{- $v := .root.Values -}}
metadata:
  {{- /* the chart's own win: the NetworkPolicy knows the pods by them */}}
  labels: {{- merge (include "ddp.podLabels" .root | fromYaml) $v.podLabels | toYaml | nindent 4 }}
  {{- $annotations := include "ddp.podAnnotations" .root | fromYaml }}
  {{- with $annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "ddp.serviceAccountName" .root | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $v.job.terminationGracePeriodSeconds }}
  securityContext: {{- include "ddp.podSecurity" .root | nindent 4 }}
  {{- include "ddp.scheduling" . | nindent 2 }}
  {{- with include "ddp.pullSecrets" .root }}{{ . | nindent 2 }}{{ end }}
  {{- with $v.extraInitContainers }}
  initContainers: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - {{- include "ddp.container" . | nindent 6 }}
    {{- with $v.extraContainers }}{{ toYaml . | nindent 4 }}{{ end }}
  volumes:
    {{- include "ddp.volumes" . | nindent 4 }}
{{- end }}

{{- define "ddp.podAnnotations" -}}
{{- if .Values.doNotEvict }}
cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
karpenter.sh/do-not-disrupt: "true"
{{- end }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}
