//go:build !purego

package bitlocker

import "golang.org/x/sys/cpu"

// keyStride is how far round keys are apart: each is there four times, since a
// memory operand of 512 bits has to have a key for each of its blocks.
const keyStride = 64

var (
	hasAESNI = cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasAVX
	hasVAES  = hasAESNI && cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VAES && cpu.X86.HasAVX512VPCLMULQDQ
)

// machineKernels returns the kernels in assembly. A processor with AES but without
// AVX (before 2011, and a few small ones since) gets the generic kernel: there a
// memory operand would have to be aligned, in instructions of their own.
func machineKernels() []kernel {
	aesni := kernel{
		name: KernelAESNI, available: hasAESNI,
		newKey:         newOwnKey,
		encryptNumbers: encryptNumbers,
		encryptXTS:     encrypting(encryptXTSAESNI), decryptXTS: decrypting(decryptXTSAESNI),
		encryptCBC: encryptCBC, decryptCBC: decryptCBC,
	}
	vaes := aesni
	vaes.name, vaes.available = KernelVAES, hasVAES
	vaes.encryptXTS, vaes.decryptXTS = encrypting(encryptXTSVAES), decrypting(decryptXTSVAES)
	return []kernel{vaes, aesni}
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

// These are of the type sectorAssembly.

//go:noescape
func encryptXTSAESNI(keys *byte, rounds int, tweaks, sectors *byte, sectorSize, count int)

//go:noescape
func decryptXTSAESNI(keys *byte, rounds int, tweaks, sectors *byte, sectorSize, count int)

//go:noescape
func encryptXTSVAES(keys *byte, rounds int, tweaks, sectors *byte, sectorSize, count int)

//go:noescape
func decryptXTSVAES(keys *byte, rounds int, tweaks, sectors *byte, sectorSize, count int)
