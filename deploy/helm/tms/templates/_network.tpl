{{- /* Parts of NetworkPolicies. */ -}}

{{- define "tms.workerSelector" -}}
matchLabels:
  app.kubernetes.io/managed-by: tms
matchExpressions:
  - {key: tms.dev/group, operator: Exists}
{{- end -}}

{{- define "tms.blocks" -}}
{{- range . }}
- ipBlock: {cidr: {{ . }}}
{{- end }}
{{- end -}}

{{- define "tms.ports" -}}
{{- range . }}
- {port: {{ . }}, protocol: TCP}
{{- end }}
{{- end -}}

{{- define "tms.dns" -}}
- to:
    - namespaceSelector: {}
    - ipBlock: {cidr: 169.254.0.0/16}
  ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- end -}}
