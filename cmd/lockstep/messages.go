// SPDX-License-Identifier: Apache-2.0

package main

// message is something that an agent logs, with an id of its own in the journal (MESSAGE_ID=), by which `journalctl`
// finds it and explains it. An id never changes and never gets another meaning; the text may be worded anew.
type message struct {
	id    string
	text  string // as it stands in the code, without what differs from time to time
	state string // of "state" alone: the new one
}

// messages is the one table of them. packaging/systemd/lockstep.catalog explains each, lockstep(8) lists them.
// A new id comes from `journalctl --new-id128`.
func messages() []message {
	return []message{
		{"7e6e73ac630e4da69778840c55349c2e", "started", ""},
		{"dad2a42d3fbd48709090c1ea7e15661d", "stopping: running transfers get some time to finish", ""},
		{"f3a484f7f1ce4fa5b50659623577d38d", "stopped", ""},
		{"5551edb13ce847d2bfb041d47d3d2be8", "the agent cannot start, and a restart cannot help", ""},
		{"f59d072d53e64f6ba91bdef034873c70", "the definition was reloaded", ""},
		{"5a60ec55cc7541a3a2cc041dd0487051", "the definition was not reloaded; the one before stays in force", ""},
		{"2fd50239edd541a2b8dc6ed590bd1057", "state", "starting"},
		{"6281e9c1fa4e483990eac74801919dfb", "state", "in step"},
		{"edfdfdba31634d8c814dd406d46eefc4", "state", "behind"},
		{"1c82e78307324157a853bebb0597ba7a", "state", "degraded"},
		{"7db3585889b5494287a952e8f0c83a7f", "state", "held"},
		{"d8234fe8a25d47e9a943b235f6b629e5", "state", "paused"},
		{"8a286d142e1c4da3b37c36c1d4e2ef9f", "state", "failing"},
		{"354738b8a73841f5becf2fc3835110a9", "state", "hooks only"},
		{"f139384af3a24da490f937624762b813", "watching", ""},
		{"3f01cae933a74d2287cc9affef9e6ad7", "the watch is incomplete: what is not watched is scanned at intervals", ""},
		{"5759d2dedb1b49e2b0b593800dfe8af8", "the watch is complete again", ""},
		{"f960bc073f204717a946099791eec389", "the kernel's event queue overflowed; what was lost is scanned again", ""},
		{"d15048dc5a5d4d44a17b7d2d05c53aaa", "the source cannot be watched; trying again", ""},
		{"352745341d9444628ad43acd416aa5ee", "the source directory is gone: nothing is sent or deleted until it is back", ""},
		{"e94a5d0d3636480483636e1d8b92f414", "nothing is sent or deleted", ""},
		{"6217cb5c28074da6a14858abdac5b230", "the source directory is there", ""},
		{"4d13553a0b104d00b825f71306aa5cd4", "the source directory is noted as the provisioned one", ""},
		{"da7fe1d6a274465e93301461d24977c3", "another directory was approved as the source", ""},
		{"ed9b8c70b4cc43c29b57f06f52ca84d1", "deletions are held", ""},
		{"943fbeb67209478096fdc5dd5b49597f", "held deletions were approved", ""},
		{"f9443faa4c8743f69b772e31a8e6f7df", "the source directory is not empty any more: its deletions are judged again", ""},
		{"47a3d3cad41945dc9ee8c48001986d1d", "full batch", ""},
		{"48614c5be2584e6b8a71177e4d4cba5c", "full batch done", ""},
		{"02d6734f94764438bd288809cf250215", "the backup is far behind: the whole tree is sent", ""},
		{"f4dfdf5bdb424300a707097047f7ddf5", "the comparison was not complete: nothing is deleted because of it", ""},
		{"b181a437de7c4180be67210441085951", "a path could not be sent; it is tried again by itself", ""},
		{"754be7d1f80840808f2c5d190033d074", "a transfer ended in a way that is not understood; its paths are sent in two halves", ""},
		{"21753d296f9840808515da11972aa25f", "nothing can be sent; trying again", ""},
		{"b07a3f149bcd45248f8bc39fc9af0559", "the backup takes files again", ""},
		{"617bc9e39a5c43ab8b19abad93917ddb", "an rsync process is stuck; it is ended and its transfer tried again", ""},
		{"035a2776e4784a73adf1a94489aac55f", "a stuck rsync process cannot be ended", ""},
		{"84a34a1ccaba46159e870555e53efd95", "a hook failed; what is replicated is not touched by that", ""},
		{"58754a05c522466a9c73601596a3e548", "the hook works again", ""},
	}
}
