// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const selinuxfs = "/sys/fs/selinux"

// findSELinux looks in selinuxfs, which is not there when SELinux is off.
func findSELinux(root, dir string) *SELinux {
	enforce, err := os.ReadFile(filepath.Join(root, "enforce"))
	if err != nil || strings.TrimSpace(string(enforce)) != "1" {
		return nil // off, or only logging
	}
	s := SELinux{Booleans: map[string]bool{}, Type: labelType(dir)}
	for _, name := range []string{"rsync_full_access", "rsync_anon_write"} {
		if value, err := os.ReadFile(filepath.Join(root, "booleans", name)); err == nil { // "1 1": now, and after a commit
			s.Booleans[name] = strings.HasPrefix(string(value), "1")
		}
	}
	return &s
}

// labelType is the type in the label of a directory, or of the nearest one above it, whose type a new one gets.
func labelType(dir string) string {
	for ; ; dir = filepath.Dir(dir) {
		label := make([]byte, 1024)
		n, err := unix.Getxattr(dir, "security.selinux", label)
		if err == nil {
			if parts := strings.Split(strings.TrimRight(string(label[:n]), "\x00"), ":"); len(parts) > 2 {
				return parts[2]
			}
			return ""
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return ""
		}
	}
}
