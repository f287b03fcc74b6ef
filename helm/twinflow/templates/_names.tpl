{{/* Names and labels. A name is a DNS label: no dots, and short enough for the longest suffix. */}}

{{- define "twinflow.name" -}}
{{- default .Chart.Name .Values.nameOverride | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "twinflow.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $both .Values.fullnameOverride | replace "." "-" | lower | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* What never changes between upgrades: selectors are immutable. */}}
{{- define "twinflow.selector" -}}
app.kubernetes.io/name: {{ include "twinflow.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | replace "." "-" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "twinflow.labels" -}}
{{ include "twinflow.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: twinflow
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "twinflow.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "twinflow.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "twinflow.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{- define "twinflow.tokenSecret" -}}
{{- default (printf "%s-ray-token" (include "twinflow.fullname" .)) .Values.ray.token.existingSecret -}}
{{- end -}}

{{/* The pools that have workers, as a JSON list of names; modes ray and kuberay. */}}
{{- define "twinflow.pools" -}}
{{- $found := list -}}
{{- range $name := list "prefill" "decode" "mixed" -}}
{{- if (index $.Values $name).enabled -}}{{- $found = append $found $name -}}{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}
