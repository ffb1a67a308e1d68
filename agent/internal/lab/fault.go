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
	return cutOff(ctx, fdPath(h.lab.net), h.Name)
}

// BlackHole drops what arrives at the host for these TCP ports, or everything when none is given. The
// senders get no answer at all, as behind a firewall that drops.
func (h *Host) BlackHole(ctx context.Context, ports ...int) error {
	return blackHole(ctx, fdPath(h.net), ports)
}

// Restore undoes CutOff and BlackHole. It may be called without either.
func (h *Host) Restore(ctx context.Context) error {
	return restore(ctx, fdPath(h.lab.net), fdPath(h.net), h.Name)
}

// CutOff is as [Host.CutOff].
func (f *Found) CutOff(ctx context.Context, host string) error {
	if _, err := f.hostNet(host); err != nil {
		return err
	}
	return cutOff(ctx, f.state.Net, host)
}

// BlackHole is as [Host.BlackHole].
func (f *Found) BlackHole(ctx context.Context, host string, ports ...int) error {
	net, err := f.hostNet(host)
	if err != nil {
		return err
	}
	return blackHole(ctx, net, ports)
}

// Restore is as [Host.Restore].
func (f *Found) Restore(ctx context.Context, host string) error {
	net, err := f.hostNet(host)
	if err != nil {
		return err
	}
	return restore(ctx, f.state.Net, net, host)
}

func (f *Found) hostNet(host string) (string, error) {
	net, ok := f.state.Nets[host]
	if !ok {
		return "", fmt.Errorf("no host %q in lab %s", host, f.ID)
	}
	return net, nil
}

// The link's end of a host's cable has the host's name.
func cutOff(ctx context.Context, link, host string) error {
	return ip(ctx, link, "link set "+host+" down")
}

func blackHole(ctx context.Context, hostNet string, ports []int) error {
	match := ""
	if len(ports) > 0 {
		match = "tcp dport { " + strings.Trim(strings.ReplaceAll(fmt.Sprint(ports), " ", ", "), "[]") + " } "
	}
	return nft(ctx, hostNet, "add table inet lab\n"+
		"add chain inet lab input { type filter hook input priority 0; }\n"+
		"flush chain inet lab input\n"+
		"add rule inet lab input iifname eth0 "+match+"drop\n")
}

func restore(ctx context.Context, link, hostNet, host string) error {
	if err := nft(ctx, hostNet, "add table inet lab\ndelete table inet lab\n"); err != nil {
		return err
	}
	return ip(ctx, link, "link set "+host+" up")
}

// nft runs a script of nft(8) in a network namespace; the program is this machine's.
func nft(ctx context.Context, net, script string) error {
	cmd := groupCommand(ctx, "nsenter", "--net="+net, "--", "nft", "-f", "-")
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
