{{- define "moai-server.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "moai-server.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "moai-server.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "moai-server.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "moai-server.selectorLabels" -}}
app.kubernetes.io/name: {{ include "moai-server.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "moai-server.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "moai-server.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "moai-server.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "moai-server.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* The configuration file. Every string goes through toJson: what JSON quotes, TOML reads. */ -}}
{{- define "moai-server.config" -}}
worker_group = {{ required "moai.workerGroup is required" .Values.moai.workerGroup | toJson }}
signing_key = {{ printf "/etc/moai-server/signing-key/%s" .Values.signingKey.key | toJson }}
models_directory = {{ ternary "/etc/moai-server/models" "/usr/share/moai-server/models" (ne .Values.moai.modelsConfigMap "") | toJson }}
max_ttl_seconds = {{ .Values.moai.sessionTtlSeconds | int64 }}
threads = {{ .Values.moai.threads | int64 }}
max_prepared = {{ .Values.moai.maxPrepared | int64 }}
max_waiting_jobs = {{ .Values.moai.maxWaitingJobs | int64 }}

[broker]
host = {{ required "broker.host is required" .Values.broker.host | toJson }}
port = {{ .Values.broker.port | int64 }}
keep_alive_seconds = {{ .Values.broker.keepAliveSeconds | int64 }}
ca = "/etc/moai-server/broker/ca.crt"
certificate = "/etc/moai-server/broker/tls.crt"
key = "/etc/moai-server/broker/tls.key"
{{- if .Values.broker.robotsCaSecretName }}
robots_ca = "/etc/moai-server/robots-ca/ca.crt"
{{- end }}

[store]
kind = "redis"
url_file = {{ printf "/etc/moai-server/store/%s" .Values.store.urlSecretKey | toJson }}
{{- if .Values.store.caSecretName }}
ca = "/etc/moai-server/store-ca/ca.crt"
{{- end }}

[attestation]
enrolments = "/etc/moai-server/robots"

[health]
path = "/run/moai-server/health"

[log]
level = {{ .Values.moai.log.level | toJson }}
format = {{ .Values.moai.log.format | toJson }}
{{- if not .Values.moai.tenants }}
{{- fail "moai.tenants is required: name at least one tenant" }}
{{- end }}
{{- range $tenant, $rules := .Values.moai.tenants }}

[tenants.{{ $tenant }}]
{{- with $rules }}
{{- if hasKey . "models" }}
models = {{ .models | toJson }}
{{- end }}
{{- with .maxSessions }}
max_sessions = {{ . | int64 }}
{{- end }}
{{- with .maxBytes }}
max_bytes = {{ . | int64 }}
{{- end }}
{{- with .maxJobs }}
max_jobs = {{ . | int64 }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
