//go:build !purego

package bitlocker

import "golang.org/x/sys/cpu"

// keyStride is how far round keys are apart.
const keyStride = blockSize

// machineKernels returns the kernel in assembly, which has blocks and their masks
// from the loops in Go.
func machineKernels() []kernel {
	k := generic
	k.name, k.available, k.newKey = KernelARM64, cpu.ARM64.HasAES, newOwnKey
	return []kernel{k}
}

// encryptBlocks encrypts blocks of 16 bytes at b in place, each XORed with that
// of pre before and that of post after, with rounds+1 round keys at keys.
//
//go:noescape
func encryptBlocks(keys *byte, rounds int, b, pre, post *byte, blocks int)

// decryptBlocks does the same for decryption, by the equivalent inverse cipher.
//
//go:noescape
func decryptBlocks(keys *byte, rounds int, b, pre, post *byte, blocks int)
