{{/* What the guard's four objects share. */}}

{{/* They belong to no namespace, so each release needs a name of its own: a and b-c must not meet a-b and c. */}}
{{- define "ddp.guardName" -}}
{{- printf "%s-fixed-world-size-%s" (include "ddp.jobBase" .) (printf "%s/%s" .Release.Namespace .Release.Name | sha256sum | trunc 8) -}}
{{- end }}

{{/* Argument: what may not be edited. */}}
{{- define "ddp.guardMessage" -}}
{{ . }} fixed: its pods would disagree about the world size; use helm upgrade --reuse-values --set replicas=N, which makes a new job that resumes
{{- end }}
