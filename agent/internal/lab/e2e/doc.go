// SPDX-License-Identifier: Apache-2.0

// Package e2e proves the promises of lockstep from outside: real terraform, against two real hosts of
// package lab, with the binaries in build/. It has tests only; `make test-lab` runs them.
//
// Each test is named after the sentence that it proves. Tests that break something for good boot a lab of
// their own; the others share one, with one pair in it, and leave that pair in step.
package e2e
