package bitlocker

import (
	"crypto/sha256"
	"math/bits"
	"runtime"
	"sync"
)

const (
	saltSize      = 16
	stretchRounds = 1 << 20
)

// stretching is a key on its way through the stretch: 1,048,576 times
//
//	last = SHA-256(last | initial | salt | count)
//
// from a last of zero, with a count of 64 bits that goes up from zero.
type stretching struct {
	key  []byte // initial; in the end, last
	salt []byte
}

// stretchOne fills dst with the key of p for a protector with the given salt.
func stretchOne(p password, salt, dst []byte) {
	p.initial(dst)
	stretchAll([]stretching{{dst, salt}})
}

// wipeKeys overwrites the keys.
func wipeKeys(all []stretching) {
	for _, s := range all {
		clear(s.key)
	}
}

// stretchAll stretches all keys, each in place, on all processors. Alone, a key
// takes about a twelfth of a second with SHA instructions, half a second without.
func stretchAll(all []stretching) {
	workers := min(runtime.GOMAXPROCS(0), len(all))
	var mu sync.Mutex
	take := func() (k *stretchKernel, some []stretching) {
		mu.Lock()
		defer mu.Unlock()
		k = kernelFor(len(all), workers)
		n := min(k.lanes, len(all))
		some, all = all[:n], all[n:]
		return k, some
	}
	work := func() {
		for k, some := take(); len(some) > 0; k, some = take() {
			withCleanStack(func() { k.stretch(some, 0, stretchRounds) })
		}
	}
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}

// stretchKernel does rounds of the stretch for as many keys at once as it has
// lanes.
type stretchKernel struct {
	name  string
	lanes int

	// rounds does n rounds, counted from first, on the words of all lanes. Word t of lane l
	// is at t*wordStep + l*laneStep. It is nil in the kernel that uses crypto/sha256.
	rounds             func(words *uint32, first, n int)
	wordStep, laneStep int
}

// portable is the kernel for any processor.
var portable = &stretchKernel{name: "crypto/sha256", lanes: 1}

// kernelRounds is how many rounds a kernel does at a time, within half a
// millisecond: assembly cannot be preempted, and whoever stops the world waits.
const kernelRounds = 1 << 10

// stretch does n rounds for each of some keys, no more than there are lanes.
func (k *stretchKernel) stretch(some []stretching, first, n int) {
	if k.rounds == nil {
		some[0].hash(first, n)
		return
	}
	words := make([]uint32, k.lanes*laneWords)
	defer clear(words)
	for l, s := range some {
		k.load(words[l*k.laneStep:], s)
	}
	for end := first + n; first < end; first += kernelRounds {
		k.rounds(&words[0], first, min(kernelRounds, end-first))
	}
	for l, s := range some {
		for i := range len(s.key) / 4 {
			be.PutUint32(s.key[4*i:], words[i*k.wordStep+l*k.laneStep])
		}
	}
}

// hash does n rounds with the standard library.
func (s stretching) hash(first, n int) {
	b := make([]byte, 2*keySize+saltSize+8)
	defer clear(b)
	copyKey(b[keySize:], s.key)
	copy(b[2*keySize:], s.salt)
	for count := first; count < first+n; count++ {
		le.PutUint64(b[2*keySize+saltSize:], uint64(count))
		last := sha256.Sum256(b)
		copy(b, last[:])
	}
	copyKey(s.key, b[:keySize])
}

// The 88 bytes of a round are padded to two blocks of 16 words. Most of them are
// the same in every round, and so is some of what SHA-256's message schedule makes
// of them, 48 words more for each block:
//
//	W[t] = W[t-16] + σ0(W[t-15]) + W[t-7] + σ1(W[t-2])
//
// That is computed once, and kept in laneWords words for each key:
//
//	 0 –  7  last, the first eight words of the first block
//	 8 – 15  K[t] + W[t] of the first block
//	16 – 31  of the first block's W[t], the terms that are the same in every round
//	32 – 47  K[t-32] + W[t-32] of the second block, with a count of zero
//	48 – 63  of the second block's W[t-32], the same
//	64 – 71  room for the hash of the first block
//
// The count is in word 4 of the second block, its low half with the bytes
// reversed. Of the second block's W[20] to W[31], the kernels compute σ1(W[t-2])
// even where it is the same.
const (
	laneWords   = 72
	secondBlock = 32 // where its words begin
	messageBits = 8 * (2*keySize + saltSize + 8)
)

// load fills a lane's words for a last of zero. They are zero before.
func (k *stretchKernel) load(lane []uint32, s stretching) {
	w := make([]uint32, 16)
	defer clear(w)
	k.loadFirst(lane, w, s.key)
	clear(w)
	k.loadSecond(lane[secondBlock*k.wordStep:], w, s.salt)
}

func (k *stretchKernel) loadFirst(lane, w []uint32, initial []byte) {
	put := func(t int, v uint32) { lane[t*k.wordStep] = v }
	for t := 8; t < 16; t++ {
		w[t] = be.Uint32(initial[4*(t-8):])
		put(t, sha256K[t]+w[t])
	}
	put(16, w[9]+sigma1(w[14]))
	put(17, w[10]+sigma1(w[15]))
	for t := 18; t < 23; t++ {
		put(t, w[t-7])
	}
	put(23, sigma0(w[8]))
	for t := 24; t < 31; t++ {
		put(t, w[t-16]+sigma0(w[t-15]))
	}
	put(31, w[15])
}

func (k *stretchKernel) loadSecond(lane, w []uint32, salt []byte) {
	put := func(t int, v uint32) { lane[t*k.wordStep] = v }
	for t := range saltSize / 4 {
		w[t] = be.Uint32(salt[4*t:])
	}
	w[6], w[15] = 1<<31, messageBits
	for t := range 16 {
		put(t, sha256K[t]+w[t])
	}
	w16 := w[0] + sigma0(w[1])
	w17 := w[1] + sigma0(w[2]) + sigma1(w[15])
	put(16, w16)
	put(17, w17)
	put(18, w[2]+sigma0(w[3])+sigma1(w16))
	put(19, w[3]+sigma1(w17)) // and σ0 of the count; the count itself in 20
	put(21, sigma0(w[6]))
	put(22, w[6]+w[15])
	put(23, w16)
	put(30, sigma0(w[15]))
	put(31, w[15]+sigma0(w16))
}

func sigma0(w uint32) uint32 {
	return bits.RotateLeft32(w, -7) ^ bits.RotateLeft32(w, -18) ^ w>>3
}

func sigma1(w uint32) uint32 {
	return bits.RotateLeft32(w, -17) ^ bits.RotateLeft32(w, -19) ^ w>>10
}

// sha256K are the round constants of FIPS 180-4, section 4.2.2.
var sha256K = [64]uint32{
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
}
