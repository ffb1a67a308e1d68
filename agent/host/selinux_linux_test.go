// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSELinuxIsReadFromSelinuxfs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  *SELinux
	}{
		{"off", nil, nil},
		{"permissive", map[string]string{"enforce": "0", "booleans/rsync_full_access": "0 0"}, nil},
		{"enforcing", map[string]string{"enforce": "1", "booleans/rsync_full_access": "0 1", "booleans/rsync_anon_write": "1 1"},
			&SELinux{Booleans: map[string]bool{"rsync_full_access": false, "rsync_anon_write": true}}},
		{"another policy", map[string]string{"enforce": "1"}, &SELinux{Booleans: map[string]bool{}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			for name, text := range tt.files {
				file := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got := findSELinux(root, filepath.Join(root, "not/there"))
			if got != nil {
				got.Type = "" // where tests run under SELinux, the directory has one
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
