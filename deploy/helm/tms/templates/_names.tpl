{{- /* Names and labels of the chart's objects. */ -}}

{{- define "tms.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Objects without a namespace: two releases of one name may live in one cluster. */ -}}
{{- define "tms.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "tms.fullname" .) -}}
{{- end -}}

{{- define "tms.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tms.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "tms.workersNamespace" -}}
{{- default .Release.Namespace .Values.workers.namespace -}}
{{- end -}}

{{- define "tms.serverSelector" -}}
app.kubernetes.io/name: tms-server
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "tms.labels" -}}
app.kubernetes.io/name: tms-server
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tms
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* metadata of an object: (dict "root" $ "name" NAME "namespace" NAMESPACE "labels" {} "annotations" {}); an empty
namespace is that of the release, "-" is none. */ -}}
{{- define "tms.metadata" -}}
{{- $root := .root -}}
metadata:
  name: {{ .name | quote }}
  {{- if ne (.namespace | default "") "-" }}
  namespace: {{ .namespace | default $root.Release.Namespace }}
  {{- end }}
  labels:
    {{- include "tms.labels" $root | nindent 4 }}
    {{- with .labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with merge (dict) (.annotations | default dict) $root.Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- /* (dict "root" $ "image" .Values.images.server) */ -}}
{{- define "tms.image" -}}
{{- $repository := .image.repository -}}
{{- with .root.Values.images.registry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) $repository -}}
{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* Whether the server's image names no registry, so that Docker Hub would be asked for it. */ -}}
{{- define "tms.namesNoRegistry" -}}
{{- $parts := splitList "/" .Values.images.server.repository -}}
{{- if and (not .Values.images.registry) (or (eq (len $parts) 1) (not (regexMatch "[.:]|^localhost$" (first $parts)))) -}}true{{- end -}}
{{- end -}}

{{- /* The line of the server's image that says when it is pulled. Nothing is published: what Docker Hub has under the
chart's own names would be a stranger's. */ -}}
{{- define "tms.serverPullPolicy" -}}
{{- with .Values.images.pullPolicy | default (ternary "Never" "" (eq (include "tms.namesNoRegistry" .) "true")) }}
imagePullPolicy: {{ . }}
{{- end }}
{{- end -}}

{{- /* Objects that the server makes for its own certificates: their names are its own choice. */ -}}
{{- define "tms.managedSecret" -}}{{ include "tms.fullname" . }}-serving{{- end -}}
{{- define "tms.caConfigMap" -}}{{ include "tms.fullname" . }}-ca{{- end -}}
