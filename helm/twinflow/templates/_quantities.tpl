{{/* Bytes of a quantity such as 1.5Gi, 500M or 1024. */}}
{{- define "twinflow.bytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9.]+" $text | float64 -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- $sizes := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- mulf $number (get $sizes $unit | float64) | int64 -}}
{{- end -}}

{{/* Thousandths of a core of a quantity such as 500m, 2 or 1.5. */}}
{{- define "twinflow.millicores" -}}
{{- $text := toString . -}}
{{- if hasSuffix "m" $text -}}
{{- trimSuffix "m" $text | int64 -}}
{{- else -}}
{{- mulf (float64 $text) 1000 | int64 -}}
{{- end -}}
{{- end -}}

{{/* Whole cores of a container, at least one. */}}
{{- define "twinflow.cores" -}}
{{- max 1 (div (include "twinflow.millicores" .limits.cpu | int64) 1000) -}}
{{- end -}}
