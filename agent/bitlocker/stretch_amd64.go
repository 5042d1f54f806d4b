//go:build !purego

package bitlocker

import "golang.org/x/sys/cpu"

// The kernels. SHA instructions finish two rounds of SHA-256 in four cycles, but
// could begin another two after two: a pair of keys takes no longer than one.
// Sixteen keys in the lanes of AVX-512 take as long as seven pairs.
var (
	kernelSHA    = &stretchKernel{name: "SHA", lanes: 1, rounds: stretchSHA1, wordStep: 1}
	kernelSHA2   = &stretchKernel{name: "SHA twice", lanes: 2, rounds: stretchSHA2, wordStep: 1, laneStep: laneWords}
	kernelAVX512 = &stretchKernel{name: "AVX-512", lanes: 16, rounds: stretchAVX512, wordStep: 16, laneStep: 1}
	hasSHA       = cpu.X86.HasAVX && hasSHAInstructions()
	hasAVX512    = cpu.X86.HasAVX512F
)

// kernelFor returns the kernel for the next of the keys that are left, to be
// stretched by so many workers in the shortest time.
func kernelFor(left, workers int) *stretchKernel {
	switch {
	case hasAVX512 && (left >= 14*workers || !hasSHA && left >= 4*workers):
		return kernelAVX512
	case hasSHA && left > workers:
		return kernelSHA2
	case hasSHA:
		return kernelSHA
	}
	return portable
}

// stretchKernels are the kernels that this processor can use.
var stretchKernels = usableKernels()

func usableKernels() []*stretchKernel {
	all := []*stretchKernel{portable}
	if hasSHA {
		all = append(all, kernelSHA, kernelSHA2)
	}
	if hasAVX512 {
		all = append(all, kernelAVX512)
	}
	return all
}

//go:noescape
func stretchSHA1(words *uint32, first, n int)

//go:noescape
func stretchSHA2(words *uint32, first, n int)

//go:noescape
func stretchAVX512(words *uint32, first, n int)

func hasSHAInstructions() bool

// sha256Start is the hash before the first block (section 5.3.3), in the order
// in which SHA instructions want it: F E B A, H G D C.
//
//lint:ignore U1000 assembly reads it
var sha256Start = [8]uint32{
	0x9b05688c, 0x510e527f, 0xbb67ae85, 0x6a09e667,
	0x5be0cd19, 0x1f83d9ab, 0xa54ff53a, 0x3c6ef372,
}
