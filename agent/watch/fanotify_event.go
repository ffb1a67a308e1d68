// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// fanEvent is one event of a group that reports directory handles and names (FAN_REPORT_DFID_NAME). Its slices
// point into the buffer that was read.
type fanEvent struct {
	mask uint64
	// dir is the identity of the directory: struct fanotify_event_info_fid from its fsid on, so 8 bytes of
	// fsid, 4 of handle length, 4 of handle type, and the handle. Empty if the kernel did not say.
	dir []byte
	// name is the entry in dir that the event is about, "." for dir itself, empty if the kernel did not say.
	name []byte
}

const (
	fanInfoHeader = 4      // struct fanotify_event_info_header: type 1, pad 1, length 2
	fanDirHeader  = 8 + 8  // fsid, and struct file_handle without the handle
	maxHandle     = 1 << 7 // MAX_HANDLE_SZ of name_to_handle_at(2)
)

var errFanotifyEvent = errors.New("fanotify event is not as documented")

// nextFanEvent takes the first event from buf (fanotify(7)).
func nextFanEvent(buf []byte) (e fanEvent, rest []byte, err error) {
	if len(buf) < unix.FAN_EVENT_METADATA_LEN {
		return e, nil, errFanotifyEvent
	}
	// struct fanotify_event_metadata: length 4, version 1, reserved 1, metadata length 2, mask 8, fd 4, pid 4.
	length, version := binary.NativeEndian.Uint32(buf), buf[4]
	header := int(binary.NativeEndian.Uint16(buf[6:]))
	if version != unix.FANOTIFY_METADATA_VERSION {
		return e, nil, fmt.Errorf("%w: version %d", errFanotifyEvent, version)
	}
	if header < unix.FAN_EVENT_METADATA_LEN || uint64(length) < uint64(header) || uint64(length) > uint64(len(buf)) {
		return e, nil, errFanotifyEvent
	}
	e.mask = binary.NativeEndian.Uint64(buf[8:])
	for info := buf[header:length]; len(info) >= fanInfoHeader; {
		kind, size := info[0], int(binary.NativeEndian.Uint16(info[2:]))
		if size < fanInfoHeader || size > len(info) {
			return e, nil, errFanotifyEvent
		}
		body := info[fanInfoHeader:size]
		info = info[size:]
		if kind != unix.FAN_EVENT_INFO_TYPE_DFID_NAME && kind != unix.FAN_EVENT_INFO_TYPE_DFID {
			continue
		}
		if len(body) < fanDirHeader {
			return e, nil, errFanotifyEvent
		}
		end := binary.NativeEndian.Uint32(body[8:])
		if end > maxHandle || int(end) > len(body)-fanDirHeader {
			return e, nil, errFanotifyEvent
		}
		e.dir = body[:fanDirHeader+int(end)]
		if kind == unix.FAN_EVENT_INFO_TYPE_DFID_NAME {
			e.name = body[len(e.dir):]
			if i := bytes.IndexByte(e.name, 0); i >= 0 {
				e.name = e.name[:i]
			}
		}
	}
	return e, buf[length:], nil
}

// fanHandle returns the handle in the identity of a directory.
func fanHandle(dir string) unix.FileHandle {
	kind := int32(binary.NativeEndian.Uint32([]byte(dir[12:16])))
	return unix.NewFileHandle(kind, []byte(dir[fanDirHeader:]))
}

// fanDir is the reverse: the identity that events give to the directory at path.
func fanDir(path string) (string, error) {
	fsid, err := fsidOf(path)
	if err != nil {
		return "", err
	}
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		return "", pathError("name_to_handle_at", path, err)
	}
	b := binary.NativeEndian.AppendUint32([]byte(fsid), uint32(h.Size()))
	b = binary.NativeEndian.AppendUint32(b, uint32(h.Type()))
	return string(append(b, h.Bytes()...)), nil
}

func fsidOf(path string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "", pathError("statfs", path, err)
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(st.Fsid.Val[0]))
	return string(binary.NativeEndian.AppendUint32(b, uint32(st.Fsid.Val[1]))), nil
}
