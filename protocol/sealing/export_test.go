package sealing

// FromSeed returns the key of a seed.
func FromSeed(seed []byte) *PrivateKey {
	k := new(PrivateKey)
	copy(k.seed[:], seed)
	expanded, err := kem().NewPrivateKey(seed)
	if err != nil {
		panic(err)
	}
	k.public = expanded.PublicKey().Bytes()
	return k
}

// Seed returns the seed as it is in memory.
func (k *PrivateKey) Seed() []byte { return k.seed[:] }

// AssociatedData returns the bytes to which a context is bound.
func (c Context) AssociatedData() []byte { return c.associatedData() }
