package deploy

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

// workload is what makes pods.
type workload struct {
	kind, name string
	replicas   int // of a StatefulSet
	service    string
	selector   *metav1.LabelSelector
	pod        corev1.PodTemplateSpec
	claims     []corev1.PersistentVolumeClaim
}

// release is what the chart renders, by kind.
type release struct {
	workloads  []workload
	services   map[string]*corev1.Service
	policies   []*networkingv1.NetworkPolicy
	budgets    []*policyv1.PodDisruptionBudget
	scalers    []*autoscalingv2.HorizontalPodAutoscaler
	ingresses  []*networkingv1.Ingress
	monitors   []*monitoring.PodMonitor
	issued     map[string]bool // Secrets that Certificates make
	secretKeys map[string]bool // Secrets that the pods want
}

func sortOut(objects []runtime.Object) (*release, error) {
	r := &release{services: map[string]*corev1.Service{}, issued: map[string]bool{}, secretKeys: map[string]bool{}}
	for _, obj := range objects {
		switch o := obj.(type) {
		case *appsv1.StatefulSet:
			r.workloads = append(r.workloads, workload{"StatefulSet", o.Name, int(*o.Spec.Replicas), o.Spec.ServiceName, o.Spec.Selector, o.Spec.Template, o.Spec.VolumeClaimTemplates})
		case *appsv1.DaemonSet:
			r.workloads = append(r.workloads, workload{"DaemonSet", o.Name, 0, "", o.Spec.Selector, o.Spec.Template, nil})
		case *appsv1.Deployment:
			r.workloads = append(r.workloads, workload{"Deployment", o.Name, 0, "", o.Spec.Selector, o.Spec.Template, nil})
		case *corev1.Service:
			r.services[o.Name] = o
		case *networkingv1.NetworkPolicy:
			r.policies = append(r.policies, o)
		case *policyv1.PodDisruptionBudget:
			r.budgets = append(r.budgets, o)
		case *autoscalingv2.HorizontalPodAutoscaler:
			r.scalers = append(r.scalers, o)
		case *networkingv1.Ingress:
			r.ingresses = append(r.ingresses, o)
		case *monitoring.PodMonitor:
			r.monitors = append(r.monitors, o)
		case *certmanager.Certificate:
			r.issued[o.Spec.SecretName] = true
		case *corev1.ServiceAccount:
			if o.AutomountServiceAccountToken == nil || *o.AutomountServiceAccountToken {
				return nil, fmt.Errorf("service account %s mounts a token", o.Name)
			}
		default:
			return nil, fmt.Errorf("no check knows %T", obj)
		}
	}
	return r, nil
}

// matching returns the workloads whose pods a selector chooses.
func (r *release) matching(sel *metav1.LabelSelector) []*workload {
	s, err := metav1.LabelSelectorAsSelector(sel)
	if err != nil {
		return nil
	}
	var out []*workload
	for i := range r.workloads {
		if s.Matches(labels.Set(r.workloads[i].pod.Labels)) {
			out = append(out, &r.workloads[i])
		}
	}
	return out
}

// check returns what is wrong with a release.
func (r *release) check() []string {
	var wrong []string
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	for i := range r.workloads {
		w := &r.workloads[i]
		if got := r.matching(w.selector); len(got) != 1 || got[0] != w {
			bad("%s %s: its selector does not choose its own pods alone", w.kind, w.name)
		}
		if w.kind == "StatefulSet" {
			if svc := r.services[w.service]; svc == nil || svc.Spec.ClusterIP != corev1.ClusterIPNone || !svc.Spec.PublishNotReadyAddresses {
				bad("%s: %q is not a headless service that names its pods before they are ready", w.name, w.service)
			}
		}
		wrong = append(wrong, r.checkPod(w)...)
	}
	for _, name := range slices.Sorted(maps.Keys(r.services)) {
		svc := r.services[name]
		got := r.matching(&metav1.LabelSelector{MatchLabels: svc.Spec.Selector})
		if len(got) != 1 {
			bad("service %s: chooses the pods of %d workloads", name, len(got))
			continue
		}
		for _, p := range svc.Spec.Ports {
			if !hasPort(got[0].pod, p.TargetPort.StrVal) {
				bad("service %s: port %s leads to no port of %s", name, p.TargetPort.StrVal, got[0].name)
			}
		}
	}
	for _, b := range r.budgets {
		if got := r.matching(b.Spec.Selector); len(got) != 1 || got[0].name != b.Name || b.Spec.MaxUnavailable == nil || b.Spec.MaxUnavailable.IntVal != 1 {
			bad("pod disruption budget %s: is not for one pod of %s at a time", b.Name, b.Name)
		}
	}
	for _, h := range r.scalers {
		if !slices.ContainsFunc(r.workloads, func(w workload) bool {
			return w.kind == h.Spec.ScaleTargetRef.Kind && w.name == h.Spec.ScaleTargetRef.Name
		}) {
			bad("autoscaler %s: there is no %s %s", h.Name, h.Spec.ScaleTargetRef.Kind, h.Spec.ScaleTargetRef.Name)
		}
	}
	for _, in := range r.ingresses {
		for _, rule := range in.Spec.Rules {
			for _, p := range rule.HTTP.Paths {
				svc := r.services[p.Backend.Service.Name]
				if svc == nil || !slices.ContainsFunc(svc.Spec.Ports, func(sp corev1.ServicePort) bool { return sp.Name == p.Backend.Service.Port.Name }) {
					bad("ingress %s: %s has no port %s", in.Name, p.Backend.Service.Name, p.Backend.Service.Port.Name)
				}
			}
		}
	}
	for _, m := range r.monitors {
		for _, w := range r.matching(&m.Spec.Selector) {
			for _, e := range m.Spec.PodMetricsEndpoints {
				if !hasPort(w.pod, *e.Port) {
					bad("pod monitor %s: %s has no port %s", m.Name, w.name, *e.Port)
				}
			}
		}
	}
	return wrong
}

func hasPort(pod corev1.PodTemplateSpec, name string) bool {
	for _, c := range pod.Spec.Containers {
		if slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == name }) {
			return true
		}
	}
	return false
}

// checkPod returns what is wrong with a workload's pods.
func (r *release) checkPod(w *workload) []string {
	var wrong []string
	bad := func(format string, args ...any) { wrong = append(wrong, w.name+": "+fmt.Sprintf(format, args...)) }
	spec := &w.pod.Spec
	sc := spec.SecurityContext
	if sc == nil || sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot || sc.RunAsUser == nil || *sc.RunAsUser == 0 || sc.FSGroup == nil ||
		sc.SeccompProfile == nil || sc.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		bad("may run as root, or without seccomp, or cannot read its secrets")
	}
	if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
		bad("has a service account's token")
	}
	if spec.HostNetwork && spec.DNSPolicy != corev1.DNSClusterFirstWithHostNet {
		bad("cannot resolve the cluster's names on its host's network")
	}
	volumes := map[string]*corev1.Volume{}
	used := map[string]bool{}
	for i := range spec.Volumes {
		volumes[spec.Volumes[i].Name] = &spec.Volumes[i]
		if s := spec.Volumes[i].Secret; s != nil {
			r.secretKeys[s.SecretName] = true
		}
	}
	for _, c := range w.claims {
		volumes[c.Name] = &corev1.Volume{Name: c.Name}
	}
	init := len(spec.InitContainers)
	for i, c := range append(slices.Clone(spec.InitContainers), spec.Containers...) {
		wrong = append(wrong, checkContainer(w.name+"/"+c.Name, c)...)
		for _, m := range c.VolumeMounts {
			used[m.Name] = true
			v := volumes[m.Name]
			switch {
			case v == nil:
				bad("%s mounts %s, which is no volume", c.Name, m.Name)
			case i >= init && v.Secret != nil && strings.HasSuffix(v.Name, "authority") && len(v.Secret.Items) == 0:
				bad("%s sees the key of the authority", c.Name)
			case v.Secret != nil && !m.ReadOnly:
				bad("%s may write to %s", c.Name, m.Name)
			}
		}
		for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if i >= init && !probed(p, c) && p != c.StartupProbe {
				bad("%s has no probe, or one of a port that is not there", c.Name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(volumes)) {
		if !used[name] {
			bad("the volume %s is mounted nowhere", name)
		}
	}
	for _, a := range spec.Containers[0].Args {
		if d, ok := strings.CutPrefix(a, "--drain-timeout="); ok {
			drain, err := time.ParseDuration(d)
			if grace := time.Duration(*spec.TerminationGracePeriodSeconds) * time.Second; err != nil || grace < drain+15*time.Second {
				bad("is killed after %v, while it may drain for %s", grace, d)
			}
		}
	}
	return wrong
}

// probed tells whether a probe asks what there is to ask.
func probed(p *corev1.Probe, c corev1.Container) bool {
	named := func(name string) bool {
		return slices.ContainsFunc(c.Ports, func(cp corev1.ContainerPort) bool { return cp.Name == name })
	}
	switch {
	case p == nil:
		return false
	case p.Exec != nil:
		return slices.Equal(p.Exec.Command, []string{"/fanlight", "health"})
	case p.HTTPGet != nil:
		return named(p.HTTPGet.Port.StrVal) && p.HTTPGet.Scheme == corev1.URISchemeHTTPS
	case p.TCPSocket != nil:
		return named(p.TCPSocket.Port.StrVal)
	default:
		return false
	}
}

var (
	reference = regexp.MustCompile(`\$\(([A-Z_]+)\)`)
	filePath  = regexp.MustCompile(`^(?:--[a-z-]+=)?(/[^:]+)$`)
)

// checkContainer returns what is wrong with a container.
func checkContainer(where string, c corev1.Container) []string {
	var wrong []string
	bad := func(format string, args ...any) { wrong = append(wrong, where+": "+fmt.Sprintf(format, args...)) }
	sc := c.SecurityContext
	if sc == nil || sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem || sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation ||
		sc.Capabilities == nil || !slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(sc.Capabilities.Add) > 0 {
		bad("may write to its root, or has capabilities, or may get more")
	}
	if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() {
		bad("has no requests, or no limit of memory")
	}
	// What is not defined before stays as it is written.
	defined := map[string]bool{}
	env := map[string]string{}
	known := func(s string) {
		for _, m := range reference.FindAllStringSubmatch(s, -1) {
			if !defined[m[1]] {
				bad("%s: $(%s) is not defined there", s, m[1])
			}
		}
	}
	values := slices.Clone(c.Args)
	for _, e := range c.Env {
		known(e.Value)
		defined[e.Name] = true
		if e.ValueFrom == nil {
			env[e.Name] = e.Value
			values = append(values, e.Value)
		}
	}
	for _, a := range c.Args {
		known(a)
	}
	for _, v := range values {
		m := filePath.FindStringSubmatch(v)
		if m == nil || strings.HasPrefix(v, "--etcd-prefix=") {
			continue
		}
		if !slices.ContainsFunc(c.VolumeMounts, func(vm corev1.VolumeMount) bool {
			return m[1] == vm.MountPath || strings.HasPrefix(m[1], vm.MountPath+"/")
		}) {
			bad("%s is in no volume", m[1])
		}
	}
	if err := tryProcess(process{where: where, args: expand(c.Args), env: expandMap(env)}); err != nil {
		wrong = append(wrong, err.Error())
	}
	return wrong
}

// expand puts in what a pod would be told of itself.
func expand(args []string) []string {
	out := slices.Clone(args)
	for i, a := range out {
		a = strings.ReplaceAll(a, "$(POD_NAME)", "fanlight-medianode-0")
		out[i] = reference.ReplaceAllString(a, "192.0.2.7")
	}
	return out
}

func expandMap(env map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range env {
		out[k] = expand([]string{v})[0]
	}
	return out
}

func TestChart(t *testing.T) {
	secrets := map[string][]string{
		"authority":     {"fanlight-authority", "fanlight-peer-authority", "fanlight-secret-key", "fanlight-viewer-key"},
		"daemonset":     {"fanlight-authority", "fanlight-operators", "fanlight-peer-authority", "fanlight-secret-key"},
		"cert-manager":  {"fanlight-controlplane-peer-tls", "fanlight-controlplane-tls", "fanlight-gateway-tls", "fanlight-secret-key", "fanlight-turn", "fanlight-viewer-key"},
		"secrets":       {"cp-tls", "fanlight-secret-key", "fanlight-turn", "fanlight-viewer-key", "gw-tls", "nodes-tls", "peer-tls"},
		"external-etcd": {"etcd-client", "etcd-password", "fanlight-authority", "fanlight-secret-key", "fanlight-viewer-key"},
		"nodes-only":    {"fanlight-authority"},
	}
	for name, values := range valuesFiles(t) {
		t.Run(name, func(t *testing.T) {
			objects, _, err := render(values)
			if err != nil {
				t.Fatal(err)
			}
			r, err := sortOut(objects)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range r.check() {
				t.Error(w)
			}
			// Every Secret is one that the README has users make, or one that is issued.
			if got := slices.Sorted(maps.Keys(r.secretKeys)); !slices.Equal(got, secrets[name]) {
				t.Errorf("secrets %q, want %q", got, secrets[name])
			}
			for s := range r.issued {
				if !r.secretKeys[s] {
					t.Errorf("the certificate in %s is used by nobody", s)
				}
			}
			if name == "nodes-only" {
				return
			}
			checkCluster(t, r)
		})
	}
}

// The control planes find each other, and the others them, under the names
// that their pods have.
func checkCluster(t *testing.T, r *release) {
	t.Helper()
	i := slices.IndexFunc(r.workloads, func(w workload) bool { return strings.HasSuffix(w.name, "-controlplane") })
	if i < 0 {
		t.Fatal("no control plane")
	}
	cp := r.workloads[i]
	var members, addresses []string
	for n := range cp.replicas {
		host := fmt.Sprintf("%s-%d.%s.%s.svc.cluster.local", cp.name, n, cp.service, namespace)
		members = append(members, fmt.Sprintf("%s-%d=https://%s:2380", cp.name, n, host))
		addresses = append(addresses, host+":9090")
	}
	if got := flag(cp, "--initial-cluster"); len(cp.claims) > 0 && got != strings.Join(members, ",") {
		t.Errorf("--initial-cluster %s, want %s", got, members)
	}
	if got := flag(cp, "--name"); got != "$(POD_NAME)" {
		t.Errorf("--name %s", got)
	}
	for _, w := range r.workloads {
		if w.name != cp.name && flag(w, "--control-plane") != strings.Join(addresses, ",") {
			t.Errorf("%s: --control-plane %s, want %s", w.name, flag(w, "--control-plane"), addresses)
		}
	}
}

func flag(w workload, name string) string {
	for _, a := range w.pod.Spec.Containers[0].Args {
		if v, ok := strings.CutPrefix(a, name+"="); ok {
			return v
		}
	}
	return ""
}

// The checks find what they are there to find.
func TestChecks(t *testing.T) {
	values := valuesFiles(t)["authority"]
	for name, tt := range map[string]struct {
		damage func(*release)
		want   string
	}{
		"selector":     {func(r *release) { r.workloads[0].pod.Labels["app.kubernetes.io/component"] = "x" }, "does not choose its own pods"},
		"service port": {func(r *release) { r.services["fanlight-gateway"].Spec.Ports[0].TargetPort.StrVal = "http" }, "leads to no port"},
		"service":      {func(r *release) { r.services["fanlight-gateway"].Spec.Selector["a"] = "b" }, "the pods of 0 workloads"},
		"headless":     {func(r *release) { r.services["fanlight-medianode"].Spec.ClusterIP = "" }, "not a headless service"},
		"budget":       {func(r *release) { delete(r.budgets[0].Spec.Selector.MatchLabels, "app.kubernetes.io/component") }, "is not for one pod"},
		"autoscaler":   {func(r *release) { r.scalers[0].Spec.ScaleTargetRef.Name = "x" }, "there is no Deployment x"},
		"root":         {func(r *release) { r.workloads[0].pod.Spec.SecurityContext.RunAsUser = new(int64) }, "may run as root"},
		"token":        {func(r *release) { r.workloads[0].pod.Spec.AutomountServiceAccountToken = nil }, "token"},
		"capability": {func(r *release) {
			r.workloads[0].pod.Spec.Containers[0].SecurityContext.Capabilities.Add = []corev1.Capability{"NET_RAW"}
		}, "capabilities"},
		"volume": {func(r *release) { r.workloads[0].pod.Spec.Containers[0].VolumeMounts[0].Name = "x" }, "is no volume"},
		"unused volume": {func(r *release) {
			v := &r.workloads[0].pod.Spec.Volumes
			*v = append(*v, corev1.Volume{Name: "x"})
		}, "the volume x is mounted nowhere"},
		"authority's key": {func(r *release) {
			m := &r.workloads[0].pod.Spec.Containers[0].VolumeMounts
			*m = append(*m, corev1.VolumeMount{Name: "authority", MountPath: "/x", ReadOnly: true})
		}, "sees the key of the authority"},
		"file": {func(r *release) {
			a := r.workloads[0].pod.Spec.Containers[0].Args
			a[len(a)-1] = "--key-file=/no/where"
		}, "/no/where is in no volume"},
		"flag":  {func(r *release) { a := r.workloads[0].pod.Spec.Containers[0].Args; a[len(a)-1] = "--no-such" }, "unknown flag: --no-such"},
		"var":   {func(r *release) { a := r.workloads[0].pod.Spec.Containers[0].Args; a[len(a)-1] = "--name=$(NO_SUCH)" }, "$(NO_SUCH) is not defined"},
		"probe": {func(r *release) { r.workloads[0].pod.Spec.Containers[0].LivenessProbe.TCPSocket.Port.StrVal = "x" }, "has no probe"},
		"grace": {func(r *release) {
			for i := range r.workloads {
				*r.workloads[i].pod.Spec.TerminationGracePeriodSeconds = 30
			}
		}, "is killed after 30s, while it may drain for 120s"},
	} {
		objects, _, err := render(values)
		if err != nil {
			t.Fatal(err)
		}
		r, err := sortOut(objects)
		if err != nil {
			t.Fatal(err)
		}
		tt.damage(r)
		if wrong := strings.Join(r.check(), "\n"); !strings.Contains(wrong, tt.want) {
			t.Errorf("%s: got %q, want %q", name, wrong, tt.want)
		}
	}
}

// What the init container issues is where the processes look for it.
func TestIssuedFiles(t *testing.T) {
	objects, _, err := render(valuesFiles(t)["authority"])
	if err != nil {
		t.Fatal(err)
	}
	r, err := sortOut(objects)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range r.workloads {
		files := map[string]bool{}
		mounts := map[string]string{}
		c := w.pod.Spec.Containers[0]
		for _, m := range c.VolumeMounts {
			mounts[m.Name] = m.MountPath
		}
		for _, init := range w.pod.Spec.InitContainers {
			role := ""
			for _, a := range init.Args {
				if v, ok := strings.CutPrefix(a, "--role="); ok {
					role = v
				}
			}
			for _, m := range init.VolumeMounts {
				if m.MountPath == "/issued" {
					files[path.Join(mounts[m.Name], role+"-$(POD_NAME).pem")] = true
					files[path.Join(mounts[m.Name], role+"-$(POD_NAME)-key.pem")] = true
				}
			}
		}
		wanted := slices.Clone(c.Args)
		for _, e := range c.Env {
			wanted = append(wanted, e.Name+"="+e.Value)
		}
		for _, v := range wanted {
			name, file, _ := strings.Cut(v, "=")
			if strings.Contains(file, "$(POD_NAME)") && strings.HasSuffix(file, ".pem") && !files[file] {
				t.Errorf("%s: %s %s is not issued; %s", w.name, name, file, strconv.Quote(strings.Join(slices.Sorted(maps.Keys(files)), " ")))
			}
		}
		if len(files) == 0 {
			t.Errorf("%s: nothing is issued", w.name)
		}
	}
}
