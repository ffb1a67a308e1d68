// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"slices"
	"sync"
	"time"
)

// standby holds the process, if there is one, that was launched before its job is known, so that it is connected and has said its
// password by then. That is most of what a small job takes.
type standby struct {
	mu      sync.Mutex
	process *process
	expiry  *time.Timer
}

// launchStandby starts the rsync of the next job with these arguments in the root's directory, unless one stands by already, and reports
// whether one does. As long as it does, the filesystem cannot be unmounted: expire must follow.
func (r *Runner) launchStandby(root *Root, args []string) bool {
	s := &r.standby
	s.mu.Lock()
	defer s.mu.Unlock()
	here, ok := root.place()
	if !ok || s.process != nil {
		return ok
	}
	p, err := r.launch(root, args)
	if err != nil {
		return false // the job will say so
	}
	p.place, s.process = here, p
	return true
}

// takeStandby returns the standby process if it is in the very directory and has the same arguments, else nil.
func (r *Runner) takeStandby(root *Root, args []string) *process {
	s := &r.standby
	s.mu.Lock()
	p := s.process
	s.mu.Unlock()
	if p == nil || !slices.Equal(p.args, args) || !s.release(p) {
		return nil
	}
	if here, ok := root.place(); !ok || here != p.place || p.hasEnded() {
		go p.dismiss()
		return nil
	}
	return p
}

// Close dismisses what stands by.
func (r *Runner) Close() {
	s := &r.standby
	s.mu.Lock()
	p := s.process
	s.mu.Unlock()
	if p != nil && s.release(p) {
		p.dismiss()
	}
}

// expire dismisses what stands by when no job has taken it within keep from now.
func (s *standby) expire(keep time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.process
	if p == nil {
		return
	}
	s.stopExpiry()
	s.expiry = time.AfterFunc(keep, func() {
		if s.release(p) {
			p.dismiss()
		}
	})
}

// release reports whether p still stands by, and takes it away.
func (s *standby) release(p *process) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != p {
		return false
	}
	s.process = nil
	s.stopExpiry()
	return true
}

func (s *standby) stopExpiry() {
	if s.expiry != nil {
		s.expiry.Stop()
		s.expiry = nil
	}
}
