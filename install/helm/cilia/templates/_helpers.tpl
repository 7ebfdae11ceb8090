{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{- define "cilia.labels" -}}
app.kubernetes.io/part-of: cilia
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "cilia.apiServer" -}}
{{- $host := required "k8sServiceHost: the address of the API server, as nodes reach it without any Service" .Values.k8sServiceHost -}}
https://{{ if contains ":" $host }}[{{ $host }}]{{ else }}{{ $host }}{{ end }}:{{ .Values.k8sServicePort }}
{{- end }}

{{/* "true" where cilia is the pods' network too. */}}
{{- define "cilia.podNetwork" -}}
{{- if hasKey .Values.extraConfig "pod-network" -}}
{{- fail "extraConfig.pod-network: say podNetwork.enabled=true, which gives the agents rights and directories for it too" -}}
{{- end -}}
{{- if and .Values.podNetwork.enabled .Values.cni.customConf .Values.cni.configMap -}}
{{- fail "cni.customConf leaves the list to somebody else, and cni.configMap would not be used: leave one of them out" -}}
{{- end -}}
{{- .Values.podNetwork.enabled -}}
{{- end }}

{{- define "cilia.image" -}}
{{ .image.repository }}:{{ .image.tag | default .appVersion }}
{{- end }}

{{/* Options of the agent, each a text: what values say, and extraConfig over it. */}}
{{- define "cilia.options" -}}
{{- $options := dict
  "agent-health-port" .Values.healthPort
  "bpf-events-drop-enabled" .Values.bpf.events.drop.enabled
  "bpf-events-trace-enabled" .Values.bpf.events.trace.enabled
  "bpf-lb-algorithm" .Values.loadBalancer.algorithm
  "bpf-lb-external-clusterip" .Values.bpf.lbExternalClusterIP
  "bpf-lb-maglev-table-size" .Values.maglev.tableSize
  "bpf-lb-map-max" .Values.bpf.lbMapMax
  "bpf-lb-mode" .Values.loadBalancer.mode
  "bpf-root" .Values.bpf.root
  "cgroup-root" "/run/cilia-cgroup"
  "devices" .Values.devices
  "enable-ipv4" .Values.ipv4.enabled
  "enable-ipv6" .Values.ipv6.enabled
  "enable-local-redirect-policy" .Values.localRedirectPolicies.enabled
  "enable-service-topology" .Values.loadBalancer.serviceTopology
  "k8s-api-server" (include "cilia.apiServer" .)
  "k8s-client-burst" .Values.k8sClientRateLimit.burst
  "k8s-client-qps" .Values.k8sClientRateLimit.qps
  "kube-proxy-replacement" .Values.kubeProxyReplacement
  "log-level" .Values.logLevel
  "monitor-aggregation" .Values.bpf.monitorAggregation
  "monitor-aggregation-flags" .Values.bpf.monitorFlags
  "monitor-aggregation-interval" .Values.bpf.monitorInterval
  "lrp-address-matcher-cidrs" (join "," .Values.localRedirectPolicies.addressMatcherCIDRs)
  "node-port-range" .Values.nodePort.range
  "nodeport-addresses" (join "," .Values.nodePort.addresses)
  "state-dir" "/run/cilia"
-}}
{{- if .Values.prometheus.enabled }}
{{- $_ := set $options "prometheus-serve-addr" (printf "[::]:%v" .Values.prometheus.port) }}
{{- end }}
{{- if eq (include "cilia.podNetwork" .) "true" }}
{{- $options = merge $options (dict
  "cni-bin-path" (ternary .Values.cni.binPath "" .Values.cni.install)
  "cni-chaining-mode" .Values.cni.chainingMode
  "cni-chaining-target" .Values.cni.chainingTarget
  "cni-conf-path" (ternary "" .Values.cni.confPath .Values.cni.customConf)
  "cni-exclusive" .Values.cni.exclusive
  "enable-ip-masq-agent" .Values.ipMasqAgent.enabled
  "enable-ipv4-masquerade" .Values.enableIPv4Masquerade
  "enable-ipv6-masquerade" .Values.enableIPv6Masquerade
  "ipam" .Values.ipam.mode
  "ipv4-native-routing-cidr" .Values.ipv4NativeRoutingCIDR
  "ipv6-native-routing-cidr" .Values.ipv6NativeRoutingCIDR
  "mtu" .Values.MTU
  "pod-network" true
  "procfs" "/run/cilia-proc"
  "read-cni-conf" (ternary (printf "/run/cilia-cni/%s" .Values.cni.configMapKey) "" (not (empty .Values.cni.configMap)))
  "routing-mode" .Values.routingMode
) }}
{{- end }}
{{- range $name, $value := .Values.extraConfig }}
{{- $_ := set $options $name $value }}
{{- end }}
{{- range $name, $value := $options }}
{{ $name }}: {{ toString $value | quote }}
{{- end }}
{{- end }}
