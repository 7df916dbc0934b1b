{{/* Combinations that cannot work, each refused with what is wrong and what to do. The schema has refused wrong types and unknown keys before. */}}

{{/* Keys of `config` that the chart derives from another value. */}}
{{- define "ddp.owned" -}}
run.name: the release's name is the run's name
run.root: set checkpoint.mountPath
distributed.nodes: set replicas
distributed.procs_per_node: set procsPerReplica or gpusPerReplica
distributed.world_size: it follows from replicas and procsPerReplica
distributed.max_nodes: set replicas
data.cache_dir: it is an emptyDir of data.cacheSize
data.seed_cache_dir: it is where the image's builder puts decoded images
telemetry.host: a pod serves on all its addresses
telemetry.port: it is 9400, which the probe, the NetworkPolicy and scrapers know
fault_tolerance.max_restarts: set policy.maxRestarts
fault_tolerance.no_progress_restarts: set policy.noProgressRestarts
fault_tolerance.preemption_grace_seconds: set job.terminationGracePeriodSeconds
{{- end }}

{{- define "ddp.checks" -}}
{{- include "ddp.checks.release" . -}}
{{- if .Values.job.enabled -}}
{{- range $path, $instead := include "ddp.owned" . | fromYaml -}}
{{- $keys := splitList "." $path -}}
{{- $section := get $.Values.config (first $keys) -}}
{{- if and (kindIs "map" $section) (hasKey $section (last $keys)) -}}
{{- fail (printf "config.%s is the chart's business: %s" $path $instead) -}}
{{- end -}}
{{- end -}}
{{- include "ddp.checks.ranks" . -}}
{{- include "ddp.checks.bounds" . -}}
{{- include "ddp.checks.storage" . -}}
{{- include "ddp.checks.data" . -}}
{{- end -}}
{{- end }}

{{/* What the release as a whole needs, and what would lose work. */}}
{{- define "ddp.checks.release" -}}
{{- $v := .Values -}}
{{- if and (not $v.job.enabled) (not $v.checkpoint.keep) -}}
{{- fail "job.enabled false with checkpoint.keep false would delete the claim, and every checkpoint on it, from a release that may be meant only to pause; leave checkpoint.keep true, or uninstall the release" -}}
{{- end -}}
{{- if and $v.job.enabled $v.guard.enabled (semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "guard.enabled needs Kubernetes 1.30 or newer, which has ValidatingAdmissionPolicy, but this is %s; leave it false (or, rendering without a cluster, say --kube-version)" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end }}

{{/* Volumes and where pods may run. */}}
{{- define "ddp.checks.storage" -}}
{{- $v := .Values -}}
{{- $many := has "ReadWriteMany" $v.checkpoint.accessModes -}}
{{- $spread := or $v.topologySpreadConstraints (dig "podAntiAffinity" false $v.affinity) -}}
{{- if and (eq $v.topology "workers") (not $many) $spread -}}
{{- fail "topology workers mounts the claim in every pod, a ReadWriteOnce claim binds them all to one node, and topologySpreadConstraints or podAntiAffinity ask for several; use checkpoint.accessModes [ReadWriteMany], or topology master, or drop the spread" -}}
{{- end -}}
{{- if and (eq $v.topology "workers") (has "ReadWriteOncePod" $v.checkpoint.accessModes) (gt (int $v.replicas) 1) -}}
{{- fail "a ReadWriteOncePod claim can be mounted by one pod, but topology workers mounts it in all; use topology master, or ReadWriteOnce or ReadWriteMany" -}}
{{- end -}}
{{- if and (eq $v.podSecurity.level "restricted") (eq $v.topology "master") (gt (int $v.replicas) 1) -}}
{{- fail "podSecurity.level restricted with topology master: the training operator adds an init container to workers that such a namespace refuses; set topology to workers" -}}
{{- end -}}
{{- end }}
