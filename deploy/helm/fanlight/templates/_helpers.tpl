{{- define "fanlight.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}{{ end }}{{ end }}
{{- end }}

{{- define "fanlight.controlplane" }}{{ include "fanlight.fullname" . }}-controlplane{{ end }}
{{- define "fanlight.peers" }}{{ include "fanlight.fullname" . }}-controlplane-peers{{ end }}
{{- define "fanlight.medianode" }}{{ include "fanlight.fullname" . }}-medianode{{ end }}
{{- define "fanlight.gateway" }}{{ include "fanlight.fullname" . }}-gateway{{ end }}

{{- define "fanlight.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "fanlight.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "fanlight.image" }}{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}{{ end }}

{{/* The domain of the namespace's services. */}}
{{- define "fanlight.domain" }}{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}{{ end }}

{{/* Labels of a component: (dict "root" $ "component" "gateway"). */}}
{{- define "fanlight.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with get . "component" }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}
{{- define "fanlight.labels" -}}
{{ include "fanlight.selector" . }}
app.kubernetes.io/version: {{ default .root.Chart.AppVersion .root.Values.image.tag | quote }}
app.kubernetes.io/part-of: fanlight
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* Where the nodes and gateways find the control planes: each by its own name,
which is resolved at every attempt, so that one that comes back is found. */}}
{{- define "fanlight.addresses" -}}
{{- if .Values.controlPlane.enabled -}}
{{- $list := list }}{{ range $i := until (int .Values.controlPlane.replicas) }}
{{- $list = append $list (printf "%s-%d.%s.%s:9090" (include "fanlight.controlplane" $) $i (include "fanlight.peers" $) (include "fanlight.domain" $)) }}{{ end }}
{{- join "," $list }}
{{- else }}{{ join "," .Values.controlPlane.addresses }}{{ end }}
{{- end }}

{{/* The names of the control planes' pods with a prefix and suffix, with commas. */}}
{{- define "fanlight.cluster" -}}
{{- $list := list }}{{ range $i := until (int .Values.controlPlane.replicas) }}
{{- $pod := printf "%s-%d" (include "fanlight.controlplane" $) $i }}
{{- $list = append $list (printf "%s=https://%s.%s.%s:2380" $pod $pod (include "fanlight.peers" $) (include "fanlight.domain" $)) }}{{ end }}
{{- join "," $list }}
{{- end }}

{{- define "fanlight.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "fanlight.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What every pod has: (dict "root" $ "values" .Values.gateway "component" "gateway"). */}}
{{- define "fanlight.pod" -}}
serviceAccountName: {{ include "fanlight.serviceAccount" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext: {{ include "fanlight.podSecurity" . | nindent 2 }}
{{- with .values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- with .values.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ include "fanlight.selector" . | nindent 8 }}
{{- end }}
{{- end }}

{{/* Where a pod is and what it is called: for its certificate and its settings. */}}
{{- define "fanlight.downward" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: HOST_IP
  valueFrom: {fieldRef: {fieldPath: status.hostIP}}
- name: HOST_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end }}

{{/* Settings that "fanlight health" shares with the process that it asks. A
probe's command is not expanded, so they are in the environment. */}}
{{- define "fanlight.tlsEnv" -}}
{{- if eq .root.Values.tls.mode "authority" }}
- {name: FANLIGHT_TLS_CERT, value: /tls/{{ .role }}-$(POD_NAME).pem}
- {name: FANLIGHT_TLS_KEY, value: /tls/{{ .role }}-$(POD_NAME)-key.pem}
- {name: FANLIGHT_TLS_CA, value: /authority/ca.pem}
{{- else }}
- {name: FANLIGHT_TLS_CERT, value: /tls/tls.crt}
- {name: FANLIGHT_TLS_KEY, value: /tls/tls.key}
- {name: FANLIGHT_TLS_CA, value: /tls/ca.crt}
{{- end }}
- {name: FANLIGHT_LOG_FORMAT, value: {{ .root.Values.log.format }}}
- {name: FANLIGHT_LOG_LEVEL, value: {{ .root.Values.log.level }}}
{{- end }}

{{/* The init container that issues a pod's certificate: root, name, role, hosts,
volume (of the certificate), authority (volume of the authority). */}}
{{- define "fanlight.issue" -}}
- name: {{ .name }}
  image: {{ include "fanlight.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    - certs
    - issue
    - --dir=/authority
    - --role={{ .role }}
    - --name=$(POD_NAME)
    - --host={{ .hosts }}
    - --validity={{ .root.Values.tls.authority.validity }}
    - --out=/issued
  env: {{ include "fanlight.downward" . | nindent 4 }}
  securityContext: {{ include "fanlight.containerSecurity" . | nindent 4 }}
  resources:
    requests: {cpu: 10m, memory: 32Mi}
    limits: {memory: 128Mi}
  volumeMounts:
    - {name: {{ .authority }}, mountPath: /authority, readOnly: true}
    - {name: {{ .volume }}, mountPath: /issued}
{{- end }}

{{/* The volumes of an issued certificate: the authority's key is mounted in the
init container alone. */}}
{{- define "fanlight.issueVolumes" -}}
- name: {{ .volume }}
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
- name: {{ .authority }}
  secret: {secretName: {{ .secret }}, defaultMode: 0440}
- name: {{ .authority }}-certificate
  secret:
    secretName: {{ .secret }}
    defaultMode: 0444
    items: [{key: ca.pem, path: ca.pem}]
{{- end }}

{{/* The metrics' flags: (dict "root" $ "port" 8281). */}}
{{- define "fanlight.metricsArgs" -}}
{{- if .root.Values.metrics.enabled }}
- --metrics={{ .root.Values.listenHost }}:{{ .port }}
{{- if .root.Values.metrics.open }}
- --metrics-open
{{- end }}
{{- end }}
{{- end }}

{{- define "fanlight.certificate" -}}
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  name: {{ .name }}
  labels: {{ include "fanlight.labels" . | nindent 4 }}
spec:
  secretName: {{ .name }}
  duration: {{ .root.Values.tls.certManager.duration }}
  renewBefore: {{ .root.Values.tls.certManager.renewBefore }}
  privateKey: {algorithm: ECDSA, size: 256, encoding: PKCS8, rotationPolicy: Always}
  usages: [digital signature, client auth, server auth]
  # The role and the name by which the others know it.
  uris: ["fanlight://{{ .component }}/{{ .identity }}"]
  dnsNames: {{ toYaml .dnsNames | nindent 4 }}
  {{- with get . "ips" }}
  ipAddresses: {{ toYaml . | nindent 4 }}
  {{- end }}
  issuerRef: {name: {{ .issuer.name }}, kind: {{ .issuer.kind }}, group: {{ .issuer.group }}}
{{- end }}

{{- define "fanlight.hostNames" }}{{ range . }}{{ if not (regexMatch "^[0-9.]+$|:" .) }}{{ . }} {{ end }}{{ end }}{{ end }}

{{- define "fanlight.hostIPs" }}{{ range . }}{{ if regexMatch "^[0-9.]+$|:" . }}{{ . }} {{ end }}{{ end }}{{ end }}

{{- define "fanlight.peer" -}}
- podSelector:
    matchLabels: {{ include "fanlight.selector" . | nindent 6 }}
{{- end }}

{{- define "fanlight.dns" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{- define "fanlight.metricsFrom" -}}
{{- if and .root.Values.metrics.enabled .root.Values.networkPolicy.metricsFrom }}
- from: {{ toYaml .root.Values.networkPolicy.metricsFrom | nindent 4 }}
  ports: [{port: metrics}]
{{- end }}
{{- end }}

{{- define "fanlight.nodes" -}}
{{- if and .Values.mediaNode.enabled (not .Values.mediaNode.hostNetwork) }}
{{ include "fanlight.peer" (dict "root" . "component" "medianode") }}
{{- end }}
{{- range .Values.networkPolicy.nodeCIDRs }}
- ipBlock: {cidr: {{ . | quote }}}
{{- end }}
{{- end }}
