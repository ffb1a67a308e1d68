// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// collection rewrites what `ansible-galaxy collection build` made so that it depends on its content alone: that
// command lists files in the order of the directory, and stamps them with the time of day.
func collection(name string, stamp time.Time) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	out, err := restamp(data, stamp)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return write(filepath.Base(name), out)
}

// restamp sorts a collection's tarball, the list in it too, and gives every entry one time and owner.
func restamp(data []byte, stamp time.Time) ([]byte, error) {
	type entry struct {
		head tar.Header
		body []byte
	}
	zr, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	var entries []entry
	for tr := tar.NewReader(zr); ; {
		head, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{*head, body})
	}
	find := func(name string) (int, error) {
		i := slices.IndexFunc(entries, func(e entry) bool { return e.head.Name == name })
		if i < 0 {
			return 0, fmt.Errorf("no %s", name)
		}
		return i, nil
	}
	list, err := find("FILES.json")
	if err != nil {
		return nil, err
	}
	manifest, err := find("MANIFEST.json")
	if err != nil {
		return nil, err
	}
	was := sha256.Sum256(entries[list].body)
	if entries[list].body, err = sortFiles(entries[list].body); err != nil {
		return nil, fmt.Errorf("FILES.json: %w", err)
	}
	now := sha256.Sum256(entries[list].body)
	text := string(entries[manifest].body)
	if n := strings.Count(text, hex.EncodeToString(was[:])); n != 1 {
		return nil, fmt.Errorf("MANIFEST.json names the checksum of FILES.json %d times", n)
	}
	entries[manifest].body = []byte(strings.Replace(text, hex.EncodeToString(was[:]), hex.EncodeToString(now[:]), 1))

	// Ansible reads MANIFEST.json first, and a directory has to come before what is in it.
	slices.SortFunc(entries, func(a, b entry) int {
		first := func(e entry) int {
			return slices.Index([]string{"FILES.json", "MANIFEST.json"}, e.head.Name)
		}
		return cmp.Or(cmp.Compare(first(b), first(a)), strings.Compare(a.head.Name, b.head.Name))
	})
	var out bytes.Buffer
	zw, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	tw := tar.NewWriter(zw)
	for _, e := range entries {
		head := tar.Header{Typeflag: e.head.Typeflag, Name: e.head.Name, Linkname: e.head.Linkname, Mode: e.head.Mode, Size: int64(len(e.body)),
			ModTime: stamp, Format: tar.FormatUSTAR}
		if len(head.Name) > 100 {
			head.Format = tar.FormatPAX
		}
		if err := tw.WriteHeader(&head); err != nil {
			return nil, err
		}
		if _, err := tw.Write(e.body); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	if err := zw.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// sortFiles orders the list of a collection by name.
func sortFiles(data []byte) ([]byte, error) {
	type file struct {
		Name   string  `json:"name"`
		Type   string  `json:"ftype"`
		Kind   *string `json:"chksum_type"`
		Sum    *string `json:"chksum_sha256"`
		Format int     `json:"format"`
	}
	var list struct {
		Files  []file `json:"files"`
		Format int    `json:"format"`
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&list); err != nil {
		return nil, err
	}
	slices.SortFunc(list.Files, func(a, b file) int { return strings.Compare(a.Name, b.Name) })
	return json.MarshalIndent(list, "", " ")
}
