// SPDX-License-Identifier: Apache-2.0

//go:build linux

package lab

import (
	"context"
	"fmt"
	"strings"
)

// CutOff pulls the host's network cable: its link has no carrier, nothing arrives, nothing is answered.
func (h *Host) CutOff(ctx context.Context) error {
	return h.lab.ip(ctx, h.lab.net, "link set "+h.Name+" down")
}

// BlackHole drops what arrives at the host for these TCP ports, or everything when none is given. The
// senders get no answer at all, as behind a firewall that drops.
func (h *Host) BlackHole(ctx context.Context, ports ...int) error {
	match := ""
	if len(ports) > 0 {
		match = "tcp dport { " + strings.Trim(strings.ReplaceAll(fmt.Sprint(ports), " ", ", "), "[]") + " } "
	}
	return h.nft(ctx, "add table inet lab\n"+
		"add chain inet lab input { type filter hook input priority 0; }\n"+
		"flush chain inet lab input\n"+
		"add rule inet lab input iifname eth0 "+match+"drop\n")
}

// Restore undoes CutOff and BlackHole. It may be called without either.
func (h *Host) Restore(ctx context.Context) error {
	if err := h.nft(ctx, "add table inet lab\ndelete table inet lab\n"); err != nil {
		return err
	}
	return h.lab.ip(ctx, h.lab.net, "link set "+h.Name+" up")
}

// nft runs a script of nft(8) in the host's network namespace; the program is this machine's.
func (h *Host) nft(ctx context.Context, script string) error {
	cmd := groupCommand(ctx, "nsenter", "--net="+fdPath(h.net), "--", "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	_, err := output(cmd, []string{"nft", script})
	return err
}

// Shrink mounts an empty file system of so many bytes over a directory of the host, so that it is soon
// full. Grow makes it larger; `umount` takes it away.
func (h *Host) Shrink(ctx context.Context, path string, bytes int64) error {
	_, err := h.Run(ctx, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d,mode=0755", bytes), "tmpfs", path)
	return err
}

// Grow changes the size of what Shrink mounted.
func (h *Host) Grow(ctx context.Context, path string, bytes int64) error {
	_, err := h.Run(ctx, "mount", "-o", fmt.Sprintf("remount,size=%d", bytes), path)
	return err
}
