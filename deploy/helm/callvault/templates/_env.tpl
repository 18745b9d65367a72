{{- /* The settings of a node: plain ones as values, secrets as references. */ -}}
{{- define "callvault.env" -}}
- name: CALLVAULT_LISTEN
  value: 0.0.0.0:8080
- name: CALLVAULT_PUBLIC_URL
  value: {{ .Values.publicUrl | trimSuffix "/" | quote }}
- name: CALLVAULT_DRAIN
  value: {{ printf "%ds" (int .Values.drainSeconds) | quote }}
- name: CALLVAULT_SHUTDOWN_TIMEOUT
  value: {{ printf "%ds" (int .Values.shutdownTimeoutSeconds) | quote }}
{{- if .Values.metrics.enabled }}
- name: CALLVAULT_METRICS_LISTEN
  value: {{ printf "0.0.0.0:%d" (int .Values.metrics.port) | quote }}
{{- end }}
{{- if .Values.config }}
- name: CALLVAULT_CONFIG
  value: /etc/callvault/callvault.toml
{{- end }}
{{- with .Values.adminKey.existingSecret }}
{{ include "callvault.secretEnv" (dict "env" "CALLVAULT_ADMIN_KEY" "secret" .name "key" .key) }}
{{- end }}
{{- with .Values.database.existingSecret }}
{{- if .name }}
{{ include "callvault.secretEnv" (dict "env" "CALLVAULT_DATABASE_URL" "secret" .name "key" .key) }}
{{- end }}
{{- end }}
- name: CALLVAULT_DATABASE_MAX_CONNECTIONS
  value: {{ .Values.database.maxConnections | quote }}
{{- with .Values.bucket }}
{{- $plain := dict "CALLVAULT_BUCKET_URL" .url "AWS_REGION" .region "CALLVAULT_S3_ENDPOINT" .endpoint "CALLVAULT_S3_PUBLIC_ENDPOINT" .publicEndpoint "CALLVAULT_S3_ADDRESSING" .addressing }}
{{- range $name, $value := $plain }}
{{- if $value }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- with .existingSecret }}
{{- if .name }}
{{ include "callvault.secretEnv" (dict "env" "AWS_ACCESS_KEY_ID" "secret" .name "key" .accessKeyIdKey) }}
{{ include "callvault.secretEnv" (dict "env" "AWS_SECRET_ACCESS_KEY" "secret" .name "key" .secretAccessKeyKey) }}
{{- end }}
{{- end }}
{{- with .linkKeys.existingSecret }}
{{- if .name }}
{{ include "callvault.secretEnv" (dict "env" "CALLVAULT_LINK_ACCESS_KEY_ID" "secret" .name "key" .accessKeyIdKey) }}
{{ include "callvault.secretEnv" (dict "env" "CALLVAULT_LINK_SECRET_ACCESS_KEY" "secret" .name "key" .secretAccessKeyKey) }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.twilio }}
{{- if .accountSid }}
- name: CALLVAULT_TWILIO_ACCOUNT_SID
  value: {{ .accountSid | quote }}
{{- end }}
{{- $secret := .existingSecret }}
{{- if $secret.name }}
{{- range $env, $key := dict "CALLVAULT_TWILIO_AUTH_TOKEN" $secret.authTokenKey "CALLVAULT_TWILIO_API_KEY" $secret.apiKeyKey "CALLVAULT_TWILIO_API_SECRET" $secret.apiSecretKey }}
{{- if $key }}
{{ include "callvault.secretEnv" (dict "env" $env "secret" $secret.name "key" $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}
