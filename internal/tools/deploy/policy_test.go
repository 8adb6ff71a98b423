package deploy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// end is one end of a connection: a pod of the release, a pod of another
// namespace, or an address outside the cluster's pods.
type end struct {
	name      string
	pod       *workload         // of the release
	namespace map[string]string // the labels of another one, whose pod it is
	addr      netip.Addr        // neither
}

// host tells whether a pod is on its machine's network, where no policy is
// about it and no selector matches it.
func (e end) host() bool { return e.pod != nil && e.pod.pod.Spec.HostNetwork }

// allowed tells whether the policies let a connection through: out of the one
// pod and into the other.
func allowed(policies []*networkingv1.NetworkPolicy, from, to end, port int32, protocol corev1.Protocol) bool {
	out := len(applying(policies, from)) == 0
	for _, p := range applying(policies, from) {
		for _, rule := range p.Spec.Egress {
			out = out || peerMatches(rule.To, to) && portMatches(rule.Ports, to, port, protocol)
		}
	}
	in := len(applying(policies, to)) == 0
	for _, p := range applying(policies, to) {
		for _, rule := range p.Spec.Ingress {
			in = in || peerMatches(rule.From, from) && portMatches(rule.Ports, to, port, protocol)
		}
	}
	return out && in
}

func applying(policies []*networkingv1.NetworkPolicy, e end) []*networkingv1.NetworkPolicy {
	var list []*networkingv1.NetworkPolicy
	for _, p := range policies {
		if e.pod != nil && !e.host() && selects(&p.Spec.PodSelector, e.pod.pod.Labels) {
			list = append(list, p)
		}
	}
	return list
}

func selects(sel *metav1.LabelSelector, set map[string]string) bool {
	s, err := metav1.LabelSelectorAsSelector(sel)
	return err == nil && s.Matches(labels.Set(set))
}

func peerMatches(peers []networkingv1.NetworkPolicyPeer, e end) bool {
	for _, p := range peers {
		switch {
		case p.IPBlock != nil:
			// Of pods only those on their machine's network have such an address.
			if e.addr.IsValid() && netip.MustParsePrefix(p.IPBlock.CIDR).Contains(e.addr) {
				return true
			}
		case p.NamespaceSelector != nil:
			if e.namespace != nil && selects(p.NamespaceSelector, e.namespace) {
				return true
			}
		case e.pod != nil && !e.host() && selects(p.PodSelector, e.pod.pod.Labels):
			return true
		}
	}
	return len(peers) == 0
}

func portMatches(ports []networkingv1.NetworkPolicyPort, to end, port int32, protocol corev1.Protocol) bool {
	for _, p := range ports {
		want := corev1.ProtocolTCP
		if p.Protocol != nil {
			want = *p.Protocol
		}
		if want != protocol {
			continue
		}
		first := p.Port.IntVal
		if name := p.Port.StrVal; name != "" {
			first = -1
			for _, c := range podPorts(to) {
				if c.Name == name {
					first = c.ContainerPort
				}
			}
		}
		if port == first || p.EndPort != nil && port >= first && port <= *p.EndPort {
			return true
		}
	}
	return len(ports) == 0
}

func podPorts(e end) []corev1.ContainerPort {
	if e.pod == nil {
		return nil
	}
	return e.pod.pod.Spec.Containers[0].Ports
}

// The policies let through what the architecture has, and nothing else.
func TestNetworkPolicies(t *testing.T) {
	values := valuesFiles(t)
	flows := map[string]string{
		// Pods' network, metrics for prometheus' pods of the same namespace.
		"secrets": `gateway>controlplane:9090 medianode>controlplane:9090 controlplane>controlplane:2380
			gateway>medianode:9091 controlplane>medianode:9091 camera-lan>medianode:8189 world>medianode:8189 world>medianode:8189/UDP camera-lan>medianode:8189/UDP
			machine>medianode:8189 machine>medianode:8189/UDP dns>medianode:8189 dns>medianode:8189/UDP
			operators>medianode:8189 operators>medianode:8189/UDP
			world>gateway:8443 camera-lan>gateway:8443 machine>gateway:8443 dns>gateway:8443 operators>gateway:8443
			medianode>camera-lan:554 medianode>camera-lan:40000/UDP medianode>world:40000/UDP medianode>dns:40000/UDP
			medianode>machine:40000/UDP medianode>medianode:8189/UDP
			controlplane>dns:53/UDP gateway>dns:53/UDP medianode>dns:53/UDP
			controlplane>world:53/UDP gateway>world:53/UDP medianode>world:53/UDP
			controlplane>camera-lan:53/UDP gateway>camera-lan:53/UDP medianode>camera-lan:53/UDP
			controlplane>machine:53/UDP gateway>machine:53/UDP medianode>machine:53/UDP`,
		// Media nodes on the machines' network, operators and ingress of their own
		// namespaces, which may not do each other's part.
		"cert-manager": `gateway>controlplane:9090 machine>controlplane:9090 operators>controlplane:9090 controlplane>controlplane:2380
			ingress>gateway:8443 gateway>machine:9091 controlplane>machine:9091
			controlplane>dns:53/UDP gateway>dns:53/UDP
			controlplane>world:53/UDP gateway>world:53/UDP
			controlplane>camera-lan:53/UDP gateway>camera-lan:53/UDP
			controlplane>machine:53/UDP gateway>machine:53/UDP
			monitoring>controlplane:8281 monitoring>gateway:8283`,
		// A JWK set to fetch, from wherever.
		"daemonset": `gateway>controlplane:9090 machine>controlplane:9090 controlplane>controlplane:2380
			world>gateway:8443 camera-lan>gateway:8443 machine>gateway:8443 dns>gateway:8443 operators>gateway:8443 monitoring>gateway:8443 ingress>gateway:8443
			gateway>machine:9091 controlplane>machine:9091 gateway>world:443 gateway>camera-lan:443 gateway>machine:443 gateway>dns:443
			controlplane>dns:53/UDP gateway>dns:53/UDP
			controlplane>world:53/UDP gateway>world:53/UDP
			controlplane>camera-lan:53/UDP gateway>camera-lan:53/UDP
			controlplane>machine:53/UDP gateway>machine:53/UDP`,
	}
	for name, text := range flows {
		t.Run(name, func(t *testing.T) {
			objects, _, err := render(values[name])
			if err != nil {
				t.Fatal(err)
			}
			r, err := sortOut(objects)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]bool{}
			for _, f := range strings.Fields(text) {
				want[f] = true
			}
			for flow, got := range matrix(r, name) {
				if got != want[flow] {
					t.Errorf("%s: allowed %v, want %v", flow, got, want[flow])
				}
				delete(want, flow)
			}
			for f := range want {
				t.Errorf("%s: not asked about", f)
			}
		})
	}
}

// matrix tries every port between every two ends, of which one at least is a
// pod that policies are about.
func matrix(r *release, name string) map[string]bool {
	ends := []end{
		{name: "world", addr: netip.MustParseAddr("203.0.113.77")},
		{name: "camera-lan", addr: netip.MustParseAddr("10.20.3.4")},
		{name: "machine", addr: netip.MustParseAddr("192.0.2.15")},
		{name: "dns", namespace: map[string]string{"kubernetes.io/metadata.name": "kube-system"}},
		{name: "operators", namespace: map[string]string{"kubernetes.io/metadata.name": "operators"}},
	}
	if name != "secrets" {
		ends = append(ends,
			end{name: "monitoring", namespace: map[string]string{"kubernetes.io/metadata.name": "monitoring"}},
			end{name: "ingress", namespace: map[string]string{"kubernetes.io/metadata.name": "ingress-nginx"}})
	}
	for i := range r.workloads {
		if w := &r.workloads[i]; !w.pod.Spec.HostNetwork {
			ends = append(ends, end{name: strings.TrimPrefix(w.name, "fanlight-"), pod: w})
		}
	}
	ports := []struct {
		number   int32
		protocol corev1.Protocol
	}{
		{9090, "TCP"},
		{2380, "TCP"},
		{9091, "TCP"},
		{8189, "TCP"},
		{8189, "UDP"},
		{8443, "TCP"},
		{8281, "TCP"},
		{8283, "TCP"},
		{443, "TCP"},
		{554, "TCP"},
		{40000, "UDP"},
		{53, "UDP"},
		{22, "TCP"},
	}
	out := map[string]bool{}
	for _, from := range ends {
		for _, to := range ends {
			for _, p := range ports {
				// One without a pod at either end is nobody's business here; nor
				// are a node's wide ports, beyond a few.
				if from.pod == nil && to.pod == nil || !telling(from, to, p.number) {
					continue
				}
				flow := fmt.Sprintf("%s>%s:%d", from.name, to.name, p.number)
				if p.protocol == corev1.ProtocolUDP {
					flow += "/UDP"
				}
				out[flow] = allowed(r.policies, from, to, p.number, p.protocol)
			}
		}
	}
	return out
}

// telling leaves out of the matrix what says nothing new. A media node may reach
// cameras and browsers at any port: 554 and 40000 stand for the others.
func telling(from, to end, port int32) bool {
	switch {
	case to.namespace != nil && to.name != "dns":
		return false // nobody's destination, and no different from dns
	case from.name == "medianode" && to.pod == nil:
		return port == 554 || port == 40000 || port == 53
	default:
		return true
	}
}
