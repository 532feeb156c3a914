{{- /* Parts of the server's pod. */ -}}

{{- define "tms.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* Kubernetes' gRPC probe cannot speak TLS, so with a certificate the listener of the metrics is asked, which answers
/livez and, while the server serves, /readyz. It shows the certificate of files; that of the server's own making is for the
API alone. */ -}}
{{- define "tms.probe" -}}
{{- if eq .root.Values.tls.mode "off" }}
grpc:
  port: 30345
{{- else }}
httpGet:
  scheme: {{ include "tms.metricsScheme" .root }}
  port: metrics
  path: {{ .path }}
{{- end }}
{{ toYaml .times }}
{{- end -}}

{{- define "tms.metricsScheme" -}}
{{- ternary "HTTPS" "HTTP" (not (empty (include "tms.certificateSecret" .))) -}}
{{- end -}}

{{- define "tms.spread" -}}
{{- range .Values.server.topologySpreadConstraints }}
- {{ toYaml . | nindent 2 | trim }}
  {{- if not .labelSelector }}
  labelSelector:
    matchLabels: {{ include "tms.serverSelector" $ | nindent 6 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "tms.mounts" -}}
- {name: config, mountPath: /tms/config, readOnly: true}
- {name: data, mountPath: /tms/data}
- {name: tmp, mountPath: /tmp}
{{- if include "tms.certificateSecret" . }}
- {name: tls, mountPath: {{ include "tms.tlsDirectory" . }}, readOnly: true}
{{- end }}
{{- range $name, $repository := .Values.repositories }}
{{- if $repository.existingSecret }}
- {name: {{ printf "keys-%s" $name }}, mountPath: {{ printf "%s/%s" (include "tms.keysDirectory" $) $name }}, readOnly: true}
{{- end }}
{{- if or $repository.claim $repository.host_path }}
- {name: {{ printf "models-%s" $name }}, mountPath: {{ include "tms.repositoryPath" (dict "name" $name "repository" $repository) }}, readOnly: true}
{{- end }}
{{- end }}
{{- with .Values.server.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tms.volumes" -}}
- name: config
  configMap:
    name: {{ include "tms.fullname" . }}
- name: data
{{- if include "tms.usesClaim" . }}
  persistentVolumeClaim:
    claimName: {{ include "tms.claim" . }}
{{- else }}
  emptyDir: {}
{{- end }}
- name: tmp
  emptyDir: {}
{{- with include "tms.certificateSecret" . }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- range $name, $repository := .Values.repositories }}
{{- if $repository.existingSecret }}
- name: {{ printf "keys-%s" $name }}
  secret:
    secretName: {{ $repository.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- if $repository.claim }}
- name: {{ printf "models-%s" $name }}
  persistentVolumeClaim: {claimName: {{ $repository.claim }}, readOnly: true}
{{- else if $repository.host_path }}
- name: {{ printf "models-%s" $name }}
  hostPath: {path: {{ $repository.host_path | quote }}, type: Directory}
{{- end }}
{{- end }}
{{- with .Values.server.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tms.certificateSecret" -}}
{{- if eq .Values.tls.mode "secret" -}}{{- .Values.tls.secretName -}}
{{- else if eq .Values.tls.mode "certManager" -}}{{- printf "%s-certificate" (include "tms.fullname" .) -}}
{{- end -}}
{{- end -}}
