{{/* More checks: of the configuration that results from preset, chart and `config`. */}}

{{/* Ranks, batches and devices. */}}
{{- define "ddp.checks.ranks" -}}
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
{{- end }}

{{/* How long things may take. */}}
{{- define "ddp.checks.bounds" -}}
{{- $config := include "ddp.config" . | fromJson -}}
{{- $wait := $config.fault_tolerance.lock_wait_seconds -}}
{{- $patience := $config.distributed.peer_timeout_seconds -}}
{{- if lt (float64 $patience) (addf $wait 60) -}}
{{- fail (printf "config.distributed.peer_timeout_seconds %v is too short beside fault_tolerance.lock_wait_seconds %v: in an upgrade the new workers would give up while their master still waits for the old one to end; make it at least %v, or leave it out" $patience $wait (addf $wait 60)) -}}
{{- end -}}
{{- $hung := .Values.policy.hungAfterSeconds -}}
{{- $silence := include "ddp.longestSilence" . | int -}}
{{- if and $hung (include "ddp.hasTrainingRun" .) (le (int $hung) $silence) -}}
{{- fail (printf "policy.hungAfterSeconds %d is within the %d s that the trainer may be silent by its own bounds, so the operator would restart what the trainer still mends; leave it null, or lower start_limit_seconds, evaluate_limit_seconds, save_limit_seconds, lock_wait_seconds of config.fault_tolerance and peer_timeout_seconds of config.distributed" (int $hung) $silence) -}}
{{- end -}}
{{- if and (not (include "ddp.hasTrainingRun" .)) (le (include "ddp.adoptedHungAfter" . | int) $silence) -}}
{{- fail (printf "the trainer may be silent for %d s by its own bounds, but without a TrainingRun of this release any operator adopts the job with its default hungAfter of %s s, and would restart what the trainer still mends; set trainingRun.enabled to true, which renders a longer one, or lower start_limit_seconds, evaluate_limit_seconds, save_limit_seconds, lock_wait_seconds of config.fault_tolerance and peer_timeout_seconds of config.distributed" $silence (include "ddp.adoptedHungAfter" .)) -}}
{{- end -}}
{{- $fewest := int (default 1 $config.distributed.min_nodes) -}}
{{- if gt $fewest (int .Values.replicas) -}}
{{- fail (printf "config.distributed.min_nodes %d is more than replicas %d; lower it, or raise replicas" $fewest (int .Values.replicas)) -}}
{{- end -}}
{{- if and (hasKey (default dict $config.checkpoint) "every_seconds") (not $config.checkpoint.every_seconds) (not $config.checkpoint.every_steps) -}}
{{- fail "config.checkpoint.every_steps and every_seconds are both null, so nothing would be saved; set one" -}}
{{- end -}}
{{- end }}

{{/* Where the samples come from. */}}
{{- define "ddp.checks.data" -}}
{{- $data := .Values.data -}}
{{- if and $data.claim $data.download -}}
{{- fail (printf "data.claim %s and data.download are both given; the data comes from one of them, so drop the other" $data.claim) -}}
{{- end -}}
{{- if and $data.path (not $data.claim) -}}
{{- fail (printf "data.path %s is a folder of a claim, but data.claim is empty; name the claim" $data.path) -}}
{{- end -}}
{{- $source := (include "ddp.config" . | fromJson).data.source -}}
{{- if and $data.download (ne $source "download") -}}
{{- fail (printf "data.download is true, but config.data.source is %s; drop one of them" $source) -}}
{{- end -}}
{{- end }}
