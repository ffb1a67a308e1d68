// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// maxHeaders bounds the file of headers, in bytes.
	maxHeaders = 64 << 10

	// maxAnswer is how much of an answer is read, so that its connection can be used again.
	maxAnswer = 64 << 10

	// lastWord is how long a socket's reader has to close its side. Closing at once could cost the message: a
	// connection that is closed while something unread is in it is reset, and the reader may lose what it did not read.
	lastWord = time.Second
)

// message is the JSON of a batch. Its form is an interface: fields are added, never renamed.
type message struct {
	Pair  string        `json:"pair"`
	Time  time.Time     `json:"time"` // when it arrived; of joined batches, the last
	Paths []messagePath `json:"paths"`
	Full  bool          `json:"full"`
}

type messagePath struct {
	Path   string `json:"path"` // relative to the source; what is not UTF-8 of it is U+FFFD here
	Base64 []byte `json:"path_base64,omitempty"`
	Kind   string `json:"kind"` // file, dir, symlink, other, deleted
}

// message renders a batch as one line.
func (w *worker) message(b *batch) []byte {
	m := message{Pair: w.pair, Time: b.at.UTC(), Paths: make([]messagePath, 0, len(b.paths)), Full: b.full}
	for _, c := range b.paths {
		p := messagePath{Path: c.path, Kind: c.kind}
		if !utf8.ValidString(c.path) {
			p.Path, p.Base64 = strings.ToValidUTF8(c.path, "\uFFFD"), []byte(c.path)
		}
		m.Paths = append(m.Paths, p)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(m); err != nil {
		panic("bug: " + err.Error())
	}
	return out.Bytes()
}

// socket writes a line and waits a moment for the reader to close: that is the only sign that it was read.
func (w *worker) socket(ctx context.Context, line []byte) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, w.Network, w.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(line); err != nil {
		return err
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		if err := half.CloseWrite(); err != nil {
			return err
		}
	}
	wait := lastWord
	if at, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(at)/2)
	}
	if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(conn, maxAnswer))
	if netErr, ok := errors.AsType[net.Error](err); ok && netErr.Timeout() && ctx.Err() == nil {
		return nil
	}
	return err
}

// newClient returns a client that follows no redirection: it would carry the headers to another host.
func newClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (w *worker) request(ctx context.Context, target string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, w.Method, target, bytes.NewReader(body))
	if err != nil {
		return errFinal{err}
	}
	if w.HeadersFile != "" {
		if req.Header, err = readHeaders(w.HeadersFile); err != nil {
			return err
		}
		if host := req.Header.Get("Host"); host != "" {
			req.Host = host // package net/http sends this one, not the header
			req.Header.Del("Host")
		}
	}
	if body != nil && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "lockstep")
	}
	resp, err := w.client.Do(req)
	if err != nil {
		if at, ok := errors.AsType[*url.Error](err); ok {
			err = at.Err // without the URL, whose query may be long
		}
		return fmt.Errorf("%s %s: %w", w.Method, req.URL.Host, err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	code := resp.StatusCode
	if code/100 == 2 {
		return nil
	}
	err = fmt.Errorf("%s %s: %s", w.Method, req.URL.Host, resp.Status)
	switch {
	case code/100 == 5, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code == http.StatusTooEarly:
		return err
	case code/100 == 3:
		return errFinal{fmt.Errorf("%w; redirections are not followed", err)}
	}
	return errFinal{err}
}

// urlFor returns the URL for one path, or false when the path has none.
func (w *worker) urlFor(c change) (string, bool) {
	if w.Kind == "dir" && c.kind != "dir" || w.Kind == "file" && c.kind == "dir" {
		return "", false
	}
	part := c.path
	if w.match != nil {
		m := w.match.FindStringSubmatch(w.absolute(c.path))
		if m == nil {
			return "", false
		}
		part = m[1]
	}
	return strings.ReplaceAll(w.URL, pathPlace, percentEncode(part)), true
}

// percentEncode encodes every byte but slashes and those that RFC 3986 calls unreserved, so that a name means the same in
// the path of a URL and in its query, and can be no more than a part of either.
func percentEncode(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~', c == '/':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// readHeaders reads lines of "Name: value"; empty lines and those that begin with # do not count. Its errors never say
// what stands in the file.
func readHeaders(name string) (http.Header, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // or it would wait for the writer of a fifo
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat() // of what is read: another file may be there in a moment
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return nil, errFinal{fmt.Errorf("%s has secrets in it and mode %v: it must be a file of mode 0600", name, st.Mode())}
	}
	if st.Size() > maxHeaders {
		return nil, errFinal{fmt.Errorf("%s is larger than %d bytes", name, maxHeaders)}
	}
	headers := http.Header{}
	lines := bufio.NewScanner(io.LimitReader(f, maxHeaders))
	lines.Buffer(nil, maxHeaders+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		if !ok || key == "" || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return nil, errFinal{fmt.Errorf("%s: line %d is not \"Name: value\"", name, n)}
		}
		headers.Add(textproto.CanonicalMIMEHeaderKey(key), strings.TrimSpace(value))
	}
	return headers, lines.Err()
}
