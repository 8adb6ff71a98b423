package signaling

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"fanlight/internal/fleet"
	"fanlight/signaling/viewer"
)

// newHandler makes the table of paths. Every path has its own methods; the
// others are answered by 405.
func (g *Gateway) newHandler() http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, methods map[string]http.HandlerFunc) {
		if get, ok := methods[http.MethodGet]; ok {
			methods[http.MethodHead] = get
		}
		mux.Handle(path, g.methods(methods))
	}
	handle("/v1/ws", map[string]http.HandlerFunc{http.MethodGet: g.tracked(g.serveWebsocket)})
	handle("/v1/cameras", map[string]http.HandlerFunc{http.MethodGet: g.tracked(g.serveCameras)})
	handle("/stats", map[string]http.HandlerFunc{http.MethodGet: g.serveStats})
	handle("/v1/cameras/{camera}/whep", map[string]http.HandlerFunc{http.MethodPost: g.tracked(g.postWHEP), http.MethodOptions: g.optionsWHEP})
	handle("/v1/cameras/{camera}/whep/{id}", map[string]http.HandlerFunc{
		http.MethodPatch: g.tracked(g.patchWHEP), http.MethodDelete: g.tracked(g.deleteWHEP),
	})
	handle("/healthz", map[string]http.HandlerFunc{http.MethodGet: g.serveHealth})
	handle("/readyz", map[string]http.HandlerFunc{http.MethodGet: g.serveReady})
	handle("/", map[string]http.HandlerFunc{http.MethodGet: g.serveAsset})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		if err := g.checkOrigin(w, r); err != nil {
			g.problem(w, r, err)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// tracked makes Run wait for the handler, and refuses when it does not run.
func (g *Gateway) tracked(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := g.begin(); err != nil {
			g.problem(w, r, err)
			return
		}
		defer g.work.Done()
		next(w, r)
	}
}

// methods chooses by the request's method, and answers CORS preflights.
func (g *Gateway) methods(byMethod map[string]http.HandlerFunc) http.Handler {
	var names []string
	for m := range byMethod {
		names = append(names, m)
	}
	if _, ok := byMethod[http.MethodOptions]; !ok {
		names = append(names, http.MethodOptions)
	}
	slices.Sort(names)
	allow := strings.Join(names, ", ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next, ok := byMethod[r.Method]
		if r.Method == http.MethodOptions {
			w.Header().Set("Allow", allow)
			w.Header().Set("Access-Control-Allow-Methods", allow)
			w.Header().Set("Access-Control-Allow-Headers", "Authorization, Content-Type, If-Match")
			w.Header().Set("Access-Control-Max-Age", "600")
			if ok {
				next(w, r)
			}
			w.WriteHeader(http.StatusNoContent)
			return
		}
		if !ok {
			w.Header().Set("Allow", allow)
			g.problem(w, r, fmt.Errorf("use one of %s: %w", allow, fleet.MethodNotAllowed))
			return
		}
		next(w, r)
	})
}

// origins are the origins of pages that may use the gateway.
type origins struct {
	all   bool
	exact map[string]bool // "https://example.com:8443", lower case
	hosts map[string]bool // their hosts, without ports
}

func newOrigins(list []string) (origins, error) {
	o := origins{exact: make(map[string]bool), hosts: make(map[string]bool)}
	for _, s := range list {
		if s == "*" {
			o.all = true
			continue
		}
		u, err := url.Parse(s)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
			return o, fmt.Errorf("allowed origin %q is not like https://example.com: %w", clip(s, 128), fleet.InvalidArgument)
		}
		o.exact[strings.ToLower(u.Scheme+"://"+u.Host)] = true
		o.hosts[strings.ToLower(u.Hostname())] = true
	}
	return o, nil
}

// checkOrigin refuses requests of pages that may not use the gateway, and lets
// the others read the answer. What is public, the player and its pages, is for
// all.
func (g *Gateway) checkOrigin(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Add("Vary", "Origin")
	if !strings.HasPrefix(r.URL.Path, "/v1/") && r.URL.Path != "/stats" {
		h.Set("Access-Control-Allow-Origin", "*")
		return nil
	}
	if err := g.checkHost(r); err != nil {
		return err
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return nil // no page: pages of other origins cannot leave it out
	}
	u, err := url.Parse(origin)
	same := err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
	if !same && !g.origins.all && !g.origins.exact[strings.ToLower(origin)] {
		return fmt.Errorf("pages of %s may not use this gateway, allow the origin in its configuration: %w", clip(origin, 128), fleet.OriginForbidden)
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", "Location, ETag, Link, Retry-After")
	return nil
}

// checkHost refuses names that are not known to lead here, where everyone may
// view: a page of another site could give its own name this gateway's address
// by DNS, and would then be of the same origin. Addresses cannot be given away
// like that.
func (g *Gateway) checkHost(r *http.Request) error {
	if g.auth != nil || g.origins.all {
		return nil
	}
	host := strings.ToLower(hostOf(r.Host))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") || g.origins.hosts[host] {
		return nil
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	name := clip(host, 128)
	return fmt.Errorf("%s is not known as a name of this gateway, whose viewers need no token: use its address, or add --allowed-origin http://%s: %w", name, name, fleet.OriginForbidden)
}

// hostOf returns the host of host:port or host, without brackets.
func hostOf(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		return host
	}
	return strings.Trim(s, "[]")
}

// remote returns the viewer's address: the connection's, or behind trusted
// proxies the last one in X-Forwarded-For that is none of them.
func (g *Gateway) remote(r *http.Request) string {
	addr, err := netip.ParseAddr(hostOf(r.RemoteAddr))
	if err != nil {
		return "unknown"
	}
	addr = addr.Unmap().WithZone("")
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && g.isProxy(addr); i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		addr = hop.Unmap().WithZone("")
	}
	return addr.String()
}

func (g *Gateway) isProxy(addr netip.Addr) bool {
	return slices.ContainsFunc(g.proxies, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// bearer returns whom a request's token speaks for (RFC 6750 §2.1). A token in
// the URL is not looked at.
func (g *Gateway) bearer(r *http.Request) (viewer.Viewer, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		token = ""
	}
	return g.authenticate(r.Context(), strings.TrimSpace(token))
}

// problem answers with an error (RFC 9457); reason is as in docs/errors.md.
func (g *Gateway) problem(w http.ResponseWriter, _ *http.Request, err error) {
	g.metrics.told(err)
	g.problemStatus(w, statusOf(err), err)
}

func (g *Gateway) problemStatus(w http.ResponseWriter, status int, err error) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	switch status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="fanlight"`)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", retryAfter(err))
	}
	body, _ := json.Marshal(struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
		Reason string `json:"reason"`
		Detail string `json:"detail"`
	}{http.StatusText(status), status, wireReason(err), sentence(err)})
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// retryAfter returns in how many seconds a player may try again (RFC 9110
// §10.2.3). A node that is full is so for a while, and refusing costs it something
// too: players of our own wait as long.
func retryAfter(err error) string {
	if reasonOf(err) == fleet.NodeFull {
		return "30"
	}
	return "2"
}

// writeJSON answers with a value.
func writeJSON(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err)) // plain structs alone
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

// serveHealth tells that the process lives.
func (g *Gateway) serveHealth(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n"))
}

// serveReady tells whether viewers can be served.
func (g *Gateway) serveReady(w http.ResponseWriter, r *http.Request) {
	if err := g.Ready(); err != nil {
		g.problem(w, r, &spoken{reason: fleet.Unavailable, text: err.Error()})
		return
	}
	g.serveHealth(w, r)
}
