{{/* What all pods have in common. */}}

{{- define "twinflow.podSecurity" -}}
automountServiceAccountToken: false
# Services would put variables such as TWINFLOW_PORT into the environment, which twinflow refuses.
enableServiceLinks: false
serviceAccountName: {{ include "twinflow.serviceAccount" . }}
securityContext:
  runAsNonRoot: true
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- end -}}

{{- define "twinflow.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Arguments: root, pool (values of the pod), name of the component. */}}
{{- define "twinflow.placement" -}}
{{- with .pool.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pool.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pool.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pool.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and .root.Values.runtimeClassName (get .pool.resources.limits .root.Values.gpuResource) }}
runtimeClassName: {{ .root.Values.runtimeClassName }}
{{- end }}
{{- end -}}

{{- define "twinflow.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .root.Values.tmpSize }}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .pool.shmSize }}}
{{- with .root.Values.internalTls.existingSecret }}
- name: internal-tls
  # Readable by the pod's group.
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .root.Values.model.volume }}
{{- if .pvc }}
- name: model
  persistentVolumeClaim: {claimName: {{ .pvc }}, readOnly: true}
{{- else if .hostPath }}
- name: model
  hostPath: {path: {{ .hostPath }}, type: Directory}
{{- else if .image }}
- name: model
  image: {reference: {{ .image }}, pullPolicy: IfNotPresent}
{{- end }}
{{- end }}
{{- end -}}

{{- define "twinflow.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{- if .Values.internalTls.existingSecret }}
- {name: internal-tls, mountPath: /etc/twinflow/internal-tls, readOnly: true}
{{- end }}
{{- if or .Values.model.volume.pvc .Values.model.volume.hostPath .Values.model.volume.image }}
- name: model
  mountPath: {{ .Values.model.path }}
  readOnly: true
  {{- with .Values.model.subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The environment of Ray's nodes. */}}
{{- define "twinflow.rayEnvironment" -}}
- {name: HOME, value: /tmp}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- {name: RAY_AUTH_MODE, value: token}
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ include "twinflow.tokenSecret" . }}, key: {{ .Values.ray.token.key }}}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_worker_niceness, value: "0"}
# A node whose head is gone for so long ends, and its container starts anew.
- {name: RAY_gcs_rpc_server_reconnect_timeout_s, value: "20"}
{{- end -}}

{{- define "twinflow.apiKeyEnvironment" -}}
{{- if .Values.apiKey.existingSecret }}
- name: TWINFLOW_API_KEY
  valueFrom:
    secretKeyRef: {name: {{ .Values.apiKey.existingSecret }}, key: {{ .Values.apiKey.key }}}
{{- end }}
{{- end -}}

{{/* Liveness asks the gateway alone; readiness sends a token through its workers. */}}
{{- define "twinflow.gatewayProbes" -}}
startupProbe:
  httpGet: {path: /health, port: http}
  {{- toYaml .Values.probes.startup | nindent 2 }}
livenessProbe:
  httpGet: {path: /health, port: http}
  {{- toYaml .Values.probes.liveness | nindent 2 }}
readinessProbe:
  httpGet: {path: "/ready?pairs=any", port: http}
  {{- toYaml .Values.probes.readiness | nindent 2 }}
{{- end -}}

{{/* Seconds: for endpoints to forget the pod, for running requests, for everything to end. */}}
{{- define "twinflow.grace" -}}
{{- add 5 (.Values.serve.shutdownTimeout | int) 30 -}}
{{- end -}}

{{/* The pod with the gateway. Arguments: root, pool (values of the pod), component. */}}
{{- define "twinflow.gatewayPod" -}}
{{- $v := .root.Values -}}
metadata:
  labels:
    {{- include "twinflow.labels" .root | nindent 4 }}
    app.kubernetes.io/component: gateway
    {{- with .pool.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # Workers are started by the gateway: another size or command of the pools starts it anew.
    twinflow/serve: {{ include "twinflow.serve" .root | sha256sum | trunc 16 }}
    {{- if eq $v.mode "kuberay" }}
    ray.io/overwrite-container-cmd: "true"
    {{- end }}
    {{- with .pool.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "twinflow.podSecurity" .root | nindent 2 }}
  terminationGracePeriodSeconds: {{ include "twinflow.grace" .root }}
  {{- include "twinflow.placement" . | nindent 2 }}
  containers:
    - name: gateway
      image: {{ include "twinflow.image" .root }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      {{- if eq $v.mode "pod" }}
      command: {{ include "twinflow.serve" .root }}
      {{- else }}
      command: ["/bin/bash", "-ceu", {{ include "twinflow.headScript" .root | toJson }}, "gateway"]
      args: {{ include "twinflow.serve" .root }}
      {{- end }}
      env:
        {{- if eq $v.mode "pod" }}
        - {name: HOME, value: /tmp}
        {{- else }}
        {{- include "twinflow.rayEnvironment" .root | nindent 8 }}
        {{- end }}
        {{- include "twinflow.apiKeyEnvironment" .root | nindent 8 }}
        {{- with .pool.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - {name: http, containerPort: 8000}
        - {name: grpc, containerPort: 50051}
        {{- if ne $v.mode "pod" }}
        - {name: gcs, containerPort: 6379}
        {{- end }}
      {{- include "twinflow.gatewayProbes" .root | nindent 6 }}
      lifecycle:
        preStop: {exec: {command: [sleep, "5"]}}
      resources: {{- toYaml .pool.resources | nindent 8 }}
      securityContext: {{- include "twinflow.containerSecurity" . | nindent 8 }}
      volumeMounts: {{- include "twinflow.mounts" .root | nindent 8 }}
  volumes: {{- include "twinflow.volumes" . | nindent 4 }}
{{- end -}}

{{/* The pod of one worker. Arguments: root, pool, name (its role). */}}
{{- define "twinflow.workerPod" -}}
{{- $v := .root.Values -}}
{{- $gpus := get .pool.resources.limits $v.gpuResource | default 0 | int -}}
metadata:
  labels:
    {{- include "twinflow.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .name }}
    {{- with .pool.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or .pool.podAnnotations (eq $v.mode "kuberay") }}
  annotations:
    {{- if eq $v.mode "kuberay" }}
    ray.io/overwrite-container-cmd: "true"
    {{- end }}
    {{- with .pool.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  {{- include "twinflow.podSecurity" .root | nindent 2 }}
  terminationGracePeriodSeconds: {{ add (include "twinflow.grace" .root | int) 10 }}
  {{- include "twinflow.placement" . | nindent 2 }}
  containers:
    - name: worker
      image: {{ include "twinflow.image" .root }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      command: ["/bin/bash", "-ceu", {{ include "twinflow.nodeScript" .root | toJson }}, "worker"]
      args:
        - --num-cpus={{ include "twinflow.cores" .pool.resources }}
        - --num-gpus={{ $gpus }}
        - {{ printf "--resources={\"twinflow_%s\": %d}" .name (.pool.tensorParallel | int) | squote }}
      env:
        - {name: HEAD, value: {{ include "twinflow.fullname" .root }}-head}
        {{- include "twinflow.rayEnvironment" .root | nindent 8 }}
        {{- with .pool.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - {name: ray-node, containerPort: 6380}
      startupProbe:
        tcpSocket: {port: ray-node}
        {{- toYaml $v.probes.startup | nindent 8 }}
      livenessProbe:
        tcpSocket: {port: ray-node}
        {{- toYaml $v.probes.liveness | nindent 8 }}
      readinessProbe:
        tcpSocket: {port: ray-node}
        {{- toYaml $v.probes.readiness | nindent 8 }}
      lifecycle:
        # The gateway, told to stop at the same time, first lets running requests finish.
        preStop: {exec: {command: [sleep, {{ add 5 ($v.serve.shutdownTimeout | int) | toString | quote }}]}}
      resources: {{- toYaml .pool.resources | nindent 8 }}
      securityContext: {{- include "twinflow.containerSecurity" . | nindent 8 }}
      volumeMounts: {{- include "twinflow.mounts" .root | nindent 8 }}
  volumes: {{- include "twinflow.volumes" . | nindent 4 }}
{{- end -}}
