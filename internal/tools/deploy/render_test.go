package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	clientgo "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

var chartDir = filepath.Join(root, "deploy", "helm", "fanlight")

const namespace = "cameras"

// kinds are the types that objects are decoded into: Kubernetes' own, and those
// of cert-manager and of the Prometheus operator.
var kinds = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgo.AddToScheme, certmanager.AddToScheme, monitoring.AddToScheme} {
		if err := add(s); err != nil {
			panic(err)
		}
	}
	return s
}()

// render returns the chart's objects with the values of a YAML text.
func render(values string) ([]runtime.Object, string, error) {
	chrt, err := loader.Load(chartDir)
	if err != nil {
		return nil, "", err
	}
	var vals map[string]any
	if err := yaml.Unmarshal([]byte(values), &vals); err != nil {
		return nil, "", err
	}
	caps := chartutil.DefaultCapabilities.Copy()
	caps.KubeVersion = chartutil.KubeVersion{Version: "v1.32.0", Major: "1", Minor: "32"}
	top, err := chartutil.ToRenderValues(chrt, vals, chartutil.ReleaseOptions{Name: "fanlight", Namespace: namespace, IsInstall: true}, caps)
	if err != nil {
		return nil, "", err
	}
	files, err := engine.Engine{Strict: true}.Render(chrt, top)
	if err != nil {
		return nil, "", err
	}
	var objects []runtime.Object
	notes := ""
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(name, "NOTES.txt") {
			notes = files[name]
			continue
		}
		list, err := decode(files[name])
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w\n%s", name, err, files[name])
		}
		objects = append(objects, list...)
	}
	return objects, notes, nil
}

// decode reads a stream of YAML documents; a field that its type does not have,
// or has twice, is an error.
func decode(text string) ([]runtime.Object, error) {
	var objects []runtime.Object
	for _, doc := range bytes.Split([]byte("\n"+text), []byte("\n---")) {
		if plain, err := utilyaml.ToJSON(doc); err != nil {
			return nil, err
		} else if string(plain) == "null" {
			continue
		}
		var meta struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
		}
		if err := yaml.Unmarshal(doc, &meta); err != nil {
			return nil, err
		}
		obj, err := kinds.New(schema.FromAPIVersionAndKind(meta.APIVersion, meta.Kind))
		if err != nil {
			return nil, err
		}
		text, err := yaml.YAMLToJSONStrict(doc)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", meta.Kind, err)
		}
		// Unlike encoding/json it tells clusterIp from clusterIP.
		strict, err := json.UnmarshalStrict(text, obj)
		if err := errors.Join(append(strict, err)...); err != nil {
			return nil, fmt.Errorf("%s: %w", meta.Kind, err)
		}
		objects = append(objects, obj)
	}
	return objects, nil
}

// valuesFiles returns the texts of the chart's ci/ files, by name.
func valuesFiles(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(chartDir, "ci", "*-values.yaml"))
	if err != nil || len(files) < 6 {
		t.Fatalf("%d values files, %v", len(files), err)
	}
	out := map[string]string{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimSuffix(filepath.Base(f), "-values.yaml")] = string(data)
	}
	return out
}

func TestLint(t *testing.T) {
	for name, values := range valuesFiles(t) {
		var vals map[string]any
		if err := yaml.Unmarshal([]byte(values), &vals); err != nil {
			t.Fatal(err)
		}
		kube := chartutil.KubeVersion{Version: "v1.32.0", Major: "1", Minor: "32"}
		for _, m := range lint.AllWithKubeVersion(chartDir, vals, namespace, &kube).Messages {
			if m.Severity > support.InfoSev {
				t.Errorf("%s: %s", name, m)
			}
		}
	}
}

func TestDecodeIsStrict(t *testing.T) {
	for text, want := range map[string]string{
		"apiVersion: v1\nkind: Service\nspec: {clusterIP: None}":                                      "",
		"apiVersion: v1\nkind: Service\nspec: {clusterIp: None}":                                      "unknown field",
		"apiVersion: apps/v1\nkind: Deployement":                                                      "no kind",
		"apiVersion: v1\nkind: Service\nspec: {type: A, type: B}":                                     "already set",
		"apiVersion: v1\nkind: Service\nspec: {sessionAffinity: 3}":                                   "cannot unmarshal",
		"apiVersion: cert-manager.io/v1\nkind: Certificate\nspec: {uri: [a]}":                         "unknown field",
		"apiVersion: monitoring.coreos.com/v1\nkind: PodMonitor\nspec: {podMetricsEndpoint: []}":      "unknown field",
		"apiVersion: v1\nkind: Service\n---\n# nothing\n---\napiVersion: v1\nkind: Secret\nfoo: true": "unknown field",
	} {
		_, err := decode(text)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// What cannot work is refused with a sentence that says what to do.
func TestRefusals(t *testing.T) {
	const ok = "gateway: {viewers: {keySecret: k}}\nnetworkPolicy: {nodeCIDRs: [192.0.2.0/24]}\n"
	if _, notes, err := render(ok); err != nil || !strings.Contains(notes, "fanlight-gateway") {
		t.Fatalf("%v; notes %q", err, notes)
	}
	for values, want := range map[string]string{
		"":                                   "gateway.viewers.keySecret or gateway.viewers.jwksURL is missing",
		"gateway: {viewers: {keySecret: k}}": "networkPolicy.nodeCIDRs is missing",
		"gateway: {enabled: false}\ncontrolPlane: {enabled: false}":         "controlPlane.addresses",
		ok + "controlPlane: {addresses: [\"a:1\"]}":                         "controlPlane.enabled=false",
		ok + "controlPlane: {keySecret: \"\"}":                              "controlPlane.keySecret is missing",
		ok + "controlPlane: {externalEtcd: {endpoints: [\"http://a:1\"]}}":  "controlPlane",
		ok + "controlPlane: {externalEtcd: {endpoints: [\"https://a:1\"]}}": "networkPolicy.etcdCIDRs",
		ok + "tls: {mode: none}":                                            "tls",
		ok + "tls: {mode: certManager}":                                     "tls.certManager.issuer.name is missing",
		ok + "tls: {mode: certManager, certManager: {issuer: {name: a}}}":   "tls.certManager.peerIssuer.name is missing",
		ok + "tls: {mode: secrets}":                                         "tls.secrets.controlPlane is missing",
		ok + "tls: {mode: secrets, secrets: {controlPlane: a, peers: b, gateway: c, mediaNodes: d}}\nmediaNode: {kind: DaemonSet}": "mediaNode.kind=DaemonSet needs tls.mode=authority",
		ok + "mediaNode: {hostNetwork: false, hostPort: false}":                                                                    "mediaNode.advertise is missing",
		ok + "mediaNode: {replica: 3}":                               "replica",
		ok + "mediaNode: {mediaPort: 0}":                             "mediaPort",
		ok + "controlPlane: {replicas: 0}":                           "replicas",
		ok + "metrics: {podMonitor: {enabled: true}}":                "needs metrics.enabled",
		ok + "metrics: {enabled: true, podMonitor: {enabled: true}}": "metrics.podMonitor.tlsConfig is missing",
	} {
		if _, _, err := render(values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n  got  %v\n  want %s", values, err, want)
		}
	}
}
