{{/* Names and labels. Everything is named after the release: run.name is the release's name too. */}}

{{- define "ddp.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride -}}
{{- end }}

{{/* A DNS-1035 label that leaves room for "-<hash>" and "-worker-NNNN" within 63 characters: 63 - 9 - 12. */}}
{{- define "ddp.jobBase" -}}
{{- $name := include "ddp.fullname" . | lower | replace "." "-" -}}
{{- if not (regexMatch "^[a-z]" $name) }}{{ $name = printf "ddp-%s" $name }}{{ end -}}
{{- $name | trunc 42 | trimSuffix "-" -}}
{{- end }}

{{/* The job's name ends with a hash of all that its pods see, so any change that matters makes a new job. */}}
{{- define "ddp.jobName" -}}
{{- $base := include "ddp.jobBase" . -}}
{{- if .Values.job.hashName -}}
{{- $matter := printf "%s\n%s\n%s" (include "ddp.fullname" .) (include "ddp.config" .) (include "ddp.replicaSpecs" (dict "root" . "job" "")) -}}
{{- printf "%s-%s" $base (sha256sum $matter | trunc 8) -}}
{{- else -}}
{{- $base -}}
{{- end -}}
{{- end }}

{{- define "ddp.claimName" -}}
{{- default (printf "%s-checkpoints" (include "ddp.fullname" .)) .Values.checkpoint.existingClaim -}}
{{- end }}

{{- define "ddp.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "ddp.fullname" .) .Values.serviceAccount.name }}{{ else }}{{ default "default" .Values.serviceAccount.name }}{{ end -}}
{{- end }}

{{- define "ddp.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "ddp.labels" -}}
app.kubernetes.io/name: ddp-trainer
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: ddp-operator
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
ddp-operator.io/run: {{ .Release.Name }}
{{- end }}

{{/* On pods: nothing that changes with the chart's version (it would make a new job), nor the instance label, by which Argo CD claims objects. */}}
{{- define "ddp.podLabels" -}}
app.kubernetes.io/name: ddp-trainer
app.kubernetes.io/part-of: ddp-operator
ddp-operator.io/run: {{ .Release.Name }}
{{- end }}
