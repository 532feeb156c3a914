{{- /* Values that exclude each other, refused with the key and the remedy. Included by the Deployment, so that nothing is
made of values that cannot be meant. */ -}}

{{- define "tms.checks" -}}
{{- if and (gt (int .Values.server.replicas) 1) (not (include "tms.usesPostgres" .)) -}}
{{- fail (printf "server.replicas: %d servers cannot share SQLite; set database.url or database.existingSecret to PostgreSQL, or server.replicas to 1" (int .Values.server.replicas)) -}}
{{- end -}}
{{- if and .Values.database.url (not (regexMatch "^postgres(ql)?(\\+psycopg)?://" .Values.database.url)) -}}
{{- fail "database.url: only postgresql://USER:PASSWORD@HOST/DATABASE; SQLite needs no URL" -}}
{{- end -}}
{{- if and (eq .Values.tls.mode "secret") (not .Values.tls.secretName) -}}
{{- fail "tls.secretName: needed with tls.mode secret: a Secret with tls.crt, tls.key and ca.crt" -}}
{{- end -}}
{{- if and (or (eq .Values.tls.mode "secret") (eq .Values.tls.mode "certManager")) (not .Values.tls.caConfigMap) -}}
{{- fail (printf "tls.caConfigMap: needed with tls.mode %s: a ConfigMap with ca.crt, for sidecars" .Values.tls.mode) -}}
{{- end -}}
{{- if and .Values.tls.caConfigMap (or (eq .Values.tls.mode "managed") (eq .Values.tls.mode "off")) -}}
{{- fail (printf "tls.caConfigMap: has no meaning with tls.mode %s; leave it out" .Values.tls.mode) -}}
{{- end -}}
{{- if eq .Values.tls.caConfigMap (include "tms.caConfigMap" .) -}}
{{- fail (printf "tls.caConfigMap: %s is the server's own; choose another name" .Values.tls.caConfigMap) -}}
{{- end -}}
{{- if and (eq .Values.tls.mode "certManager") (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name: needed with tls.mode certManager" -}}
{{- end -}}
{{- if and .Values.service.nodePort (ne .Values.service.type "NodePort") -}}
{{- fail (printf "service.nodePort: has no meaning with service.type %s; set service.type to NodePort" .Values.service.type) -}}
{{- end -}}
{{- if and .Values.service.loadBalancerClass (ne .Values.service.type "LoadBalancer") -}}
{{- fail (printf "service.loadBalancerClass: has no meaning with service.type %s" .Values.service.type) -}}
{{- end -}}
{{- if and (eq .Values.service.type "LoadBalancer") (not .Values.service.loadBalancerSourceRanges) (not .Values.service.openToAll) -}}
{{- fail "service.loadBalancerSourceRanges: needed with service.type LoadBalancer, for whoever reaches the API may do everything; set service.openToAll to true where something else keeps strangers out" -}}
{{- end -}}
{{- if and .Values.service.openToAll (or (ne .Values.service.type "LoadBalancer") .Values.service.loadBalancerSourceRanges) -}}
{{- fail "service.openToAll: has a meaning only with service.type LoadBalancer and without service.loadBalancerSourceRanges; leave it out" -}}
{{- end -}}
{{- range $name, $repository := .Values.repositories -}}
{{- if ne (len (compact (list $repository.bucket $repository.gcs_bucket $repository.url $repository.claim $repository.host_path))) 1 -}}
{{- fail (printf "repositories.%s: give one of bucket, gcs_bucket, url, claim and host_path" $name) -}}
{{- end -}}
{{- if and $repository.path (not (or $repository.claim $repository.host_path)) -}}
{{- fail (printf "repositories.%s.path: only a claim or host_path is mounted; leave path out" $name) -}}
{{- end -}}
{{- if and $repository.existingSecret $repository.keys -}}
{{- fail (printf "repositories.%s: existingSecret and keys exclude each other" $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $pool := .Values.pools -}}
{{- if and $pool.profile (ne $pool.profile "default") (not (hasKey $.Values.profiles $pool.profile)) -}}
{{- fail (printf "pools.%s.profile: there is no profile %q; declare profiles.%s" $name $pool.profile $pool.profile) -}}
{{- end -}}
{{- end -}}
{{- end -}}
