{{/* The words of `twinflow serve`, as a JSON list. */}}
{{- define "twinflow.serve" -}}
{{- $v := .Values -}}
{{- $words := list "twinflow" "serve" $v.model.path "--host" "0.0.0.0" "--port" "8000" "--grpc-port" "50051" -}}
{{- if eq $v.mode "pod" -}}
{{- $words = concat $words (list "--launcher" "local" "--prefill" (toString $v.pod.prefill) "--decode" (toString $v.pod.decode) "--mixed" (toString $v.pod.mixed) "--tensor-parallel-size" (toString $v.pod.tensorParallel)) -}}
{{- else -}}
{{- $words = concat $words (list "--launcher" "ray" "--address" "auto") -}}
{{- range $name := list "prefill" "decode" "mixed" -}}
{{- $pool := index $v $name -}}
{{- $words = concat $words (list (printf "--%s" $name) (ternary (toString $pool.replicas) "0" $pool.enabled)) -}}
{{- if and $pool.enabled (ne $name "mixed") -}}
{{- $words = concat $words (list (printf "--%s-tensor-parallel-size" $name) (toString $pool.tensorParallel)) -}}
{{- end -}}
{{- end -}}
{{- if $v.mixed.enabled -}}
{{- $words = concat $words (list "--tensor-parallel-size" (toString $v.mixed.tensorParallel)) -}}
{{- end -}}
{{- end -}}
{{- $words = concat $words (list "--device" $v.serve.device "--dtype" $v.serve.dtype "--shutdown-timeout" (toString $v.serve.shutdownTimeout) "--log-level" $v.serve.logLevel) -}}
{{- with $v.model.servedName -}}{{- $words = concat $words (list "--served-model-name" .) -}}{{- end -}}
{{- with $v.serve.maxModelLen -}}{{- $words = concat $words (list "--max-model-len" (toString .)) -}}{{- end -}}
{{- with $v.serve.kvCacheMemory -}}{{- $words = concat $words (list "--kv-cache-memory" (printf "%sB" .)) -}}{{- end -}}
{{- if $v.internalTls.existingSecret -}}{{- $words = concat $words (list "--internal-tls" "/etc/twinflow/internal-tls") -}}{{- end -}}
{{- if $v.apiKey.insecure -}}{{- $words = append $words "--insecure" -}}{{- end -}}
{{- toJson (concat $words $v.serve.extraArgs) -}}
{{- end -}}

{{/* Starts the head of the Ray cluster, then becomes what its arguments say. */}}
{{- define "twinflow.headScript" -}}
ray start --head --node-ip-address="$POD_IP" --port=6379 --node-manager-port=6380 --num-cpus=0 --num-gpus=0 --include-dashboard=false --disable-usage-stats --object-store-memory=80000000
exec "$@"
{{- end -}}

{{/* Waits for the head, then becomes a node of its cluster that takes one worker. */}}
{{- define "twinflow.nodeScript" -}}
until (exec 3<>"/dev/tcp/$HEAD/6379") 2>/dev/null; do sleep 1; done
exec ray start --block --address="$HEAD:6379" --node-ip-address="$POD_IP" --node-manager-port=6380 --disable-usage-stats --object-store-memory=80000000 "$@"
{{- end -}}
