// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// SocketName is the name of the status socket in the runtime directory. It speaks HTTP:
//
//	GET  /status             Status
//	GET  /metrics            Prometheus text
//	POST /pause /resume      Status
//	POST /approve            what was let through
//	POST /sync               one Update a line until the full batch is done
//	POST /wait               one Update a line until the barrier is passed; ends early when the client goes away
//	POST /verify?repair=1    one Update a line, those with Drift name what differs
//
// An error is a status other than 200 and an Update with Error set.
const SocketName = "status.sock"

// Update is one line of a streaming reply. The last one has Done or Error set.
type Update struct {
	Status *Status `json:"status,omitempty"`
	Drift  *Drift  `json:"drift,omitempty"`
	Done   bool    `json:"done,omitempty"`
	Error  string  `json:"error,omitempty"`
}

// Drift is one path in which source and backup differ although nothing is on its way.
type Drift struct {
	Path string `json:"path"`
	What string `json:"what"` // missing, edited, added
	// Detail is rsync's eleven characters of --itemize-changes.
	Detail string `json:"detail,omitempty"`
}

// updateEvery is how often a streaming reply tells how far it is.
const updateEvery = 500 * time.Millisecond

// answerWithin is how long the loop may take to answer. It never waits for disk or network, so anything longer means
// that it is stuck.
const answerWithin = 10 * time.Second

type listener struct {
	net.Listener
	metricsOnly bool
}

// listen opens the status socket and, when asked for, the port for metrics.
func (a *Agent) listen() ([]listener, error) {
	name := filepath.Join(a.opts.RuntimeDir, SocketName)
	// The lock of the state directory says that no other agent uses it.
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.Listen("unix", name)
	if err != nil {
		return nil, fmt.Errorf("status socket: %w", err)
	}
	// Root and the group may talk to the agent: connect(2) wants write permission, which the usual mask gives to neither
	// group nor others.
	if err := os.Chmod(name, 0o660); err != nil {
		ln.Close()
		return nil, fmt.Errorf("status socket: %w", err)
	}
	out := []listener{{ln, false}}
	if addr := a.opts.Pair.Metrics.Listen; addr != "" {
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			ln.Close()
			return nil, fmt.Errorf("metrics.listen: %w", err)
		}
		out = append(out, listener{tcp, true})
	}
	return out, nil
}

// serve answers requests until ctx ends.
func serve(ctx context.Context, ln listener, l *loop) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", l.serveMetrics)
	if !ln.metricsOnly {
		mux.HandleFunc("GET /status", l.serveStatus)
		mux.HandleFunc("POST /pause", l.serveDo(l.pause))
		mux.HandleFunc("POST /resume", l.serveDo(l.resume))
		mux.HandleFunc("POST /approve", l.serveApprove)
		mux.HandleFunc("POST /sync", l.serveSync)
		mux.HandleFunc("POST /wait", l.serveWait)
		mux.HandleFunc("POST /verify", l.serveVerify)
	}
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// current asks the loop for its status.
func (l *loop) current(ctx context.Context) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var s Status
	if err := l.call(ctx, func(now time.Time) { s = l.status(now) }); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("the agent is stuck: its loop did not answer for %v", answerWithin)
		}
		return nil, err
	}
	return &s, nil
}

func (l *loop) serveStatus(w http.ResponseWriter, r *http.Request) {
	s, err := l.current(r.Context())
	if err != nil {
		refuse(w, err)
		return
	}
	answer(w, s)
}

func (l *loop) serveDo(do func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := do(r.Context()); err != nil {
			refuse(w, err)
			return
		}
		l.serveStatus(w, r)
	}
}

func (l *loop) serveApprove(w http.ResponseWriter, r *http.Request) {
	a, err := l.approve(r.Context())
	if err != nil {
		refuse(w, err)
		return
	}
	answer(w, a)
}

func (l *loop) serveSync(w http.ResponseWriter, r *http.Request) {
	number, err := l.sync(r.Context())
	if err != nil {
		refuse(w, err)
		return
	}
	l.stream(w, r, func(s *Status) bool { return s.Full.Done >= number }, nil)
}

func (l *loop) serveWait(w http.ResponseWriter, r *http.Request) {
	var waiter sync.WaitGroup
	defer waiter.Wait()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	passed := make(chan error, 1)
	waiter.Go(func() { passed <- l.wait(ctx) })
	l.stream(w, r, nil, passed)
}

// stream writes an Update now and then, until done reports true or passed delivers.
func (l *loop) stream(w http.ResponseWriter, r *http.Request, done func(*Status) bool, passed <-chan error) {
	w.Header().Set("Content-Type", "application/jsonl")
	enc := json.NewEncoder(w)
	send := func(u Update) bool {
		err := enc.Encode(u)
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		return err == nil
	}
	t := time.NewTicker(updateEvery)
	defer t.Stop()
	for {
		var waited bool
		var err error
		select {
		case <-t.C:
		case err = <-passed:
			waited = true
		case <-r.Context().Done():
			return
		}
		s, statusErr := l.current(r.Context())
		switch {
		case err != nil:
			send(Update{Status: s, Error: err.Error()})
			return
		case statusErr != nil:
			send(Update{Error: statusErr.Error()})
			return
		case waited, done != nil && done(s):
			send(Update{Status: s, Done: true})
			return
		case !send(Update{Status: s}):
			return
		}
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return // the client went away
	}
}

func refuse(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusServiceUnavailable)
	if err := json.NewEncoder(w).Encode(Update{Error: err.Error()}); err != nil {
		return // the client went away
	}
}
