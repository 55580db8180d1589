{{- define "natctl.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* An agent removes the plugin from where it is told that the plugin is. Told of other places, or of none, it leaves
an entry behind that has every new pod of the node wait for it. */}}
{{- define "natctl.pluginStays" -}}
{{- $wanted := ternary (list .Values.cni.confDir .Values.cni.binDir) list .Values.cni.enabled }}
{{- $now := list }}
{{- $old := lookup "apps/v1" "DaemonSet" .Release.Namespace "nat-agent" | default dict }}
{{- range dig "spec" "template" "spec" "volumes" list $old }}
{{- if hasPrefix "cni-" .name }}{{ $now = append $now .hostPath.path }}{{ end }}
{{- end }}
{{- if and $now (ne (toJson $now) (toJson $wanted)) }}
{{- fail (printf "the CNI plugin is in %s on the nodes and would stay there: `helm uninstall`, then install with other values of `cni`" (join " and " $now)) }}
{{- end }}
{{- end }}
