{{- define "callvault.name" -}}
{{- .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "callvault.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "callvault.selectorLabels" -}}
app.kubernetes.io/name: {{ include "callvault.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "callvault.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "callvault.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "callvault.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "callvault.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* "true" where something lies on the node's own volume. */ -}}
{{- define "callvault.hasVolume" -}}
{{- if or (not .Values.database.existingSecret.name) (not .Values.bucket.url) -}}true{{- end -}}
{{- end -}}

{{- /* "true" where there may be several nodes. */ -}}
{{- define "callvault.hasMany" -}}
{{- if or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1) -}}true{{- end -}}
{{- end -}}

{{- /* What would come up and then not do is refused here. */ -}}
{{- define "callvault.check" -}}
{{- if not .Values.publicUrl -}}
{{- fail "publicUrl is not set: what Twilio and browsers call this service, such as https://recordings.example.com" -}}
{{- end -}}
{{- if not .Values.adminKey.existingSecret.name -}}
{{- fail "adminKey.existingSecret.name is not set: a Secret that holds an API key to begin with" -}}
{{- end -}}
{{- if and (include "callvault.hasMany" .) (not .Values.database.existingSecret.name) -}}
{{- fail "more than one node needs PostgreSQL: SQLite is for one. Set database.existingSecret.name, or replicaCount: 1 without autoscaling" -}}
{{- end -}}
{{- if and .Values.database.existingSecret.name (not .Values.bucket.url) -}}
{{- fail "PostgreSQL needs a bucket that all nodes reach: set bucket.url" -}}
{{- end -}}
{{- if ge (int .Values.drainSeconds) (int .Values.shutdownTimeoutSeconds) -}}
{{- fail "drainSeconds must be below shutdownTimeoutSeconds" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (trimAll "/" (urlParse .Values.publicUrl).path) -}}
{{- fail "publicUrl has a path, which an Ingress does not take away: leave the path out, or write an Ingress of your own" -}}
{{- end -}}
{{- if and .Values.metrics.prometheusRule.enabled (not .Values.metrics.prometheusRule.rules) -}}
{{- fail "metrics.prometheusRule.rules is empty: --set-file metrics.prometheusRule.rules=deploy/alerts/callvault.yaml" -}}
{{- end -}}
{{- end -}}

{{- /* An environment variable out of a Secret. */ -}}
{{- define "callvault.secretEnv" -}}
- name: {{ .env }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end -}}
