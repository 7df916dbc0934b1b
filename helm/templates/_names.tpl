{{/* Names and labels. Everything is named after the release: run.name is the release's name too. A release may be called 123 or true, so what holds its name is quoted. */}}

{{- define "ddp.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride -}}
{{- end }}

{{/* A DNS-1035 label that leaves room for "-<hash>" and "-worker-NNNN" within 63 characters: 63 - 9 - 12. */}}
{{- define "ddp.jobBase" -}}
{{- $name := include "ddp.fullname" . | lower | replace "." "-" -}}
{{- if not (regexMatch "^[a-z]" $name) }}{{ $name = printf "ddp-%s" $name }}{{ end -}}
{{- $name | trunc 42 | trimSuffix "-" -}}
{{- end }}

{{/* The job's name ends with a hash of all that its pods see, so any change that matters makes a new job (and a comment in the chart none). */}}
{{- define "ddp.jobName" -}}
{{- $base := include "ddp.jobBase" . -}}
{{- if .Values.job.hashName -}}
{{- $matter := printf "%s\n%s\n%s" (include "ddp.fullname" .) (include "ddp.config" .) (include "ddp.replicaSpecs" (dict "root" . "job" "") | fromYaml | toJson) -}}
{{- printf "%s-%s" $base (sha256sum $matter | trunc 8) -}}
{{- else -}}
{{- $base -}}
{{- end -}}
{{- end }}

{{/* The pod of rank 0; its name is a DNS name too. */}}
{{- define "ddp.firstPod" -}}
{{- printf "%s-%s-0" (include "ddp.jobName" .) (ternary "master" "worker" (eq .Values.topology "master")) -}}
{{- end }}

{{- define "ddp.claimName" -}}
{{- default (printf "%s-checkpoints" (include "ddp.fullname" .)) .Values.checkpoint.existingClaim -}}
{{- end }}

{{- define "ddp.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "ddp.fullname" .) .Values.serviceAccount.name }}{{ else }}{{ default "default" .Values.serviceAccount.name }}{{ end -}}
{{- end }}

{{/* What it asks for is in the name: a template's spec cannot change, and pods of the job before an upgrade may still need theirs. */}}
{{- define "ddp.gpuClaimTemplate" -}}
{{- printf "%s-gpus-%s" (include "ddp.fullname" .) (printf "%s %d" .Values.gpu.deviceClassName (int .Values.gpusPerReplica) | sha256sum | trunc 8) -}}
{{- end }}

{{- define "ddp.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "ddp.labels" -}}
app.kubernetes.io/name: ddp-trainer
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: ddp-operator
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
ddp-operator.io/run: {{ .Release.Name | quote }}
{{- end }}

{{/* On pods: nothing that changes with the chart's version (it would make a new job), nor the instance label, by which Argo CD claims objects. */}}
{{- define "ddp.podLabels" -}}
app.kubernetes.io/name: ddp-trainer
app.kubernetes.io/part-of: ddp-operator
ddp-operator.io/run: {{ .Release.Name | quote }}
{{- end }}
