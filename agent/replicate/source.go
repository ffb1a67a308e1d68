// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// sourceFile, in the state directory, says which directory was provisioned:
//
//	{"path": "/data", "identity": "fsid:…/2"}
//
// It is written at the first start when it is not there, and by `lockstep approve` when another directory
// was put in its place on purpose. While the directory at the source path is not this one, nothing is sent.
const sourceFile = "source.json"

type provisioned struct {
	Path     string            `json:"path"`
	Identity transfer.Identity `json:"identity"`
}

// readSource returns nil when no directory was provisioned yet, or another path was: the definition has changed since.
func readSource(stateDir, path string) (*transfer.Identity, error) {
	name := filepath.Join(stateDir, sourceFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var p provisioned
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("%s: %w\nhint: remove the file if the directory that is at %s now is the right one", name, err, path)
	}
	if p.Path != path {
		return nil, nil
	}
	return &p.Identity, nil
}

func writeSource(stateDir, path string, id transfer.Identity) error {
	data, err := json.Marshal(provisioned{path, id})
	if err != nil {
		return err
	}
	return writeState(filepath.Join(stateDir, sourceFile), append(data, '\n'))
}

// writeState writes a file whole or not at all, and so that it is still there after a power cut.
func writeState(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
