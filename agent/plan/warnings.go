// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

// SELinux is what an enforcing SELinux of the backup host says about the daemon and the directory.
type SELinux struct {
	Booleans map[string]bool // those about rsync that its policy has
	Type     string          // of the directory's label; "" = not known
}

// Firewall is one of the backup host that is not seen to let the backup's port in.
type Firewall struct {
	Name  string // firewalld, ufw or nftables
	Where string // zones of firewalld; family, table and chain of nftables
	Zone  string // of firewalld, when there is but one
}

// BackupWarnings lists what may be in the way of the source host, or of the daemon, on a backup host and is no problem of
// the definition: lockstep changes neither firewalls nor SELinux, and cannot see all of either.
func BackupWarnings(p pair.Pair, f Facts) []pair.Problem {
	var ws []pair.Problem
	// sshd, unlike systemd, leaves what it starts for root unconfined.
	if f.SELinux != nil && !BySSH(p) {
		ws = append(ws, selinuxWarnings(p.Backup.Path, *f.SELinux)...)
	}
	if d := f.Dirs[p.Backup.Path]; len(d.Entries) > 0 && d.WasFS == "" {
		ws = append(ws, occupiedWarning(p, d.Entries))
	}
	if f.Firewall != nil && len(f.Addresses) > 0 {
		ws = append(ws, firewallWarning(p.Backup.Port, f.Addresses, *f.Firewall))
	}
	return ws
}

// occupiedWarning is about a backup directory that is new to the pair.
func occupiedWarning(p pair.Pair, entries []string) pair.Problem {
	const few = 5
	more := ""
	if len(entries) > few {
		entries, more = entries[:few], " and more"
	}
	names := make([]string, len(entries))
	for i, name := range entries {
		names[i] = strconv.Quote(name)
	}
	hint := fmt.Sprintf("if it is not a copy of %s:%s, choose another directory: what both have is replaced there", p.Source.Host, p.Source.Path)
	if p.Delete.Enabled {
		hint += ", and what only it has is held, to be deleted by lockstep approve " + p.Name
	}
	return pair.Problem{Path: "backup.path", Msg: fmt.Sprintf("%s is not empty: it has %s%s", p.Backup.Path, strings.Join(names, ", "), more), Hint: hint}
}

func selinuxWarnings(dir string, s SELinux) []pair.Problem {
	// rsync_selinux(8). The daemon's domain is rsync_t.
	const public = "public_content_rw_t"
	full, known := s.Booleans["rsync_full_access"]
	w := pair.Problem{Path: "selinux", Hint: "setsebool -P rsync_full_access on"}
	label := ""
	if s.Type != "" {
		label = " (" + s.Type + ")"
	}
	switch {
	case full || s.Type == public && s.Booleans["rsync_anon_write"]:
		return nil
	case !known:
		w.Msg = "SELinux enforces a policy without the boolean rsync_full_access: the daemon may be kept from writing to " + dir + label
		w.Hint = "if files cannot be written: ausearch -m avc -c rsync"
	case s.Type == public:
		w.Msg = "SELinux enforces, and rsync_anon_write is off: the daemon may be kept from writing to " + dir + label
		w.Hint = "setsebool -P rsync_anon_write on"
	default:
		w.Msg = "SELinux enforces, and rsync_full_access is off: the daemon may be kept from writing to " + dir + label
	}
	return []pair.Problem{w}
}

func firewallWarning(port int, from []string, f Firewall) pair.Problem {
	w := pair.Problem{Path: "firewall"}
	var opens []string
	each := func(command func(address string, v6 bool) string) {
		for _, a := range from {
			opens = append(opens, command(a, isV6(a)))
		}
	}
	switch f.Name {
	case "firewalld":
		zone := ""
		if f.Zone != "" {
			zone = "--zone=" + f.Zone + " "
		}
		w.Msg = fmt.Sprintf("firewalld runs, and nothing in its zone %s lets port %d in: the source host may not reach it", f.Where, port)
		each(func(a string, v6 bool) string {
			family := "ipv4"
			if v6 {
				family = "ipv6"
			}
			return fmt.Sprintf("firewall-cmd --permanent %s--add-rich-rule='rule family=%s source address=%s port port=%d protocol=tcp accept'", zone, family, a, port)
		})
		opens = append(opens, "firewall-cmd --reload")
	case "ufw":
		w.Msg = fmt.Sprintf("ufw is active, and none of its rules lets port %d in: the source host may not reach it", port)
		each(func(a string, _ bool) string {
			return fmt.Sprintf("ufw allow from %s to any port %d proto tcp", a, port)
		})
	default:
		w.Msg = fmt.Sprintf("the %s chain %s drops what no rule accepts, and none seems to accept port %d: the source host may not reach it", f.Name, f.Where, port)
		each(func(a string, v6 bool) string {
			family := "ip"
			if v6 {
				family = "ip6"
			}
			return fmt.Sprintf("nft insert rule %s %s saddr %s tcp dport %d accept", f.Where, family, a, port)
		})
	}
	w.Hint = strings.Join(opens, " && ")
	if f.Name == "nftables" {
		w.Hint += "; and the same where the rules are kept"
	}
	return w
}

func isV6(address string) bool {
	if p, err := netip.ParsePrefix(address); err == nil {
		return p.Addr().Is6()
	}
	a, err := netip.ParseAddr(address)
	return err == nil && a.Is6()
}
