{{/* The operator, and the TrainingRun it keeps. */}}

{{/* A DNS label, whatever the release is called (the Service wants one); what was cut or changed to make it one is told apart by a hash. */}}
{{- define "ddp.operatorName" -}}
{{- $base := include "ddp.jobBase" . -}}
{{- if ne $base (include "ddp.fullname" .) }}{{ $base = printf "%s-%s" $base (include "ddp.fullname" . | sha256sum | trunc 8) }}{{ end -}}
{{- printf "%s-operator" $base -}}
{{- end }}

{{- define "ddp.operatorImage" -}}
{{- with .Values.operator.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end -}}
{{- end -}}
{{- end }}

{{/* Without the run's label: the run's NetworkPolicy would take the operator for one of its pods. */}}
{{- define "ddp.operatorLabels" -}}
{{- $labels := include "ddp.labels" . | fromYaml -}}
{{- merge (include "ddp.operatorPodLabels" . | fromYaml) (omit $labels "ddp-operator.io/run" "app.kubernetes.io/name") | toYaml -}}
{{- end }}

{{/* A Deployment's selector can never change: nothing of the chart's version, nor the instance label, which Argo CD may overwrite. */}}
{{- define "ddp.operatorPodLabels" -}}
app.kubernetes.io/name: ddp-operator
app.kubernetes.io/part-of: ddp-operator
ddp-operator.io/operator-of: {{ .Release.Name | quote }}
{{- end }}

{{/* Role or ClusterRole, whose names a cluster shares: a and b-c must not meet a-b and c. */}}
{{- define "ddp.operatorRole" -}}
{{- $name := include "ddp.operatorName" . -}}
{{- if .Values.operator.clusterWide }}{{ printf "%s-%s" $name (printf "%s/%s" .Release.Namespace .Release.Name | sha256sum | trunc 8) }}{{ else }}{{ $name }}{{ end -}}
{{- end }}

{{- define "ddp.operatorEnv" -}}
- {name: DDP_OPERATOR__NAMESPACES, value: {{ ternary "" .Release.Namespace .Values.operator.clusterWide | quote }}}
- {name: DDP_OPERATOR__PORT, value: "8080"}
- {name: DDP_OPERATOR__ADOPT, value: {{ .Values.operator.adopt | toString | quote }}}
- {name: DDP_OPERATOR__LOG_LEVEL, value: {{ .Values.operator.logLevel }}}
# operators of all releases in a namespace share one lease: one leads, the others stand by, and take over when its release goes
- {name: DDP_OPERATOR__LEASE_NAME, value: ddp-operator}
- name: DDP_OPERATOR__LEASE_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: DDP_OPERATOR__IDENTITY
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- with .Values.operator.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Whether the chart makes the TrainingRun; if not, a label has the job adopted. "true" or "". */}}
{{- define "ddp.hasTrainingRun" -}}
{{- $wish := .Values.trainingRun.enabled -}}
{{- if and .Values.job.enabled (ternary .Values.operator.enabled $wish (kindIs "invalid" $wish)) }}true{{ end -}}
{{- end }}

{{/* What bounds the trainer's own silences, with its defaults, as JSON. The operator waits longer than the longest. */}}
{{- define "ddp.ownBounds" -}}
{{- $config := include "ddp.config" . | fromJson -}}
{{- $own := merge (dict) (default dict $config.fault_tolerance) (default dict $config.distributed) (dict
  "start_limit_seconds" 900 "evaluate_limit_seconds" 300 "save_limit_seconds" 600 "peer_timeout_seconds" 300 "hang_floor_seconds" 10) -}}
{{- pick $own "start_limit_seconds" "evaluate_limit_seconds" "save_limit_seconds" "peer_timeout_seconds" "hang_floor_seconds" "lock_wait_seconds" | toJson -}}
{{- end }}

{{- define "ddp.longestSilence" -}}
{{- $longest := 0 -}}
{{- range include "ddp.ownBounds" . | fromJson }}{{ $longest = max $longest (ceil .) }}{{ end -}}
{{- int $longest -}}
{{- end }}

{{- define "ddp.hungAfter" -}}
{{- default (add 60 (include "ddp.longestSilence" . | int)) .Values.policy.hungAfterSeconds | int -}}
{{- end }}

{{/* What an adopted job gets: the default of the policy's hungAfter, 20m, in seconds. */}}
{{- define "ddp.adoptedHungAfter" -}}
1200
{{- end }}

{{/* Three checkpoints missed, and ten minutes at least. */}}
{{- define "ddp.staleAfter" -}}
{{- $every := dig "checkpoint" "every_seconds" 0 (include "ddp.config" . | fromJson) -}}
{{- default (max 600 (mul 3 (default 0 $every | ceil | int))) .Values.policy.checkpointStaleAfterSeconds | int -}}
{{- end }}

{{/* Where the operator may run: two of them not on one node, if that can be had. */}}
{{- define "ddp.operatorPlace" -}}
{{- with .Values.operator -}}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (include "ddp.operatorPodLabels" $ | fromYaml)) -}}
{{- $apart := dict "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 100 "podAffinityTerm" $term))) -}}
{{- with .priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with ternary $apart .affinity (and (gt (int .replicas) 1) (not .affinity)) }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
{{- end }}

{{/* All that it may do to what it looks after. No secrets, no exec, no nodes, nothing of a job's status. */}}
{{- define "ddp.operatorRules" -}}
- apiGroups: [ddp-operator.io]
  resources: [trainingruns]
  verbs: [get, list, watch{{ if .Values.operator.adopt }}, create{{ end }}]
- apiGroups: [ddp-operator.io]
  resources: [trainingruns/status]
  verbs: [update]
# patch: spec.runPolicy.suspend, by which a gang is restarted or stopped
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, patch]
# delete: pods of a lost node, and those that outlive their job
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end }}
