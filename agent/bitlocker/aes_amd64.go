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
		encryptCBC: encrypting(encryptCBCAESNI), decryptCBC: decryptCBC,
		diffuser: machineDiffuser(),
	}
	vaes := kernel{
		name: KernelVAES, available: hasVAES,
		newKey: newOwnKey,
		encryptNumbers: func(k *aesKey, dst []byte, first, step uint64) {
			encryptNumbersVAES(&k.enc[0], k.rounds, &dst[0], first, step, len(dst)/blockSize)
		},
		encryptXTS: encrypting(encryptXTSVAES), decryptXTS: decrypting(decryptXTSVAES),
		// Wider registers do not help where blocks wait for each other.
		encryptCBC: aesni.encryptCBC, decryptCBC: decrypting(decryptCBCVAES),
		diffuser: aesni.diffuser,
	}
	return []kernel{vaes, aesni}
}

// machineDiffuser returns the fastest diffuser.
func machineDiffuser() diffuser {
	if !cpu.X86.HasAVX2 {
		return genericDiffuser
	}
	return diffuser{
		lanes: 8,
		load: func(d []uint32, sectors []byte, sectorSize int, keys []byte) {
			loadWordsAVX2(&d[0], &sectors[0], sectorSize, len(sectors)/sectorSize, &keys[0])
		},
		store: func(d []uint32, sectors []byte, sectorSize int, keys []byte) {
			storeWordsAVX2(&d[0], &sectors[0], sectorSize, len(sectors)/sectorSize, &keys[0])
		},
		forward:  func(d []uint32) { diffuseAVX2(&d[0], len(d)/8) },
		backward: func(d []uint32) { undiffuseAVX2(&d[0], len(d)/8) },
	}
}

// loadWordsAVX2 is the load of a diffuser with eight lanes. It wants eight keys, even
// for fewer sectors.
//
//go:noescape
func loadWordsAVX2(d *uint32, sectors *byte, sectorSize, count int, keys *byte)

// storeWordsAVX2 is the store of a diffuser with eight lanes, with eight keys.
//
//go:noescape
func storeWordsAVX2(d *uint32, sectors *byte, sectorSize, count int, keys *byte)

// diffuseAVX2 diffuses eight sectors of so many words, a power of two.
//
//go:noescape
func diffuseAVX2(d *uint32, words int)

// undiffuseAVX2 undoes what diffuseAVX2 does.
//
//go:noescape
func undiffuseAVX2(d *uint32, words int)

// encryptBlocks encrypts blocks of 16 bytes at b in place, each XORed with that
// of pre before and that of post after, with rounds+1 round keys at keys.
//
//go:noescape
func encryptBlocks(keys *byte, rounds int, b, pre, post *byte, blocks int)

// decryptBlocks does the same for decryption, by the equivalent inverse cipher.
//
//go:noescape
func decryptBlocks(keys *byte, rounds int, b, pre, post *byte, blocks int)

// encryptNumbersVAES is the encryptNumbers of a kernel, for steps below 2^32.
//
//go:noescape
func encryptNumbersVAES(keys *byte, rounds int, dst *byte, first, step uint64, count int)

// These are of the type sectorAssembly.

//go:noescape
func encryptXTSAESNI(keys *byte, rounds int, tweaks, sectors *byte, sectorSize, count int)

//go:noescape
func decryptXTSAESNI(keys *byte, rounds int, tweaks, sectors *byte, sectorSize, count int)

//go:noescape
func encryptXTSVAES(keys *byte, rounds int, tweaks, sectors *byte, sectorSize, count int)

//go:noescape
func decryptXTSVAES(keys *byte, rounds int, tweaks, sectors *byte, sectorSize, count int)

//go:noescape
func encryptCBCAESNI(keys *byte, rounds int, ivs, sectors *byte, sectorSize, count int)

//go:noescape
func decryptCBCVAES(keys *byte, rounds int, ivs, sectors *byte, sectorSize, count int)
