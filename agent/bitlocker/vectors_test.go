package bitlocker

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sequence returns n bytes, counting up from first.
func sequence(first byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

// TestCCM compares with what OpenSSL 3.0 makes of key 40 41 … 5f, nonce
// 10 11 … 1b and plaintexts 00 01 ….
func TestCCM(t *testing.T) {
	key, nonce := sequence(0x40, 32), sequence(0x10, nonceSize)
	ciphertext := unhex(t, "24d8a38e939d2710cad52b96fe6f82010014c4c43b2e55c557d69f0402e0d6f206c53d6cbd3f1c3c6de5dcdc"+
		"ad9fb74f25741dea741149fe4278a0cc24741e8658cc0523b8d7838c60fb1de4")
	for size, mac := range map[int]string{
		1:  "779bee559a198ea0d3fdac6fa6ba9985",
		15: "de07d5caef2cc335c02c4abc3de00f18",
		16: "914b82e105f4283d47c5a99a7758fdaa",
		17: "741959e117a39a6cf7c5ed1871742753",
		44: "26826e8c011baea804df69f94b2f443a",
		76: "f526889ee5722c58daac91655f2f5384",
	} {
		want := append(append(bytes.Clone(nonce), unhex(t, mac)...), ciphertext[:size]...)
		if got := seal(key, nonce, sequence(0, size)); !bytes.Equal(got, want) {
			t.Errorf("seal of %d bytes: %x, want %x", size, got, want)
		}
		if got, ok := sealed(want).open(key); !ok || !bytes.Equal(got, sequence(0, size)) {
			t.Errorf("open of %d bytes: %x, %v", size, got, ok)
		}
		for i := range want {
			broken := bytes.Clone(want)
			broken[i] ^= 1
			if _, ok := sealed(broken).open(key); ok {
				t.Errorf("%d bytes sealed, with byte %d changed, still open", size, i)
			}
		}
	}
	if _, ok := sealed(make([]byte, nonceSize+macSize-1)).open(key); ok {
		t.Error("something shorter than nonce and MAC opens")
	}
}

// TestXTS compares with what OpenSSL 3.0 makes of a key of bytes 7i+1 and a
// sector of bytes 13i + i/256.
func TestXTS(t *testing.T) {
	for _, v := range []struct {
		method     Method
		sectorSize int
		number     int64
		sum        string // SHA-256 of the ciphertext
	}{
		{AES128XTS, 512, 0x123456, "743e11e240dc4bebe8029c2cb38d64ee1923d90e0914b00ca55858e5a5b75d6c"},
		{AES128XTS, 4096, 7, "4fa240a8f4e0bac82b3fa6d4c172a616f55764777b7103202ee3001d9b120cea"},
		{AES256XTS, 512, 0x123456, "f2f900b0f108b01e72a757b3bf33ff163ee0b9913ebff9a3b01c33a47d07e485"},
		{AES256XTS, 4096, 7, "bd9865ef1856808d37ac979452b0ea32a09388467d918680b55baedc9e62fff6"},
	} {
		key := make([]byte, methods[v.method].keySize)
		for i := range key {
			key[i] = byte(7*i + 1)
		}
		c, err := newSectorCipher(v.method, key, v.sectorSize)
		if err != nil {
			t.Fatal(err)
		}
		sector := make([]byte, v.sectorSize)
		for i := range sector {
			sector[i] = byte(13*i + i/256)
		}
		b := bytes.Clone(sector)
		c.encrypt(b, v.number*int64(v.sectorSize))
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != v.sum {
			t.Errorf("%v, %d bytes: ciphertext has SHA-256 %x, want %s", v.method, v.sectorSize, sum, v.sum)
		}
		c.decrypt(b, v.number*int64(v.sectorSize))
		if !bytes.Equal(b, sector) {
			t.Errorf("%v, %d bytes: decryption does not undo encryption", v.method, v.sectorSize)
		}
	}
}

// TestAES compares with the standard library, for every number of blocks up to
// where the code repeats itself.
func TestAES(t *testing.T) {
	for _, size := range []int{16, 32} {
		key := randomBytes(byte(size), size)
		own := newAESKey(key)
		theirs, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		for blocks := 1; blocks <= 25; blocks++ {
			n := blocks * blockSize
			text, pre, post := randomBytes(4, n), randomBytes(5, n), randomBytes(6, n)
			want := xor(ecb(theirs.Encrypt, xor(text, pre)), post)
			got := bytes.Clone(text)
			own.encrypt(got, pre, post)
			if !bytes.Equal(got, want) {
				t.Fatalf("AES-%d encrypts %d blocks wrong", 8*size, blocks)
			}
			want = xor(ecb(theirs.Decrypt, xor(text, pre)), post)
			got = bytes.Clone(text)
			own.decrypt(got, pre, post)
			if !bytes.Equal(got, want) {
				t.Fatalf("AES-%d decrypts %d blocks wrong", 8*size, blocks)
			}
		}
	}
}

func xor(a, b []byte) []byte {
	c := make([]byte, len(a))
	for i := range c {
		c[i] = a[i] ^ b[i]
	}
	return c
}

func ecb(f func(dst, src []byte), b []byte) []byte {
	c := make([]byte, len(b))
	for i := 0; i < len(b); i += blockSize {
		f(c[i:], b[i:])
	}
	return c
}

// TestCBC compares with the standard library's CBC, under the IV of the format.
func TestCBC(t *testing.T) {
	for method, size := range map[Method]int{AES128CBC: 16, AES256CBC: 32} {
		const pos, sectorSize = 0x2345_6000, 4096
		key := randomBytes(7, size)
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		text := randomBytes(8, 2*sectorSize)
		want := make([]byte, len(text))
		for i := 0; i < len(text); i += sectorSize {
			iv := le.AppendUint64(nil, uint64(pos+i))
			iv = ecb(block.Encrypt, append(iv, make([]byte, 8)...))
			cipher.NewCBCEncrypter(block, iv).CryptBlocks(want[i:i+sectorSize], text[i:i+sectorSize])
		}
		c, err := newSectorCipher(method, key, sectorSize)
		if err != nil {
			t.Fatal(err)
		}
		got := bytes.Clone(text)
		c.encrypt(got, pos)
		if !bytes.Equal(got, want) {
			t.Errorf("%v encrypts wrong", method)
		}
		c.decrypt(got, pos)
		if !bytes.Equal(got, text) {
			t.Errorf("%v decrypts wrong", method)
		}
	}
}

// TestStretch uses the keys of two volumes made by Windows.
func TestStretch(t *testing.T) {
	password, err := ParseRecoveryPassword("235818-357951-253979-013365-241120-245575-342914-591910")
	if err != nil {
		t.Fatal(err)
	}
	if want := unhex(t, "be531d7f315abf04a0553557c67932d2"); !bytes.Equal(password.bytes(), want) {
		t.Errorf("recovery password is %x, want %x", password.bytes(), want)
	}
	passphrase, err := NewPassphrase("anaconda")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []struct {
		name      string
		c         Credential
		salt, key string
	}{
		{"recovery password", password, "2ba080989af9b50c203aaebd0b40d498", "1a39f926dab83e947fa85125b91e556e9ecc2bc5968924e03de234878d1fd4bd"},
		{"passphrase", passphrase, "8d7637cc5d885d5ff4f748dbc8440d2e", "37554410c6e0df5b4fe096259f4a21b847338d3e8d8d8d8c30012d1447cca957"},
	} {
		got := make([]byte, keySize)
		v.c.key(protector{salt: unhex(t, v.salt)}, got)
		if want := unhex(t, v.key); !bytes.Equal(got, want) {
			t.Errorf("%s: key %x, want %x", v.name, got, want)
		}
	}
}
