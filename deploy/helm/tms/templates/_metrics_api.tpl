{{- /* Who owns external.metrics.k8s.io. */ -}}

{{- define "tms.metricsApiName" -}}v1beta1.external.metrics.k8s.io{{- end -}}

{{- /* The release or Service that owns the API group and is not this release; empty where it is free. */ -}}
{{- define "tms.metricsApiOwner" -}}
{{- $found := lookup "apiregistration.k8s.io/v1" "APIService" "" (include "tms.metricsApiName" .) -}}
{{- if $found -}}
{{- $notes := $found.metadata.annotations | default dict -}}
{{- $ours := and (eq (index $notes "meta.helm.sh/release-name" | default "") .Release.Name) (eq (index $notes "meta.helm.sh/release-namespace" | default "") .Release.Namespace) -}}
{{- if not $ours -}}
{{- $service := $found.spec.service | default dict -}}
{{- printf "%s/%s" ($service.namespace | default "-") ($service.name | default "-") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tms.registersMetrics" -}}
{{- if and .Values.metricsApi.enabled .Values.metricsApi.register (not (include "tms.metricsApiOwner" .)) -}}true{{- end -}}
{{- end -}}
