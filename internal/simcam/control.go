package simcam

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"time"
)

// Handler returns an HTTP handler to watch the cameras and to set faults:
//
//	GET  /cameras                                      {"cameras": [{"camera", "url", "plays", "sessions", "peak", "keyframe_requests", "fault"}]}
//	POST /cameras/{camera}/fault?kind=freeze&for=5s    one of them, after the fault was set
//
// kind is a fault's name, as [ParseFault] knows them; for is how long the fault
// lasts, without it until the next one. It answers requests from loopback
// addresses only, and none that a browser sends for another site's page.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /cameras", s.getCameras)
	mux.HandleFunc("POST /cameras/{camera}/fault", s.postFault)
	return http.NewCrossOriginProtection().Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if addr, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !addr.Addr().Unmap().IsLoopback() {
			http.Error(w, "only from this machine", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	}))
}

func (s *Server) getCameras(w http.ResponseWriter, _ *http.Request) {
	list := struct {
		Cameras []Status `json:"cameras"`
	}{Cameras: []Status{}}
	for _, cam := range s.cameras {
		list.Cameras = append(list.Cameras, cam.status(s.URL(cam.name)))
	}
	s.writeJSON(w, list)
}

func (s *Server) postFault(w http.ResponseWriter, r *http.Request) {
	fault, err := ParseFault(r.URL.Query().Get("kind"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var d time.Duration
	if v := r.URL.Query().Get("for"); v != "" {
		if d, err = time.ParseDuration(v); err != nil || d <= 0 {
			http.Error(w, `for must be a duration such as "5s"`, http.StatusBadRequest)
			return
		}
	}
	name := r.PathValue("camera")
	if !s.SetFaultFor(name, fault, d) {
		http.Error(w, "no such camera", http.StatusNotFound)
		return
	}
	s.writeJSON(w, s.status(name))
}

func (s *Server) writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("response not written", "error", err)
	}
}
