{{- /* Where leases are kept. */ -}}

{{- define "tms.usesPostgres" -}}
{{- if or .Values.database.url .Values.database.existingSecret -}}true{{- end -}}
{{- end -}}

{{- define "tms.usesClaim" -}}
{{- if and .Values.persistence.enabled (not (include "tms.usesPostgres" .)) -}}true{{- end -}}
{{- end -}}

{{- define "tms.claim" -}}
{{- default (printf "%s-data" (include "tms.fullname" .)) .Values.persistence.existingClaim -}}
{{- end -}}

{{- /* The variable of the URL: (dict "root" $ "secret" NAME), where the Secret is the chart's own or a given one. */ -}}
{{- define "tms.databaseVariable" -}}
- name: TMS_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.database.existingSecret | default .secret }}
      key: {{ ternary .root.Values.database.existingSecretKey "url" (not (empty .root.Values.database.existingSecret)) }}
{{- end -}}
