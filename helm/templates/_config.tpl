{{/* The RunConfig: preset, what the chart prefers, the user's `config`, what follows from these, and last what only the chart can know. */}}

{{/* Lay .over onto .base, in place: maps are merged, anything else (false, 0 and null too) replaces. */}}
{{- define "ddp.lay" -}}
{{- range $key, $value := .over -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $.base $key)) -}}
{{- include "ddp.lay" (dict "base" (get $.base $key) "over" $value) -}}
{{- else -}}
{{- $_ := set $.base $key $value -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "ddp.procs" -}}
{{- if kindIs "invalid" .Values.procsPerReplica }}{{ max 1 (int .Values.gpusPerReplica) }}{{ else }}{{ int .Values.procsPerReplica }}{{ end -}}
{{- end }}

{{/* CPU threads of a rank: what the pod was promised. Ranks that each take all of a node's cores slow each other down many times over. */}}
{{- define "ddp.threads" -}}
{{- $resources := .Values.resources -}}
{{- $cpu := default (dig "requests" "cpu" "1" $resources) (dig "limits" "cpu" "" $resources) | toString -}}
{{- $whole := ternary (div (trimSuffix "m" $cpu | float64 | int) 1000) ($cpu | float64 | int) (hasSuffix "m" $cpu) -}}
{{- max 1 (div $whole (include "ddp.procs" . | int)) -}}
{{- end }}

{{/* Seconds from SIGTERM until a node leaves. The rest is for ranks that are slow to die and for the farewell; SIGKILL would cut the last checkpoint off. */}}
{{- define "ddp.grace" -}}
{{- $whole := int .Values.job.terminationGracePeriodSeconds -}}
{{- max (sub $whole 30) (div $whole 2) -}}
{{- end }}

{{- define "ddp.preset" -}}
{{- if .Values.preset -}}
{{- $text := .Files.Get (printf "presets/%s.json" .Values.preset) -}}
{{- if not $text }}{{ fail (printf "preset %q does not exist; known are smoke, demo and cluster-16, or \"\" for none" .Values.preset) }}{{ end -}}
{{- $text -}}
{{- else -}}
{}
{{- end -}}
{{- end }}

{{/* What follows from .config, where the user says nothing of it. As JSON. */}}
{{- define "ddp.following" -}}
{{- $mine := .root.Values.config -}}
{{- $threads := dict -}}
{{- $bounds := dict -}}
{{- $device := .config.distributed.device -}}
{{- if and (or (eq $device "cpu") (and (eq $device "auto") (not .root.Values.gpusPerReplica))) (not (hasKey (default dict $mine.precision) "threads_per_rank")) -}}
{{- $_ := set $threads "threads_per_rank" (include "ddp.threads" .root | int) -}}
{{- end -}}
{{- if not (hasKey (default dict $mine.distributed) "peer_timeout_seconds") -}}
{{- $_ := set $bounds "peer_timeout_seconds" (max 300 (add 60 (ceil .config.fault_tolerance.lock_wait_seconds | int))) -}}
{{- end -}}
{{- dict "precision" $threads "distributed" $bounds | toJson -}}
{{- end }}

{{/* As JSON. */}}
{{- define "ddp.config" -}}
{{- $config := omit (include "ddp.preset" . | fromJson) "slurm" "run" -}}
{{- $gpus := gt (int .Values.gpusPerReplica) 0 -}}
{{- $source := ternary "download" "sample" .Values.data.download -}}
{{- if .Values.data.claim }}{{ $source = printf "/data/%s" .Values.data.path | trimSuffix "/" }}{{ end -}}
{{- $preferred := dict
  "distributed" (dict "device" (ternary "cuda" "cpu" $gpus) "backend" (ternary "nccl" "gloo" $gpus))
  "data" (dict "micro_batches" (max 8 (dig "data" "micro_batches" 1 $config | int)))
  "precision" (dict "compile_cache_dir" "/cache/compile")
  "fault_tolerance" (dict "lock_wait_seconds" (add 180 (int .Values.job.terminationGracePeriodSeconds))) -}}
{{- if or .Values.data.claim .Values.data.download (not .Values.preset) }}{{ $_ := set $preferred.data "source" $source }}{{ end -}}
{{- $_ := set $config "distributed" (omit (default dict $config.distributed) "nodes" "procs_per_node" "world_size" "min_nodes" "max_nodes") -}}
{{- include "ddp.lay" (dict "base" $config "over" $preferred) -}}
{{- include "ddp.lay" (dict "base" $config "over" (deepCopy .Values.config)) -}}
{{- include "ddp.lay" (dict "base" $config "over" (include "ddp.following" (dict "root" . "config" $config) | fromJson)) -}}
{{- $known := dict
  "run" (dict "name" .Release.Name "root" .Values.checkpoint.mountPath)
  "distributed" (dict "nodes" (int .Values.replicas) "procs_per_node" (include "ddp.procs" . | int))
  "data" (dict "cache_dir" "/cache" "seed_cache_dir" "/opt/ddp/cache")
  "fault_tolerance" (dict "max_restarts" (int .Values.policy.maxRestarts) "no_progress_restarts" (int .Values.policy.noProgressRestarts) "preemption_grace_seconds" (include "ddp.grace" . | int))
  "telemetry" (dict "host" "0.0.0.0" "port" 9400) -}}
{{- include "ddp.lay" (dict "base" $config "over" $known) -}}
{{- toPrettyJson $config -}}
{{- end }}
