package bitlocker

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"runtime"
	"testing"
)

// stretchReference does n rounds as the format describes them.
func stretchReference(initial, salt []byte, first, n int) []byte {
	last := make([]byte, sha256.Size)
	for count := first; count < first+n; count++ {
		b := append(bytes.Clone(last), initial...)
		b = append(b, salt...)
		b = le.AppendUint64(b, uint64(count))
		sum := sha256.Sum256(b)
		last = sum[:]
	}
	return last
}

// checkKernel compares a kernel with the reference, with as many of the keys and
// salts as it takes at once.
func checkKernel(t *testing.T, k *stretchKernel, random []byte, keys, first, n int) {
	t.Helper()
	var some []stretching
	var want [][]byte
	for range keys {
		initial, salt := random[:keySize], random[keySize:keySize+saltSize]
		random = random[keySize+saltSize:]
		want = append(want, stretchReference(initial, salt, first, n))
		some = append(some, stretching{bytes.Clone(initial), salt})
	}
	k.stretch(some, first, n)
	for i := range some {
		if !bytes.Equal(some[i].key, want[i]) {
			t.Fatalf("%s, %d keys, %d rounds from %d: key %d is %x, want %x", k.name, keys, n, first, i, some[i].key, want[i])
		}
	}
}

func TestStretchKernels(t *testing.T) {
	for _, k := range stretchKernels {
		t.Run(k.name, func(t *testing.T) {
			for keys := 1; keys <= k.lanes; keys++ {
				random := randomBytes(byte(keys), keys*(keySize+saltSize))
				for _, n := range []int{1, 2, 3, 17, 300} {
					checkKernel(t, k, random, keys, 0, n)
				}
				checkKernel(t, k, random, keys, stretchRounds-5, 5)
			}
			checkKernel(t, k, randomBytes(0, k.lanes*(keySize+saltSize)), k.lanes, 250, 2*kernelRounds+1)
		})
	}
}

func FuzzStretch(f *testing.F) {
	f.Add(randomBytes(1, 16*(keySize+saltSize)), uint32(0), byte(3))
	f.Add([]byte{}, uint32(stretchRounds-1), byte(1))
	f.Add(bytes.Repeat([]byte{0xFF}, 16*(keySize+saltSize)), uint32(255), byte(2))
	f.Fuzz(func(t *testing.T, random []byte, first uint32, n byte) {
		keys := len(random) / (keySize + saltSize)
		random = append(random, make([]byte, 16*(keySize+saltSize))...)
		for _, k := range stretchKernels {
			checkKernel(t, k, random, min(k.lanes, keys+1), int(first%stretchRounds), int(n%8)+1)
		}
	})
}

// TestStretchVectors has every kernel stretch a recovery password and a passphrase
// of volumes made by Windows, beside random keys in its other lanes.
func TestStretchVectors(t *testing.T) {
	fromPassword := sha256.Sum256(recoveryPassword(t, goodPassword).bytes())
	vectors := []struct{ initial, salt, want []byte }{
		{fromPassword[:], unhex(t, "2ba080989af9b50c203aaebd0b40d498"), unhex(t, "1a39f926dab83e947fa85125b91e556e9ecc2bc5968924e03de234878d1fd4bd")},
		{passphrase(t, "anaconda").bytes(), unhex(t, "8d7637cc5d885d5ff4f748dbc8440d2e"), unhex(t, "37554410c6e0df5b4fe096259f4a21b847338d3e8d8d8d8c30012d1447cca957")},
	}
	for _, k := range stretchKernels {
		for v, vector := range vectors {
			lane := v % k.lanes
			some := make([]stretching, k.lanes)
			for i := range some {
				some[i] = stretching{randomBytes(byte(i), keySize), vector.salt}
			}
			some[lane] = stretching{bytes.Clone(vector.initial), vector.salt}
			k.stretch(some, 0, stretchRounds)
			if !bytes.Equal(some[lane].key, vector.want) {
				t.Errorf("%s, vector %d: %x", k.name, v, some[lane].key)
			}
		}
	}
}

func BenchmarkStretch(b *testing.B) {
	for _, k := range stretchKernels {
		b.Run(fmt.Sprint(k.name, " of ", k.lanes), func(b *testing.B) {
			some := make([]stretching, k.lanes)
			for i := range some {
				some[i] = stretching{randomBytes(byte(i), keySize), make([]byte, saltSize)}
			}
			for b.Loop() {
				k.stretch(some, 0, stretchRounds)
			}
		})
	}
	for _, n := range []int{1, 2, 4, 16, 70} {
		b.Run(fmt.Sprint(n, " on ", runtime.GOMAXPROCS(0), " processors"), func(b *testing.B) {
			all := make([]stretching, n)
			for i := range all {
				all[i] = stretching{randomBytes(byte(i), keySize), make([]byte, saltSize)}
			}
			for b.Loop() {
				stretchAll(all)
			}
		})
	}
}

// TestUnlockAll opens volumes with everything that opens them and something that
// does not, at once, and expects of each what Unlock says of it alone.
func TestUnlockAll(t *testing.T) {
	var attempts []Attempt
	var want []ProtectorKind
	add := func(v *Volume, c Credential, opens bool) {
		attempts = append(attempts, Attempt{v, c})
		if want = append(want, c.protects()); !opens {
			want[len(want)-1] = TPMProtector
		}
	}
	first, second := recoveryPassword(t, goodPassword), recoveryPassword(t, "000000-000011-000000-000000-000000-000000-000000-720885")
	for seed := range byte(6) {
		o := testOptions(t)
		o.Rand = testRand(seed)
		o.Protectors = append(o.Protectors, ProtectorKey{GUID{1}, second}, ProtectorKey{GUID{2}, passphrase(t, "anaconda")}, ProtectorKey{GUID{3}, first})
		m, _ := formatted(t, o)
		v, err := Open(m, testSize)
		if err != nil {
			t.Fatal(err)
		}
		add(v, first, true)
		add(v, second, true)
		add(v, passphrase(t, "anaconda"), true)
		add(v, passphrase(t, "Anaconda"), false)
		add(v, RecoveryPassword{}, false)
		add(v, externalKey(o), true)
		add(v, ClearKey{}, false)
	}
	for i, u := range UnlockAll(attempts) {
		if want[i] == TPMProtector {
			if ClassOf(u.Err) != ClassWrongKey || u.Plaintext != nil {
				t.Errorf("attempt %d: %v", i, u.Err)
			}
			continue
		}
		if u.Err != nil {
			t.Errorf("attempt %d: %v", i, u.Err)
			continue
		}
		if got := u.Plaintext.Protector().Kind; got != want[i] {
			t.Errorf("attempt %d was opened by a protector of kind %v", i, got)
		}
		u.Plaintext.Wipe()
	}
	if got := UnlockAll(nil); len(got) != 0 {
		t.Errorf("no attempts, but %d results", len(got))
	}
}

func recoveryPassword(t testing.TB, s string) RecoveryPassword {
	t.Helper()
	p, err := ParseRecoveryPassword(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
