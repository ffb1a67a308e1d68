// SPDX-License-Identifier: Apache-2.0

//go:build integration && linux

package host

import (
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The rules are nft's own, as it prints them, in a network namespace of the test's. It needs root.
func TestFirewallOfNftablesIsFound(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed\nhint: apt-get install nftables")
	}
	runtime.LockOSThread() // for good: the thread, and the namespace, end with the test's goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("a network namespace: %v\nhint: run it with sudo, in a container started with --privileged", err)
	}
	nft := func(rules string) {
		t.Helper()
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	look := func(want *Firewall) {
		t.Helper()
		if diff := cmp.Diff(want, findFirewall(t.Context(), FirewallQuery{Port: 873}, []string{"192.0.2.1"})); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	look(nil)
	nft(`table inet filter {
		set allowed { type inet_service; elements = { 80, 443 }; }
		chain input {
			type filter hook input priority filter; policy drop;
			ct state established,related counter accept
			iif lo accept
			meta l4proto { icmp, ipv6-icmp } accept
			tcp dport { 22, 80-90 } ct state new accept comment "tcp, and accept"
			udp dport 873 accept
		}
		chain forward { type filter hook forward priority filter; policy accept; accept; }
	}`)
	look(&Firewall{Name: "nftables", Where: "inet filter input"})
	nft("insert rule inet filter input ip saddr 192.0.2.1 tcp dport 873 accept")
	look(nil)
}
