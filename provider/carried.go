// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// carried are the host binaries that came with the provider.
type carried struct {
	dir     string
	version string // of the provider; the binaries of a release have the same

	mu    sync.Mutex
	files map[string]*carriedFile // by architecture
}

type carriedFile struct {
	content []byte
	sum     string
}

// carriedDir is where a release keeps them: beside the provider.
func carriedDir() string {
	exe, err := os.Executable()
	if err != nil {
		return ""
	}
	return besides(exe)
}

// besides is the directory of a program. Terraform links to it from .terraform, so links are followed.
func besides(exe string) string {
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	return filepath.Dir(exe)
}

// get reads the binary for an architecture as Go names it.
func (c *carried) get(arch string) (*carriedFile, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.files[arch]; f != nil {
		return f, nil
	}
	name := filepath.Join(c.dir, "lockstep_linux_"+arch)
	content, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("not carried: there is no %s", name)
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content)
	f := &carriedFile{content: content, sum: hex.EncodeToString(sum[:])}
	if c.files == nil {
		c.files = map[string]*carriedFile{}
	}
	c.files[arch] = f
	return f, nil
}

// goArch gives the architecture in Go's words, "" for one that lockstep is not built for.
func goArch(machine string) string {
	switch machine {
	case "x86_64", "amd64":
		return "amd64"
	case "aarch64", "arm64":
		return "arm64"
	}
	return ""
}

// isNewer compares two release numbers. comparable is false when they have no order.
func isNewer(a, b string) (newer, comparable bool) {
	x, preA, okA := release(a)
	y, preB, okB := release(b)
	if !okA || !okB {
		return false, false
	}
	for i := range x {
		if x[i] != y[i] {
			return x[i] > y[i], true
		}
	}
	switch {
	case preA == preB:
		return false, true
	case preA == "" || preB == "":
		return preA == "", true // 1.0.0 comes after 1.0.0-rc1
	}
	return false, false // of two builds before a release, the text does not tell
}

func release(s string) (n [3]int, pre string, ok bool) {
	s, _, _ = strings.Cut(strings.TrimPrefix(s, "v"), "+")
	s, pre, _ = strings.Cut(s, "-")
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return n, "", false
	}
	for i, p := range parts {
		v, err := strconv.Atoi(p)
		if err != nil || v < 0 {
			return n, "", false
		}
		n[i] = v
	}
	return n, pre, true
}
