// SPDX-License-Identifier: Apache-2.0

//go:build race

package apply_test

// stride: the detector makes the runs that are interrupted at every change ten times slower, and they have nothing
// concurrent in them. With it, every seventh change is tried.
const stride = 7
