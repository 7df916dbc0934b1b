{{/* Combinations that cannot work, each refused with what is wrong and what to do. The schema has refused wrong types and unknown keys before. */}}

{{/* Keys of `config` that the chart derives from another value. */}}
{{- define "ddp.owned" -}}
run.name: the release's name is the run's name
run.root: set checkpoint.mountPath
distributed.nodes: set replicas
distributed.procs_per_node: set procsPerReplica or gpusPerReplica
distributed.world_size: it follows from replicas and procsPerReplica
data.cache_dir: it is an emptyDir of data.cacheSize
telemetry.host: a pod serves on all its addresses
telemetry.port: it is 9400, which the probe, the NetworkPolicy and scrapers know
fault_tolerance.max_restarts: set policy.maxRestarts
fault_tolerance.no_progress_restarts: set policy.noProgressRestarts
{{- end }}

{{- define "ddp.checks" -}}
{{- $v := .Values -}}
{{- range $path, $instead := include "ddp.owned" . | fromYaml -}}
{{- $keys := splitList "." $path -}}
{{- $section := get $v.config (first $keys) -}}
{{- if and (kindIs "map" $section) (hasKey $section (last $keys)) -}}
{{- fail (printf "config.%s is the chart's business: %s" $path $instead) -}}
{{- end -}}
{{- end -}}
{{- include "ddp.checks.work" . -}}
{{- include "ddp.checks.storage" . -}}
{{- end }}

{{/* Ranks, batches and devices. */}}
{{- define "ddp.checks.work" -}}
{{- $v := .Values -}}
{{- $config := include "ddp.config" . | fromJson -}}
{{- $procs := include "ddp.procs" . | int -}}
{{- $ranks := mul (int $v.replicas) $procs -}}
{{- $parts := int $config.data.micro_batches -}}
{{- $batch := int (default 128 $config.data.global_batch) -}}
{{- if mod $batch $parts -}}
{{- fail (printf "config.data.global_batch %d cannot be cut into %d equal micro-batches; make it a multiple of %d, or set config.data.micro_batches" $batch $parts $parts) -}}
{{- end -}}
{{- if mod $parts $ranks -}}
{{- fail (printf "%d ranks (replicas %d x %d processes) cannot share %d micro-batches equally; use a number of ranks that divides %d, or, before a run's first start, set config.data.micro_batches to a multiple of %d" $ranks (int $v.replicas) $procs $parts $parts $ranks) -}}
{{- end -}}
{{- if not $v.gpusPerReplica -}}
{{- if or (eq $config.distributed.backend "nccl") (eq $config.distributed.device "cuda") -}}
{{- fail (printf "config.distributed asks for device %s and backend %s, but gpusPerReplica is 0; set gpusPerReplica to at least 1, or device to cpu and backend to gloo" $config.distributed.device $config.distributed.backend) -}}
{{- end -}}
{{- else if and (gt $procs (int $v.gpusPerReplica)) (eq $config.distributed.backend "nccl") -}}
{{- fail (printf "procsPerReplica %d is more than gpusPerReplica %d, and nccl refuses two ranks on one GPU; make them equal, or set config.distributed.backend to gloo" $procs (int $v.gpusPerReplica)) -}}
{{- end -}}
{{- if and (hasKey (default dict $config.checkpoint) "every_seconds") (not $config.checkpoint.every_seconds) (not $config.checkpoint.every_steps) -}}
{{- fail "config.checkpoint.every_steps and every_seconds are both null, so nothing would be saved; set one" -}}
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
{{- if and $v.data.claim $v.data.download -}}
{{- fail (printf "data.claim %s and data.download are both given; the data comes from one of them, so drop the other" $v.data.claim) -}}
{{- end -}}
{{- if and $v.data.path (not $v.data.claim) -}}
{{- fail (printf "data.path %s is a folder of a claim, but data.claim is empty; name the claim" $v.data.path) -}}
{{- end -}}
{{- end }}
