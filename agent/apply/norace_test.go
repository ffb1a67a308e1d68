// SPDX-License-Identifier: Apache-2.0

//go:build !race

package apply_test

const stride = 1
