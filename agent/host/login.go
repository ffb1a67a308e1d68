// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"bytes"
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
	"os"
	"os/exec"
	"path/filepath"
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
	if l.Shell != nil {
		return loginBySSH(ctx, l)
	}
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
	from, _, _ := net.SplitHostPort(conn.LocalAddr().String())
	return greet(conn, conn, l, from)
}

// loginBySSH does the same in a session in which sshd runs the daemon.
func loginBySSH(ctx context.Context, l Login) error {
	dir, err := os.MkdirTemp("", "lockstep-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	known := filepath.Join(dir, "known_hosts")
	if err := os.WriteFile(known, l.KnownHosts, 0o600); err != nil {
		return err
	}
	argv := append(l.Shell(known), l.Address, "rsync", "--server", "--daemon", ".")
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = time.Second
	var said bytes.Buffer
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = greet(out, in, l, "")
	in.Close()
	out.Close() // the daemon would go on to wait for its options
	_ = cmd.Wait()
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("no answer by ssh within %s", loginTimeout)
	}
	var refused *LoginError
	if words := strings.TrimSpace(said.String()); err != nil && !errors.As(err, &refused) && words != "" {
		return &ShellError{words}
	}
	return err
}

// greet is one login; from is our address on the connection.
func greet(conn io.Reader, to io.Writer, l Login, from string) error {
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
	text, ok := strings.CutPrefix(greeting, "@RSYNCD: ")
	words := strings.Fields(text) // the version of the protocol, and digests
	if !ok || len(words) == 0 {
		return &LoginError{Reply: fmt.Sprintf("not an rsync daemon, it says %q", greeting)}
	}
	offered := words[1:]
	if len(offered) == 0 {
		offered = []string{"md5"}
	}
	var names []string
	var newHash func() hash.Hash
	for _, d := range authDigests {
		names = append(names, d.name)
		if newHash == nil && slices.Contains(offered, d.name) {
			newHash = d.new
		}
	}
	if newHash == nil {
		return &LoginError{Reply: "no digest in common, the daemon offers " + strings.Join(offered, " ")}
	}
	if _, err := fmt.Fprintf(to, "@RSYNCD: 31.0 %s\n%s\n", strings.Join(names, " "), l.Module); err != nil {
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
			fmt.Fprintf(h, "%s%s", l.Password, strings.TrimPrefix(rest, "AUTHREQD "))
			if _, err := fmt.Fprintf(to, "%s %s\n", l.User, base64.RawStdEncoding.EncodeToString(h.Sum(nil))); err != nil {
				return err
			}
		case strings.HasPrefix(line, "@ERROR"):
			return &LoginError{Reply: strings.TrimPrefix(line, "@ERROR: "), From: from}
		}
		// Anything else is the message of the day.
	}
}
