package bitlocker

import (
	"fmt"
	"slices"
)

// Kernel names an implementation of the sector ciphers. All of them give the same
// result.
type Kernel string

// The kernels, the fastest first.
const (
	KernelVAES    Kernel = "vaes"    // amd64: AVX-512, with AES and carry-less multiplication as wide
	KernelAESNI   Kernel = "aesni"   // amd64: AES, PCLMULQDQ and AVX
	KernelARM64   Kernel = "arm64"   // arm64: AES
	KernelGeneric Kernel = "generic" // anywhere: crypto/aes, a block at a time
)

// kernel is what a [Kernel] names: the loops in which sector ciphers spend their
// time.
type kernel struct {
	name      Kernel
	available bool // on this processor

	newKey func(key []byte) *aesKey
	// encryptNumbers sets dst to the encrypted numbers first, first+step (below
	// 2^32), and so on, one a block.
	encryptNumbers func(k *aesKey, dst []byte, first, step uint64)
	// encryptXTS and decryptXTS take the sectors' encrypted numbers.
	encryptXTS, decryptXTS sectorLoop
	// encryptCBC and decryptCBC take initialization vectors.
	encryptCBC, decryptCBC sectorLoop
	diffuser               diffuser
}

// sectorLoop encrypts or decrypts one sector or more, in place, with a block for
// each of them.
type sectorLoop func(k *aesKey, sectors []byte, sectorSize int, blocks []byte)

// sectorAssembly is a [sectorLoop] in assembly: for count sectors, at least one,
// with rounds+1 round keys.
type sectorAssembly func(keys *byte, rounds int, blocks, sectors *byte, sectorSize, count int)

// encrypting makes a loop of assembly that encrypts.
func encrypting(f sectorAssembly) sectorLoop {
	return func(k *aesKey, sectors []byte, sectorSize int, blocks []byte) {
		f(&k.enc[0], k.rounds, &blocks[0], &sectors[0], sectorSize, len(sectors)/sectorSize)
	}
}

// decrypting makes a loop of assembly that decrypts.
func decrypting(f sectorAssembly) sectorLoop {
	return func(k *aesKey, sectors []byte, sectorSize int, blocks []byte) {
		f(&k.dec[0], k.rounds, &blocks[0], &sectors[0], sectorSize, len(sectors)/sectorSize)
	}
}

// generic is the kernel that runs anywhere.
var generic = kernel{
	name: KernelGeneric, available: true,
	newKey:         newStandardKey,
	encryptNumbers: encryptNumbers,
	encryptXTS:     encryptXTS, decryptXTS: decryptXTS,
	encryptCBC: encryptCBC, decryptCBC: decryptCBC,
	diffuser: genericDiffuser,
}

// kernels are those that this processor has what it takes for, the fastest first.
var kernels = slices.DeleteFunc(append(machineKernels(), generic), func(k kernel) bool { return !k.available })

// Kernels returns the kernels that run on this processor, the fastest first, which
// is the one volumes use.
func Kernels() []Kernel {
	names := make([]Kernel, len(kernels))
	for i, k := range kernels {
		names[i] = k.name
	}
	return names
}

// SectorCipher encrypts and decrypts sectors as a volume does, without the volume.
// It may be used concurrently.
type SectorCipher struct {
	cipher     sectorCipher
	sectorSize int
}

// NewSectorCipher returns the cipher of a method, whose keys (all of them
// together, as a volume stores them: see [Method.KeySize]) the caller clears.
// Sectors have 512 or 4096 bytes. It fails if the processor cannot run the kernel.
func NewSectorCipher(name Kernel, m Method, key []byte, sectorSize int) (*SectorCipher, error) {
	i := slices.IndexFunc(kernels, func(k kernel) bool { return k.name == name })
	if i < 0 {
		return nil, fmt.Errorf("kernel %q does not run on this processor, but %v do", name, Kernels())
	}
	if sectorSize != 512 && sectorSize != 4096 {
		return nil, fmt.Errorf("sector size is %d, want 512 or 4096", sectorSize)
	}
	c, err := kernels[i].newSectorCipher(m, key, sectorSize)
	if err != nil {
		return nil, err
	}
	return &SectorCipher{c, sectorSize}, nil
}

// Encrypt encrypts whole sectors in place, the first of which lies at byte pos of
// the volume. It panics at anything but whole sectors.
func (c *SectorCipher) Encrypt(sectors []byte, pos int64) {
	c.mustBeWhole(sectors, pos)
	c.cipher.encrypt(sectors, pos)
}

// Decrypt undoes what Encrypt does.
func (c *SectorCipher) Decrypt(sectors []byte, pos int64) {
	c.mustBeWhole(sectors, pos)
	c.cipher.decrypt(sectors, pos)
}

func (c *SectorCipher) mustBeWhole(sectors []byte, pos int64) {
	if len(sectors)%c.sectorSize != 0 || pos < 0 || pos%int64(c.sectorSize) != 0 {
		panic(fmt.Sprintf("bitlocker: %d bytes at %d are not whole sectors of %d", len(sectors), pos, c.sectorSize))
	}
}

// Wipe overwrites the keys. The cipher cannot be used afterwards.
func (c *SectorCipher) Wipe() { c.cipher.wipe() }
