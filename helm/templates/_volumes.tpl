{{/* The volumes of a pod that trains. Arguments as in _pod.tpl. */}}

{{- define "ddp.volumes" -}}
{{- $v := .root.Values -}}
- name: config
  configMap: {name: {{ .job | quote }}}
- name: checkpoints
  {{- if or (eq .role "master") (eq $v.topology "workers") }}
  persistentVolumeClaim: {claimName: {{ include "ddp.claimName" .root | quote }}}
  {{- else }}
  # only rank 0 touches the claim; here it is a scratch folder under the same path
  emptyDir: {sizeLimit: 1Gi}
  {{- end }}
- name: cache
  emptyDir: {sizeLimit: {{ $v.data.cacheSize | quote }}}
- name: tmp
  emptyDir: {sizeLimit: 5Gi}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ $v.shm.size | quote }}}
{{- if $v.data.claim }}
- name: data
  persistentVolumeClaim: {claimName: {{ $v.data.claim | quote }}, readOnly: true}
{{- end }}
{{- with $v.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
