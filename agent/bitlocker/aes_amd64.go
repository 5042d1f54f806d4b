//go:build !purego

package bitlocker

import "golang.org/x/sys/cpu"

// hasAES reports whether encryptBlocks and decryptBlocks can be used.
var hasAES = cpu.X86.HasAES && cpu.X86.HasAVX

// encryptBlocks encrypts blocks of 16 bytes at b in place, each XORed with that
// of pre before and that of post after, with rounds+1 round keys at keys.
//
//go:noescape
func encryptBlocks(keys *byte, rounds int, b, pre, post *byte, blocks int)

// decryptBlocks does the same for decryption, by the equivalent inverse cipher.
//
//go:noescape
func decryptBlocks(keys *byte, rounds int, b, pre, post *byte, blocks int)
