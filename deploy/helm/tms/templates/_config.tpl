{{- /* The server's settings as TOML. */ -}}

{{- /* A value on one line. JSON's strings, numbers and arrays are TOML's too; objects become inline tables. */ -}}
{{- define "tms.tomlValue" -}}
{{- if kindIs "map" . -}}
{
{{- $first := true -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{- if not $first }},{{ end }} {{ include "tms.tomlText" $key }} = {{ include "tms.tomlValue" $value }}
{{- $first = false -}}
{{- end -}}
{{- end }} }
{{- else if kindIs "slice" . -}}
[{{- range $index, $value := . -}}{{- if $index }}, {{ end -}}{{- include "tms.tomlValue" $value -}}{{- end -}}]
{{- else -}}
{{- include "tms.tomlText" . -}}
{{- end -}}
{{- end -}}

{{- /* JSON allows one control character in strings that TOML does not: DEL. */ -}}
{{- define "tms.tomlText" -}}
{{- toJson . | replace "\u007f" "\\u007f" -}}
{{- end -}}

{{- /* Top-level keys, then a [section] for each object. */ -}}
{{- define "tms.toml" -}}
{{- range $key, $value := . }}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{ $key }} = {{ include "tms.tomlValue" $value }}
{{- end }}
{{- end }}
{{- range $section, $keys := . }}
{{- if kindIs "map" $keys }}

[{{ $section }}]
{{- range $key, $value := $keys }}
{{- if not (kindIs "invalid" $value) }}
{{ include "tms.tomlText" $key }} = {{ include "tms.tomlValue" $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "tms.tlsDirectory" -}}/tms/tls{{- end -}}
{{- define "tms.repositoryPath" -}}
{{- .repository.path | default (printf "/tms/repositories/%s" .name) -}}
{{- end -}}
{{- define "tms.keysDirectory" -}}/tms/keys{{- end -}}

{{- /* What the chart decides; .Values.settings cannot say these keys (values.schema.json). */ -}}
{{- define "tms.config" -}}
{{- $tls := dict "managed" false -}}
{{- if eq .Values.tls.mode "managed" -}}
{{- $tls = dict "managed" true "names" .Values.tls.names -}}
{{- end -}}
{{- if or (eq .Values.tls.mode "secret") (eq .Values.tls.mode "certManager") -}}
{{- $directory := include "tms.tlsDirectory" . -}}
{{- $tls = dict "certificate" (printf "%s/tls.crt" $directory) "key" (printf "%s/tls.key" $directory) "ca" (printf "%s/ca.crt" $directory) -}}
{{- end -}}
{{- $profiles := dict -}}
{{- range $name, $profile := merge (dict) .Values.profiles (dict "default" (dict)) -}}
{{- $_ := set $profiles $name (merge (dict) $profile (dict "image_pull_secrets" $.Values.images.pullSecrets)) -}}
{{- end -}}
{{- $repositories := dict -}}
{{- range $name, $repository := .Values.repositories -}}
{{- $plain := omit $repository "existingSecret" -}}
{{- if and $repository.existingSecret (not $repository.bucket) -}}
{{- $_ := set $plain "secret_file" (printf "%s/%s/secret" (include "tms.keysDirectory" $) $name) -}}
{{- else if $repository.existingSecret -}}
{{- $_ := set $plain "keys" (dict "source" "files" "directory" (printf "%s/%s" (include "tms.keysDirectory" $) $name)) -}}
{{- end -}}
{{- if or $repository.claim $repository.host_path -}}
{{- $_ := set $plain "path" (include "tms.repositoryPath" (dict "name" $name "repository" $repository)) -}}
{{- end -}}
{{- $_ := set $repositories $name $plain -}}
{{- end -}}
{{- $chosen := dict
  "backend" "kubernetes"
  "data_dir" "/tms/data"
  "migrate_at_start" (not (include "tms.migrates" .))
  "images" .Values.allowedImages
  "api" (dict "address" "0.0.0.0" "port" 30345 "allow_plain" (eq .Values.tls.mode "off"))
  "metrics" (dict "enabled" true "address" "0.0.0.0" "port" 30346)
  "tls" $tls
  "kubernetes" (dict
    "namespace" (include "tms.workersNamespace" .)
    "dial" (printf "%s.%s.svc:%d" (include "tms.fullname" .) .Release.Namespace (int .Values.service.port))
    "worker_image" (include "tms.image" (dict "root" . "image" .Values.images.worker))
    "sidecar_image" (include "tms.image" (dict "root" . "image" .Values.images.sidecar))
    "ca_config_map" .Values.tls.caConfigMap
    "image_pull_policy" .Values.images.pullPolicy
    "watch_nodes" .Values.rbac.nodes
    "programs" .Values.programs
    "profiles" $profiles)
  "metrics_api" (dict
    "enabled" .Values.metricsApi.enabled
    "address" "0.0.0.0"
    "port" 30347
    "service" (include "tms.fullname" .)
    "register_service" (not (empty (include "tms.registersMetrics" .))))
  "pools" .Values.pools
  "default_pool" .Values.defaultPool
  "lease_times" .Values.leaseTimes
  "repositories" $repositories -}}
{{- include "tms.toml" (mustMergeOverwrite (deepCopy .Values.settings) $chosen) -}}
{{- end -}}

{{- define "tms.migrates" -}}
{{- if and .Values.migrations.enabled (include "tms.usesPostgres" .) -}}true{{- end -}}
{{- end -}}
