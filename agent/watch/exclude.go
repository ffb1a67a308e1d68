// SPDX-License-Identifier: Apache-2.0

package watch

// Exclude matches paths against rsync exclude patterns (rsync(1) PATTERN MATCHING RULES).
type Exclude struct{}
