{{/* What the schema cannot say. Every refusal names the value and what to do. */}}
{{- define "twinflow.check" -}}
{{- $v := .Values -}}
{{- if and (not $v.apiKey.existingSecret) (not $v.apiKey.insecure) -}}
{{- fail "apiKey.existingSecret: the gateway listens on every interface of its pod and needs API keys: kubectl create secret generic NAME --from-literal=api-keys=..., or set apiKey.insecure if everybody who reaches the service may use it" -}}
{{- end -}}
{{- if and $v.apiKey.existingSecret $v.apiKey.insecure -}}
{{- fail "apiKey: existingSecret and insecure contradict each other; give one of them" -}}
{{- end -}}
{{- if gt (len (compact (list $v.model.volume.pvc $v.model.volume.hostPath $v.model.volume.image))) 1 -}}
{{- fail "model.volume: pvc, hostPath and image exclude each other; give one of them" -}}
{{- end -}}
{{- if and $v.model.subPath (eq (len (compact (list $v.model.volume.pvc $v.model.volume.hostPath $v.model.volume.image))) 0) -}}
{{- fail "model.subPath: there is no volume that it could be in; give model.volume too" -}}
{{- end -}}
{{- if eq ($v.gateway.service.port | int) ($v.gateway.service.grpcPort | int) -}}
{{- fail "gateway.service.grpcPort: HTTP and gRPC need a port each, and port is the same" -}}
{{- end -}}
{{- if and (ne $v.gateway.service.type "NodePort") (or $v.gateway.service.nodePort $v.gateway.service.grpcNodePort) -}}
{{- fail "gateway.service.nodePort: only a service of type NodePort has one" -}}
{{- end -}}
{{- if and $v.gateway.service.nodePort (eq ($v.gateway.service.nodePort | int) ($v.gateway.service.grpcNodePort | int)) -}}
{{- fail "gateway.service.grpcNodePort: HTTP and gRPC need a node port each" -}}
{{- end -}}
{{- if and $v.gateway.ingress.enabled (not $v.gateway.ingress.host) -}}
{{- fail "gateway.ingress.host: name the host that clients use" -}}
{{- end -}}
{{- range $flag := $v.serve.extraArgs -}}
{{- $name := regexFind "^--[a-z-]+" $flag -}}
{{- if has $name (list "--host" "--port" "--grpc-port" "--address" "--launcher" "--prefill" "--decode" "--mixed" "--tensor-parallel-size" "--prefill-tensor-parallel-size" "--decode-tensor-parallel-size" "--device" "--dtype" "--served-model-name" "--max-model-len" "--kv-cache-memory" "--shutdown-timeout" "--log-level" "--internal-tls" "--insecure" "--config") -}}
{{- fail (printf "serve.extraArgs: the chart sets %s from a value of its own; change that one" $name) -}}
{{- end -}}
{{- if eq $name "--api-key" -}}
{{- fail "serve.extraArgs: a key on a command line can be read by everybody; put it into the secret apiKey.existingSecret" -}}
{{- end -}}
{{- end -}}
{{- if eq $v.mode "pod" -}}
{{- if and (eq ($v.pod.mixed | int) 0) (or (eq ($v.pod.prefill | int) 0) (eq ($v.pod.decode | int) 0)) -}}
{{- fail "pod: give both prefill and decode a worker, or mixed" -}}
{{- end -}}
{{- if and $v.pod.autoscaling.enabled $v.pod.keda.enabled -}}
{{- fail "pod.keda.enabled: autoscaling is enabled too, and both would set the number of pods; choose one" -}}
{{- end -}}
{{- range $name := list "autoscaling" "keda" -}}
{{- $scaling := index $v.pod $name -}}
{{- if and $scaling.enabled (gt ($scaling.minReplicas | int) ($scaling.maxReplicas | int)) -}}
{{- fail (printf "pod.%s.minReplicas: more than maxReplicas" $name) -}}
{{- end -}}
{{- end -}}
{{- if and $v.pod.keda.enabled (not $v.pod.keda.prometheus) -}}
{{- fail "pod.keda.prometheus: name the address at which KEDA asks Prometheus" -}}
{{- end -}}
{{- $ranks := mul (add ($v.pod.prefill | int) ($v.pod.decode | int) ($v.pod.mixed | int)) ($v.pod.tensorParallel | int) -}}
{{- include "twinflow.checkPool" (dict "root" . "name" "pod" "pool" $v.pod "ranks" $ranks "workers" (add ($v.pod.prefill | int) ($v.pod.decode | int) ($v.pod.mixed | int))) -}}
{{- else -}}
{{- if or $v.pod.autoscaling.enabled $v.pod.keda.enabled -}}
{{- fail (printf "pod.autoscaling: the pools of a running deployment are fixed in mode %s; use mode pod" $v.mode) -}}
{{- end -}}
{{- if not (or $v.mixed.enabled (and $v.prefill.enabled $v.decode.enabled)) -}}
{{- fail "prefill.enabled, decode.enabled: enable both, or mixed" -}}
{{- end -}}
{{- range $name := include "twinflow.pools" . | fromJsonArray -}}
{{- $pool := index $v $name -}}
{{- include "twinflow.checkPool" (dict "root" $ "name" $name "pool" $pool "ranks" ($pool.tensorParallel | int) "workers" 1) -}}
{{- end -}}
{{- end -}}
{{- include "twinflow.checkResources" (dict "name" "gateway" "resources" $v.gateway.resources) -}}
{{- end -}}

{{/* One pool: the GPUs of its ranks, and whether it fits into its memory. */}}
{{- define "twinflow.checkPool" -}}
{{- include "twinflow.checkResources" (dict "name" .name "resources" .pool.resources) -}}
{{- $v := .root.Values -}}
{{- $gpus := get .pool.resources.limits $v.gpuResource | default 0 | int -}}
{{- if and (eq $v.serve.device "cuda") (lt $gpus (.ranks | int)) -}}
{{- fail (printf "%s.resources.limits: serve.device is cuda and %d ranks need a GPU each: set %s to %d" .name (.ranks | int) $v.gpuResource (.ranks | int)) -}}
{{- end -}}
{{- if and (eq $v.serve.device "cpu") $gpus -}}
{{- fail (printf "%s.resources.limits: %s would not be used, because serve.device is cpu" .name $v.gpuResource) -}}
{{- end -}}
{{- if and $v.model.weights $v.serve.kvCacheMemory (eq $gpus 0) -}}
{{- $weights := mul (include "twinflow.bytes" $v.model.weights | int64) (.workers | int64) -}}
{{- $caches := mul (include "twinflow.bytes" $v.serve.kvCacheMemory | int64) (.ranks | int64) -}}
{{- if gt (add $weights $caches) (include "twinflow.bytes" .pool.resources.limits.memory | int64) -}}
{{- fail (printf "%s.resources.limits.memory: %v is less than weights (%s) and KV caches (%s for each of %d ranks) together" .name .pool.resources.limits.memory $v.model.weights $v.serve.kvCacheMemory (.ranks | int)) -}}
{{- end -}}
{{- end -}}
{{- if gt (include "twinflow.bytes" .pool.shmSize | int64) (include "twinflow.bytes" .pool.resources.limits.memory | int64) -}}
{{- fail (printf "%s.shmSize: shared memory counts as memory, and limits.memory is less" .name) -}}
{{- end -}}
{{- end -}}

{{- define "twinflow.checkResources" -}}
{{- $requests := .resources.requests | default dict -}}
{{- if $requests.cpu -}}
{{- if gt (include "twinflow.millicores" $requests.cpu | int64) (include "twinflow.millicores" .resources.limits.cpu | int64) -}}
{{- fail (printf "%s.resources.requests.cpu: more than limits.cpu" .name) -}}
{{- end -}}
{{- end -}}
{{- if $requests.memory -}}
{{- if gt (include "twinflow.bytes" $requests.memory | int64) (include "twinflow.bytes" .resources.limits.memory | int64) -}}
{{- fail (printf "%s.resources.requests.memory: more than limits.memory" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
