package sealing_test

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

var update = flag.Bool("update", false, "write the test vectors anew")

// headers of a vector, in order. Those in hexadecimal end in "-hex".
var headers = []string{
	"expect", "seed-hex", "public-hex", "request-digest", "decisions-digest", "nonce-hex", "node", "disk",
	"purpose", "key-type", "aad-hex", "sealed-hex", "key-hex",
}

// TestVectors opens what the files say. Sealing draws randomness, so a vector
// is opened, never made again.
func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	names, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(names) < 2 {
		t.Fatalf("vectors: %v, %v", names, err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			v := readVector(t, name)
			k := sealing.FromSeed(unhex(t, v["seed-hex"]))
			if got := hex.EncodeToString(k.Public()); got != v["public-hex"] {
				t.Errorf("public key is %s", got)
			}
			ctx := v.context(t)
			if got := hex.EncodeToString(ctx.AssociatedData()); got != v["aad-hex"] {
				t.Errorf("associated data is %s, want %s", got, v["aad-hex"])
			}
			got, err := k.Open(ctx, unhex(t, v["sealed-hex"]))
			if v["expect"] == "ok" && (err != nil || hex.EncodeToString(got) != v["key-hex"]) {
				t.Errorf("opened %x, %v", got, err)
			}
			if v["expect"] != "ok" && string(protocol.CodeOf(err)) != v["expect"] {
				t.Errorf("opened %x, %v, want %s", got, err, v["expect"])
			}
		})
	}
}

type vector map[string]string

func (v vector) context(t testing.TB) sealing.Context {
	t.Helper()
	node, err := protocol.ParseNodeID(v["node"])
	if err != nil {
		t.Fatal(err)
	}
	return sealing.Context{
		RequestDigest: v["request-digest"], DecisionsDigest: v["decisions-digest"], Nonce: unhex(t, v["nonce-hex"]),
		Node: node, Disk: protocol.DiskID(v["disk"]), Purpose: protocol.Purpose(v["purpose"]), KeyType: sealing.KeyType(v["key-type"]),
	}
}

func readVector(t testing.TB, name string) vector {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	v := vector{}
	for line := range strings.Lines(string(text)) {
		header, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		v[header] = value
	}
	return v
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// writeVectors seals one key, and asks to open it in every other context.
func writeVectors(t *testing.T) {
	t.Helper()
	seed := bytes.Repeat([]byte{0x42}, 32)
	k := sealing.FromSeed(seed)
	sealed := seal(t, k.Public(), context())
	write := func(name, expect string, ctx sealing.Context, sealed []byte) {
		v := vector{
			"expect": expect, "seed-hex": hex.EncodeToString(seed), "public-hex": hex.EncodeToString(k.Public()),
			"request-digest": ctx.RequestDigest, "decisions-digest": ctx.DecisionsDigest, "nonce-hex": hex.EncodeToString(ctx.Nonce),
			"node": ctx.Node.String(), "disk": string(ctx.Disk), "purpose": string(ctx.Purpose), "key-type": string(ctx.KeyType),
			"aad-hex": hex.EncodeToString(ctx.AssociatedData()), "sealed-hex": hex.EncodeToString(sealed), "key-hex": hex.EncodeToString(diskKey),
		}
		var b strings.Builder
		for _, h := range headers {
			fmt.Fprintf(&b, "%s: %s\n", h, v[h])
		}
		if err := os.WriteFile(filepath.Join("testdata", name+".txt"), []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	write("accepted", "ok", context(), sealed)
	for name, change := range otherContexts {
		ctx := context()
		change(&ctx)
		write("other-"+strings.ReplaceAll(name, " ", "-"), string(protocol.CodeDiskKey), ctx, sealed)
	}
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-1] ^= 1
	write("flipped", string(protocol.CodeDiskKey), context(), flipped)
}
