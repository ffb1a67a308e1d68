// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"context"
	"crypto/md5"  //nolint:gosec // rsync's oldest challenge-response, for daemons before 3.2.7
	"crypto/sha1" //nolint:gosec // as above
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

const loginTimeout = 10 * time.Second

// authDigests are what rsync negotiates for the challenge, strongest first (since 3.2.7; md5 before).
var authDigests = []struct {
	name string
	new  func() hash.Hash
}{
	{"sha512", sha512.New},
	{"sha256", sha256.New},
	{"sha1", sha1.New},
	{"md5", md5.New},
}

// login speaks the daemon's greeting up to its OK, and hangs up: a module can be tried without a transfer.
// See rsync's csprotocol.txt and authenticate.c.
func login(ctx context.Context, l Login) error {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(l.Address, strconv.Itoa(l.Port)))
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	in := bufio.NewReader(io.LimitReader(conn, 64<<10)) // a message of the day fits, a stream of rubbish ends
	readLine := func() (string, error) {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("connection closed by the daemon: %w", io.ErrUnexpectedEOF)
		}
		return strings.TrimRight(line, "\r\n"), err
	}
	greeting, err := readLine()
	if err != nil {
		return err
	}
	words, ok := strings.CutPrefix(greeting, "@RSYNCD: ")
	if !ok {
		return &LoginError{Reply: fmt.Sprintf("not an rsync daemon, it says %q", greeting)}
	}
	newHash := md5.New
	if offered := strings.Fields(words)[1:]; len(strings.Fields(words)) > 1 {
		newHash = nil
		for _, d := range authDigests {
			if slices.Contains(offered, d.name) {
				newHash = d.new
				break
			}
		}
		if newHash == nil {
			return &LoginError{Reply: "no digest in common, the daemon offers " + strings.Join(offered, " ")}
		}
	}
	var names []string
	for _, d := range authDigests {
		names = append(names, d.name)
	}
	if _, err := fmt.Fprintf(conn, "@RSYNCD: 31.0 %s\n%s\n", strings.Join(names, " "), l.Module); err != nil {
		return err
	}
	for {
		line, err := readLine()
		if err != nil {
			return err
		}
		switch rest, isReply := strings.CutPrefix(line, "@RSYNCD: "); {
		case isReply && rest == "OK":
			return nil
		case isReply && strings.HasPrefix(rest, "AUTHREQD "):
			h := newHash()
			io.WriteString(h, l.Password)
			io.WriteString(h, strings.TrimPrefix(rest, "AUTHREQD "))
			if _, err := fmt.Fprintf(conn, "%s %s\n", l.User, base64.RawStdEncoding.EncodeToString(h.Sum(nil))); err != nil {
				return err
			}
		case strings.HasPrefix(line, "@ERROR"):
			from, _, _ := net.SplitHostPort(conn.LocalAddr().String())
			return &LoginError{Reply: strings.TrimPrefix(line, "@ERROR: "), From: from}
		}
		// Anything else is the message of the day.
	}
}
