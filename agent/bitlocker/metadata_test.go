package bitlocker

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// change rewrites metadata copies of a volume, with a checksum that fits.
func change(m *memory, o FormatOptions, f func(area []byte), copies ...int) {
	for _, i := range copies {
		area := m.b[o.Metadata[i]:][:areaSize]
		f(area)
		length := blockUnit * int(le.Uint16(area[8:]))
		if entriesAt <= length && length <= areaSize-validationSize {
			le.PutUint32(area[length+4:], crc32.ChecksumIEEE(area[:length]))
		}
	}
}

var allCopies = []int{0, 1, 2}

func TestInfo(t *testing.T) {
	o := testOptions(t)
	password, err := ParseRecoveryPassword(goodPassword)
	if err != nil {
		t.Fatal(err)
	}
	second := ProtectorKey{MustGUID("EA1D3164-8745-2940-924A-BA2996479981"), password}
	o.Protectors = []ProtectorKey{second, o.Protectors[0]}
	o.Method, o.SectorSize = AES256XTS, 4096
	m, view := formatted(t, o)
	v, err := Open(m, testSize)
	if err != nil {
		t.Fatal(err)
	}
	created := testNow.Truncate(100 * time.Nanosecond)
	salt := v.Info().Protectors[1].Salt
	if salt == [16]byte{} {
		t.Error("no salt")
	}
	protectors := []Protector{ // the recovery password last
		{o.Protectors[1].ID, ExternalKeyProtector, "ExternalKey", created, [16]byte{}, 44},
		{second.ID, RecoveryPasswordProtector, "", created, salt, 44},
	}
	want := Info{
		ID: o.ID, Description: o.Description, Created: created,
		Method: AES256XTS, SectorSize: 4096, Size: testSize, EncryptedSize: testSize,
		State: 4, NextState: 4, Metadata: o.Metadata, HeaderCopy: o.HeaderCopy, HeaderSize: headerSize,
		NextNonce: 9, KeyData: 76, Protectors: protectors,
	}
	if diff := cmp.Diff(want, v.Info()); diff != "" {
		t.Error(diff)
	}
	for i, c := range []Credential{o.Protectors[1].Key, password} {
		p := unlocked(t, m, testSize, c)
		compare(t, p, view)
		if p.Protector() != protectors[i] {
			t.Errorf("opened by %v, want %v", p.Protector(), protectors[i])
		}
	}
}

// TestWrongKey wants exactly the sentinel, which says nothing more.
func TestWrongKey(t *testing.T) {
	o := testOptions(t)
	m, _ := formatted(t, o)
	v, err := Open(m, testSize)
	if err != nil {
		t.Fatal(err)
	}
	wrong, _ := NewExternalKey(randomBytes(77, keySize))
	if _, err := v.Unlock(wrong); err != ErrWrongKey {
		t.Errorf("a wrong external key: %v, want exactly %v", err, ErrWrongKey)
	}
	wiped, _ := NewExternalKey(externalKey(o).Bytes())
	wiped.Wipe()
	for name, c := range map[string]Credential{"wiped": wiped, "zero": ExternalKey{}} {
		if _, err := v.Unlock(c); err != ErrWrongKey {
			t.Errorf("a %s external key: %v, want exactly %v", name, err, ErrWrongKey)
		}
	}
	password, _ := ParseRecoveryPassword(goodPassword)
	for _, c := range []Credential{password, ClearKey{}} {
		if _, err := v.Unlock(c); !errors.Is(err, ErrNoProtector) {
			t.Errorf("a %v on a volume without: %v, want %v", c.protects(), err, ErrNoProtector)
		}
	}
	if p, err := v.Unlock(externalKey(o)); err != nil {
		t.Errorf("the right key after wrong ones: %v", err)
	} else {
		p.Wipe()
	}
}

// TestCopies damages every set of metadata copies, in ways that the checksum
// finds, and in one that only the sealed hash does.
func TestCopies(t *testing.T) {
	damages := map[string]func(m *memory, o FormatOptions, i int){
		"bit flipped":       func(m *memory, o FormatOptions, i int) { m.b[o.Metadata[i]+200] ^= 1 },
		"zeroed":            func(m *memory, o FormatOptions, i int) { clear(m.b[o.Metadata[i]:][:areaSize]) },
		"unreadable":        func(m *memory, o FormatOptions, i int) { copy(m.b[o.Metadata[i]:], randomBytes(4, areaSize)) },
		"checksum wrong":    func(m *memory, o FormatOptions, i int) { m.b[o.Metadata[i]+int64(blockLength(m, o, i))+4] ^= 1 },
		"offset in the sky": func(m *memory, o FormatOptions, i int) { le.PutUint64(m.b[176+8*i:], 1<<63-512) },
		"offset behind":     func(m *memory, o FormatOptions, i int) { le.PutUint64(m.b[176+8*i:], testSize-areaSize+512) },
		"altered with a fitting checksum": func(m *memory, o FormatOptions, i int) {
			change(m, o, func(area []byte) { area[entriesAt+entryHeader] ^= 1 }, i) // in the description
		},
		"altered to another state": func(m *memory, o FormatOptions, i int) {
			change(m, o, func(area []byte) { area[12] = stateSwitching }, i)
		},
		"altered to be longer": func(m *memory, o FormatOptions, i int) {
			change(m, o, func(area []byte) { le.PutUint64(area[16:], 2*testSize) }, i)
		},
		"altered to another version": func(m *memory, o FormatOptions, i int) {
			change(m, o, func(area []byte) { area[10] = 1 }, i)
		},
		"altered to another method": func(m *memory, o FormatOptions, i int) {
			change(m, o, func(area []byte) { le.PutUint16(area[blockHeaderSize+36:], 0x8006) }, i)
		},
		"another volume key": func(m *memory, o FormatOptions, i int) {
			change(m, o, func(area []byte) { area[bytes.Index(area, []byte{80, 0, typeFVEK, 0})+50] ^= 1 }, i)
		},
		"another sealed hash": func(m *memory, o FormatOptions, i int) {
			m.b[o.Metadata[i]+int64(blockLength(m, o, i))+validationSize-1] ^= 1
		},
	}
	wrong, _ := NewExternalKey(randomBytes(77, keySize))
	for name, damage := range damages {
		for set := range 8 {
			o := testOptions(t)
			m, view := formatted(t, o)
			for i := range 3 {
				if set&(1<<i) != 0 {
					damage(m, o, i)
				}
			}
			v, err := Open(m, testSize)
			var p *Plaintext
			if err == nil {
				p, err = v.Unlock(externalKey(o))
			}
			if set == 7 {
				if c := ClassOf(err); c != ClassDamaged && c != ClassRefused {
					t.Errorf("%s: all copies: %v", name, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: copies %03b: %v", name, set, err)
				continue
			}
			compare(t, p, view)
			p.Wipe()
			if _, err := v.Unlock(wrong); err != ErrWrongKey {
				t.Errorf("%s: copies %03b: a wrong key: %v", name, set, err)
			}
		}
	}
}

func blockLength(m *memory, o FormatOptions, i int) int {
	return blockUnit * int(le.Uint16(m.b[o.Metadata[i]+8:]))
}

// TestBadMetadata changes one thing in all copies, with checksums that fit.
func TestBadMetadata(t *testing.T) {
	const maxInt = 1<<63 - 1
	put16 := func(at int, v uint16) func([]byte) { return func(b []byte) { le.PutUint16(b[at:], v) } }
	put32 := func(at int, v uint32) func([]byte) { return func(b []byte) { le.PutUint32(b[at:], v) } }
	put64 := func(at int, v uint64) func([]byte) { return func(b []byte) { le.PutUint64(b[at:], v) } }
	// entry changes the first entry of a type and value.
	entry := func(typ, value uint16, f func([]byte)) func([]byte) {
		return func(b []byte) {
			i := bytes.Index(b, slices.Concat(le.AppendUint16(nil, typ), le.AppendUint16(nil, value), []byte{1, 0}))
			f(b[i-2:])
		}
	}
	header := func(f func([]byte)) func([]byte) { return func(b []byte) { f(b[blockHeaderSize:]) } }
	for name, v := range map[string]struct {
		change func(area []byte)
		want   error
		says   string
	}{
		"signature":                  {func(b []byte) { b[0] = 0 }, ErrDamaged, "signature"},
		"Vista":                      {put16(10, 1), ErrUnsupported, "Windows Vista"},
		"version 3":                  {put16(10, 3), ErrDamaged, "version 3"},
		"block of 0 bytes":           {put16(8, 0), ErrDamaged, "block of 0 bytes"},
		"block without entries":      {put16(8, 6), ErrDamaged, "block of 96 bytes"},
		"block to the area's end":    {put16(8, areaSize/16-1), ErrDamaged, "block of"},
		"block beyond the area":      {put16(8, 0xFFFF), ErrDamaged, "block of"},
		"state decrypted":            {put16(12, stateDecrypted), ErrUnsupported, "decrypted"},
		"state switching":            {put16(12, stateSwitching), ErrUnsupported, "conversion is running"},
		"next state switching":       {put16(14, stateSwitching), ErrUnsupported, "conversion is running"},
		"state EOW":                  {put16(12, stateEOW), ErrUnsupported, "encrypt-on-write"},
		"state paused":               {put16(12, statePaused), ErrUnsupported, "conversion is paused"},
		"state 99":                   {put16(12, 99), ErrUnsupported, "state 99"},
		"encrypted size 0":           {put64(16, 0), ErrDamaged, "encrypted size"},
		"encrypted size negative":    {put64(16, 1<<63), ErrDamaged, "encrypted size"},
		"encrypted size unaligned":   {put64(16, testSize-1), ErrDamaged, "encrypted size"},
		"encrypted size too small":   {put64(16, 0x20000), ErrDamaged, "does not fit"},
		"encrypted size too large":   {put64(16, testSize+512), ErrTruncated, ""},
		"encrypted size huge":        {put64(16, maxInt), ErrTruncated, ""},
		"header sectors":             {put32(28, 17), ErrDamaged, "17 sectors"},
		"area unaligned":             {put64(32, 0x10001), ErrDamaged, "does not fit"},
		"area in the header":         {put64(32, 4096), ErrDamaged, "overlap"},
		"area over another":          {put64(40, 0x10200), ErrDamaged, "overlap"},
		"area twice":                 {put64(40, 0x10000), ErrDamaged, "overlap"},
		"area behind the end":        {put64(48, testSize), ErrDamaged, "does not fit"},
		"area near the end of int64": {put64(48, maxInt&^511), ErrDamaged, "does not fit"},
		"area negative":              {put64(48, 1<<63), ErrDamaged, "does not fit"},
		"header copy moved":          {put64(56, 0x90000), ErrDamaged, "header copy at two places"},
		"header copy over an area": {func(b []byte) {
			put64(56, 0x10000)(b)
			entry(typeHeaderArea, valueHeaderArea, put64(8, 0x10000))(b)
		}, ErrDamaged, "overlap"},
		"header copy negative": {func(b []byte) {
			put64(56, 1<<63)(b)
			entry(typeHeaderArea, valueHeaderArea, put64(8, 1<<63))(b)
		}, ErrDamaged, "does not fit"},
		"header size 0":            {entry(typeHeaderArea, valueHeaderArea, put64(16, 0)), ErrDamaged, "no header area"},
		"header size huge":         {entry(typeHeaderArea, valueHeaderArea, put64(16, maxInt)), ErrDamaged, "header of"},
		"header area cut":          {entry(typeHeaderArea, valueHeaderArea, put16(0, 16)), ErrDamaged, ""},
		"header area missing":      {entry(typeHeaderArea, valueHeaderArea, put16(4, 0x99)), ErrDamaged, "no header area"},
		"metadata size 0":          {header(put32(0, 0)), ErrDamaged, "metadata of 0 bytes"},
		"metadata size too large":  {header(put32(0, 1<<15)), ErrDamaged, "metadata of"},
		"metadata size huge":       {header(put32(0, 1<<32-1)), ErrDamaged, "metadata of"},
		"metadata size twice":      {header(put32(12, 48)), ErrDamaged, "two sizes"},
		"header length":            {header(put32(8, 64)), ErrDamaged, "metadata of"},
		"entry too short":          {put16(entriesAt, 7), ErrDamaged, "entry of 7 bytes"},
		"entry too long":           {put16(entriesAt, 0xFFFF), ErrDamaged, "entry of 65535 bytes"},
		"entries end at once":      {put16(entriesAt, 0), ErrDamaged, "no volume key"},
		"volume key missing":       {entry(typeFVEK, valueSealed, put16(4, 0x99)), ErrDamaged, "no volume key"},
		"protector cut":            {entry(typeVMK, valueVMK, put16(0, entryHeader+vmkFixed-1)), ErrDamaged, ""},
		"nested entry too long":    {entry(typeVMK, valueVMK, put16(entryHeader+vmkFixed, 0x7FFF)), ErrDamaged, "entry of 32767 bytes"},
		"sealed key too short":     {sealedKeyCut, ErrDamaged, "sealed key of 39 bytes"},
		"volume key too short":     {entry(typeFVEK, valueSealed, put16(0, entryHeader+39)), ErrDamaged, ""},
		"nested entry too short":   {entry(typeVMK, valueVMK, put16(entryHeader+vmkFixed, 1)), ErrDamaged, "entry of 1 bytes"},
		"sealed checksum too long": {func(b []byte) { put16(blockUnit*int(le.Uint16(b[8:]))+8, 0xFFFF)(b) }, ErrDamaged, "no sealed checksum"},
		"too many protectors":      {manyProtectors, ErrDamaged, "more than 64 protectors"},
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t)
			m, view := formatted(t, o)
			change(m, o, v.change, allCopies...)
			_, err := Open(m, testSize)
			if !errors.Is(err, v.want) || err != nil && !strings.Contains(err.Error(), v.says) {
				t.Errorf("%v, want %v with %q", err, v.want, v.says)
			}
			if want := map[error]Class{ErrDamaged: ClassDamaged, ErrTruncated: ClassDamaged, ErrUnsupported: ClassRefused}[v.want]; ClassOf(err) != want {
				t.Errorf("%v is of class %v, want %v", err, ClassOf(err), want)
			}
			m, _ = formatted(t, o)
			change(m, o, v.change, 0, 1)
			compare(t, unlocked(t, m, testSize, externalKey(o)), view)
		})
	}
}

// sealedKeyCut shortens the sealed key of the protector, and hides the rest of it
// in another entry.
func sealedKeyCut(b []byte) {
	i := bytes.LastIndex(b[:bytes.Index(b, []byte{80, 0, typeFVEK, 0})], []byte{80, 0, 0, 0, valueSealed})
	le.PutUint16(b[i:], entryHeader+sealedKeyMin-1)
	le.PutUint16(b[i+entryHeader+sealedKeyMin-1:], 80-entryHeader-sealedKeyMin+1)
}

// manyProtectors puts one more protector than is allowed before all others.
func manyProtectors(b []byte) {
	length := blockUnit * int(le.Uint16(b[8:]))
	validation := bytes.Clone(b[length : length+validationSize])
	var entries []byte
	for range maxProtectors + 1 {
		entries = appendEntry(entries, typeVMK, valueVMK, make([]byte, vmkFixed))
	}
	size := headerLength + len(entries)
	copy(b[entriesAt:], entries)
	le.PutUint32(b[blockHeaderSize:], uint32(size))
	le.PutUint32(b[blockHeaderSize+12:], uint32(size))
	length = (blockHeaderSize + size + blockUnit - 1) / blockUnit * blockUnit
	le.PutUint16(b[8:], uint16(length/blockUnit))
	copy(b[length:], validation)
}

// TestBadKeysInMetadata changes what opening does not look at, and unlocking must
// not trip over.
func TestBadKeysInMetadata(t *testing.T) {
	o := testOptions(t)
	for name, v := range map[string]struct {
		f    func(area []byte)
		want error
	}{
		"protector without a sealed key": {func(b []byte) {
			i := bytes.Index(b, []byte{typeVMK, 0, valueVMK, 0})
			clear(b[i+6+vmkFixed:][:2]) // no nested entries
		}, ErrNoProtector},
		"method unknown": {func(b []byte) { le.PutUint16(b[blockHeaderSize+36:], 0x8006) }, ErrUnsupported},
		"method another": {func(b []byte) { le.PutUint16(b[blockHeaderSize+36:], uint16(AES256XTS)) }, ErrDamaged},
	} {
		m, _ := formatted(t, o)
		change(m, o, v.f, allCopies...)
		volume, err := Open(m, testSize)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := volume.Unlock(externalKey(o)); !errors.Is(err, v.want) {
			t.Errorf("%s: %v, want %v", name, err, v.want)
		}
	}
}

// TestUnsupportedMethods has volumes that are whole but for a method that cannot
// be read: shown, but refused by name with any key.
func TestUnsupportedMethods(t *testing.T) {
	for method, name := range map[Method]string{0x7FFF: "0x7fff", 0x8006: "0x8006"} {
		o := testOptions(t)
		m, _ := formatted(t, o)
		remake(t, m, externalKey(o), func(front []byte) { le.PutUint16(front[blockHeaderSize+36:], uint16(method)) }, nil)
		wrong, _ := NewExternalKey(randomBytes(77, keySize))
		v, err := Open(m, testSize)
		if err != nil {
			t.Fatal(err)
		}
		if info := v.Info(); info.Method != method || info.Refused == nil || info.Refused.Kind != RefusedMethod {
			t.Errorf("method %v, refused for %v", info.Method, info.Refused)
		}
		for _, c := range []Credential{externalKey(o), wrong} {
			if _, err := v.Unlock(c); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), name) {
				t.Errorf("%v, want a refusal that names %s", err, name)
			}
		}
		o.Method = method
		if err := Format(m, testSize, o); !errors.Is(err, ErrUnsupported) {
			t.Errorf("Format makes a volume with %s: %v", name, err)
		}
	}
}

// remake writes the metadata again, changed, and sealed as they should be.
func remake(t *testing.T, m *memory, c Credential, front func([]byte), entries func([]entry) []entry) {
	t.Helper()
	v, err := Open(m, testSize)
	if err != nil {
		t.Fatal(err)
	}
	o, err := v.open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer o.wipe()
	head, list := bytes.Clone(o.raw[:entriesAt]), o.entries
	if front != nil {
		front(head)
	}
	if entries != nil {
		list = entries(list)
	}
	s := sealer{vmk: o.vmk, next: o.nextNonce}
	block, err := s.block(head, encodeEntries(list))
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range o.geometry.metadata {
		clear(m.b[off : off+areaSize])
		copy(m.b[off:], block)
	}
}

// TestClearKey opens a volume whose protection is suspended, as Windows 11 writes
// it, with things unknown around the protector and in it.
func TestClearKey(t *testing.T) {
	o := testOptions(t)
	o.Protectors = append(o.Protectors, ProtectorKey{GUID{1}, ClearKey{}})
	m, view := formatted(t, o)
	remake(t, m, externalKey(o), nil, func(entries []entry) []entry {
		for i, e := range entries {
			if e.kind() == ClearKeyProtector {
				entries[i].version = 3
				entries[i].data = appendEntry(bytes.Clone(e.data), 0x99, 0x15, []byte("unknown"))
			}
		}
		return append([]entry{{0x77, 0x78, 9, []byte("unknown")}}, entries...)
	})
	p := unlocked(t, m, testSize, ClearKey{})
	compare(t, p, view)
	if p.Protector().ID != (GUID{1}) {
		t.Errorf("opened by %v", p.Protector())
	}
}

// TestRefused has volumes of kinds that are refused, with a key that is right: they
// tell what they are, and why nobody unlocks them.
func TestRefused(t *testing.T) {
	state := func(current, next uint16) func(*testing.T, *memory, FormatOptions) {
		return func(t *testing.T, m *memory, o FormatOptions) {
			remake(t, m, externalKey(o), func(front []byte) { le.PutUint16(front[12:], current); le.PutUint16(front[14:], next) }, nil)
		}
	}
	// only turns the protector into others, of kinds that have nothing for us, with
	// things unknown inside.
	only := func(kinds ...ProtectorKind) func(*testing.T, *memory, FormatOptions) {
		return func(t *testing.T, m *memory, o FormatOptions) {
			remake(t, m, externalKey(o), nil, func(entries []entry) []entry {
				i := slices.IndexFunc(entries, entry.isVMK)
				entries = slices.Delete(entries, i, i+1)
				for n, kind := range kinds {
					data := slices.Concat([]byte{byte(n), 15: 0}, u64(0), u32(uint32(kind)<<16), []byte{7, 0, 0, 0, 6, 0, 1, 0, 1, 2, 3})
					entries = append(entries, entry{typeVMK, valueVMK, 1, data})
				}
				return entries
			})
		}
	}
	for name, v := range map[string]struct {
		make   func(*testing.T, *memory, FormatOptions)
		kind   Refusal
		says   string
		opened bool // refused by Unlock, not by Open
	}{
		"conversion running":       {state(stateSwitching, stateEncrypted), RefusedConverting, "conversion is running", false},
		"decryption running":       {state(stateSwitching, stateDecrypted), RefusedConverting, "conversion is running", false},
		"about to be converted":    {state(stateEncrypted, stateSwitching), RefusedConverting, "conversion is running", false},
		"conversion paused":        {state(statePaused, stateEncrypted), RefusedPaused, "conversion is paused", false},
		"encrypt on write, active": {state(stateEOW, stateEncrypted), RefusedEncryptOnWrite, "encrypt-on-write", false},
		"decrypted":                {state(stateDecrypted, stateDecrypted), RefusedState, "decrypted", false},
		"no state":                 {state(stateNone, stateNone), RefusedState, "no state", false},
		"unknown state":            {state(6, 6), RefusedState, "state 6", false},
		"encrypt on write": {func(_ *testing.T, m *memory, _ FormatOptions) { copy(m.b[offIdentifier:], identifierEOW[:]) },
			RefusedEncryptOnWrite, "used space only", false},
		"encrypt on write, no header area": {func(t *testing.T, m *memory, o FormatOptions) {
			remake(t, m, externalKey(o), nil, func(entries []entry) []entry { return entries[:len(entries)-1] })
			copy(m.b[offIdentifier:], identifierEOW[:])
		}, RefusedEncryptOnWrite, "used space only", false},
		"TPM":                {only(TPMProtector), RefusedProtectors, "opens with nothing but: TPM", true},
		"smart card":         {only(PublicKeyProtector), RefusedProtectors, "smart card", true},
		"TPM and smart card": {only(TPMProtector, PublicKeyProtector, TPMAndPINProtector, TPMProtector), RefusedProtectors, "TPM, smart card, TPM and PIN", true},
		"unknown protector":  {only(0x4000), RefusedProtectors, "0x4000", true},
		"no protector":       {only(), RefusedProtectors, "no protectors", true},
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t)
			m, _ := formatted(t, o)
			v.make(t, m, o)
			volume, err := Open(m, testSize)
			if v.opened {
				if err != nil {
					t.Fatal(err)
				}
				_, err = volume.Unlock(externalKey(o))
			}
			why, ok := errors.AsType[*RefusedError](err)
			if !ok || why.Kind != v.kind || !strings.Contains(err.Error(), v.says) || ClassOf(err) != ClassRefused {
				t.Errorf("%v, want a refusal for %s with %q", err, v.kind, v.says)
			}
			info, err := Inspect(m, testSize)
			if err != nil || info.ID != o.ID || info.Refused == nil || info.Refused.Kind != v.kind {
				t.Errorf("Inspect: %+v, %v", info, err)
			}
		})
	}
}

// TestProblemInOneCopy has one copy that tells of a problem, and is as genuine as
// the others: they may be older, so the volume is not unlocked.
func TestProblemInOneCopy(t *testing.T) {
	for name, v := range map[string]struct {
		front func(front []byte)
		want  Class
	}{
		"conversion": {func(front []byte) { front[12] = stateSwitching }, ClassRefused},
		"truncated":  {func(front []byte) { le.PutUint64(front[16:], 2*testSize) }, ClassDamaged},
	} {
		for i := range 3 {
			o := testOptions(t)
			m, _ := formatted(t, o)
			whole := bytes.Clone(m.b)
			remake(t, m, externalKey(o), v.front, nil)
			for other := range 3 {
				if other != i {
					at := o.Metadata[other]
					copy(m.b[at:at+areaSize], whole[at:])
				}
			}
			volume, err := Open(m, testSize)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := volume.Unlock(externalKey(o)); ClassOf(err) != v.want {
				t.Errorf("%s in copy %d: %v", name, i+1, err)
			}
		}
	}
}

// TestRefusedFirst has volumes of a kind that is refused, and damaged as well.
func TestRefusedFirst(t *testing.T) {
	o := testOptions(t)
	m, _ := formatted(t, o)
	copy(m.b[offIdentifier:], identifierEOW[:])
	for _, off := range o.Metadata {
		m.b[off+200] ^= 1
	}
	for _, size := range []int64{testSize, 0x10000} {
		for name, f := range map[string]func() error{
			"Open":    func() error { _, err := Open(m, size); return err },
			"Inspect": func() error { _, err := Inspect(m, size); return err },
		} {
			if err := f(); ClassOf(err) != ClassRefused {
				t.Errorf("%s of %d bytes: %v, want a refusal", name, size, err)
			}
		}
	}
}

// TestSkippedProtectors has protectors that cannot be opened before one that can.
func TestSkippedProtectors(t *testing.T) {
	o := testOptions(t)
	m, view := formatted(t, o)
	password, _ := ParseRecoveryPassword(goodPassword)
	remake(t, m, externalKey(o), nil, func(entries []entry) []entry {
		var before []entry
		for n, kind := range []ProtectorKind{TPMProtector, PublicKeyProtector, 0x4000, RecoveryPasswordProtector, ExternalKeyProtector, ClearKeyProtector} {
			before = append(before, entry{typeVMK, valueVMK, 3, slices.Concat([]byte{byte(n), 15: 0}, u64(0), u32(uint32(kind)<<16))})
		}
		return append(before, entries...)
	})
	p := unlocked(t, m, testSize, externalKey(o))
	compare(t, p, view)
	if p.Protector().ID != o.Protectors[0].ID {
		t.Errorf("opened by %v", p.Protector())
	}
	v, err := Open(m, testSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Credential{password, ClearKey{}} {
		if _, err := v.Unlock(c); !errors.Is(err, ErrNoProtector) || ClassOf(err) != ClassWrongKey {
			t.Errorf("a %v where its protectors are empty: %v", c.protects(), err)
		}
	}
}

// TestToGoHeader has a beginning as large as on To Go volumes, moved aside.
func TestToGoHeader(t *testing.T) {
	const size = 0x23000 // of the moved beginning; not a multiple of much
	o := testOptions(t)
	o.HeaderCopy = 0xA0000
	o.Metadata = [3]int64{0x30000, 0x50000, 0x70000}
	m, view := formatted(t, o)
	p := unlocked(t, m, testSize, externalKey(o))
	head := bytes.Clone(view[:size])
	toGo(m.b[:bootSize])
	remake(t, m, externalKey(o), func(front []byte) { le.PutUint32(front[28:], size/512) }, func(entries []entry) []entry {
		last := len(entries) - 1
		entries[last].data = slices.Concat(u64(uint64(o.HeaderCopy)), u64(size), make([]byte, 76)) // the long form
		return entries
	})
	p.cipher.encrypt(head, o.HeaderCopy)
	copy(m.b[o.HeaderCopy:], head)
	clear(view[o.HeaderCopy : o.HeaderCopy+size])
	p = unlocked(t, m, testSize, externalKey(o))
	compare(t, p, view)
	if _, err := p.WriteAt(view[:size], o.HeaderCopy); !errors.Is(err, ErrReserved) {
		t.Errorf("a write over the moved beginning: %v", err)
	}
	if _, err := p.WriteAt([]byte("written"), size-3); err != nil {
		t.Fatal(err)
	}
	copy(view[size-3:], "written")
	compare(t, unlocked(t, m, testSize, externalKey(o)), view)
}

// TestOffsets has boot sectors that find one copy only, which leads to the others.
func TestOffsets(t *testing.T) {
	o := testOptions(t)
	for i := range 3 {
		m, view := formatted(t, o)
		for other := range 3 {
			if other != i {
				le.PutUint64(m.b[offIdentifier+16+8*other:], uint64(0x90000+512*other))
			}
		}
		change(m, o, func(area []byte) { area[entriesAt+entryHeader] ^= 1 }, i) // its sealed checksum does not fit
		compare(t, unlocked(t, m, testSize, externalKey(o)), view)
	}
}

// TestBoundedMemory opens volumes whose metadata are as many tiny entries as fit.
func TestBoundedMemory(t *testing.T) {
	o := testOptions(t)
	tiny := bytes.Repeat([]byte{8, 0, 0x77, 0, 0x78, 0, 1, 0}, 7000)
	for name, entries := range map[string][]byte{
		"entries":        tiny,
		"nested entries": appendEntry(nil, typeVMK, valueVMK, make([]byte, vmkFixed-2), []byte{0, 0x08}, tiny),
	} {
		m, _ := formatted(t, o)
		front := bytes.Clone(m.b[o.Metadata[0]:][:entriesAt])
		s := sealer{vmk: make([]byte, keySize)}
		block, err := s.block(front, entries)
		if err != nil {
			t.Fatal(err)
		}
		for i, off := range o.Metadata {
			block[len(block)-1] ^= byte(i) // three different copies
			copy(m.b[off:], block)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err = Open(m, testSize)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 8<<20 {
			t.Errorf("%s: %d bytes of memory for three areas of 64 KiB", name, used)
		}
	}
}

func TestNotBitLocker(t *testing.T) {
	o := testOptions(t)
	for name, v := range map[string]struct {
		f    func(b []byte) []byte
		want error
		says string
	}{
		"empty":               {func(b []byte) []byte { return nil }, ErrNotBitLocker, ""},
		"half a sector":       {func(b []byte) []byte { return b[:256] }, ErrNotBitLocker, ""},
		"zeros":               {func(b []byte) []byte { return make([]byte, testSize) }, ErrNotBitLocker, ""},
		"NTFS":                {func(b []byte) []byte { copy(b[3:], "NTFS    "); return b }, ErrNotBitLocker, ""},
		"FAT32":               {func(b []byte) []byte { copy(b[3:], signatureToGo); return b }, ErrNotBitLocker, ""},
		"unknown identifier":  {func(b []byte) []byte { b[offIdentifier]++; return b }, ErrNotBitLocker, ""},
		"Vista":               {func(b []byte) []byte { b[1] = jumpVista; return b }, ErrUnsupported, "Vista"},
		"encrypt-on-write":    {func(b []byte) []byte { copy(b[offIdentifier:], identifierEOW[:]); return b }, ErrUnsupported, "encrypt-on-write"},
		"sectors of 1024":     {func(b []byte) []byte { le.PutUint16(b[11:], 1024); return b }, ErrUnsupported, "1024"},
		"wrong sector size":   {func(b []byte) []byte { le.PutUint16(b[11:], 4096); return b }, ErrDamaged, "16 sectors of 4096"},
		"cut by a sector":     {func(b []byte) []byte { return b[:testSize-512] }, ErrTruncated, ""},
		"cut after one area":  {func(b []byte) []byte { return b[:0x20000] }, ErrTruncated, ""},
		"cut before any area": {func(b []byte) []byte { return b[:0x10000] }, ErrTruncated, "65536"},
		"cut to one sector":   {func(b []byte) []byte { return b[:512] }, ErrTruncated, "512"},
	} {
		m, _ := formatted(t, o)
		b := v.f(m.b)
		if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, v.want) || err != nil && !strings.Contains(err.Error(), v.says) {
			t.Errorf("%s: %v, want %v with %q", name, err, v.want, v.says)
		}
	}
	m, _ := formatted(t, o)
	for _, size := range []int64{-1, -1 << 63} {
		if _, err := Open(m, size); !errors.Is(err, ErrNotBitLocker) {
			t.Errorf("size %d: %v", size, err)
		}
	}
	if _, err := Open(bytes.NewReader(m.b[:100]), testSize); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an image shorter than said: %v", err)
	}
}

// toGo makes a To Go volume's boot sector of a normal one.
func toGo(boot []byte) []byte {
	copy(boot[3:], signatureToGo)
	copy(boot[offIdentToGo:], boot[offIdentifier:200])
	clear(boot[offIdentifier:200])
	return boot
}

func TestToGo(t *testing.T) {
	o := testOptions(t)
	m, view := formatted(t, o)
	toGo(m.b[:bootSize])
	compare(t, unlocked(t, m, testSize, externalKey(o)), view)
	if info, err := Inspect(m, testSize); err != nil || !info.ToGo {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestBadFormatOptions(t *testing.T) {
	for name, v := range map[string]struct {
		f    func(o *FormatOptions)
		says string
	}{
		"method":               {func(o *FormatOptions) { o.Method = 1 }, "0x0001"},
		"sector size":          {func(o *FormatOptions) { o.SectorSize = 1024 }, "1024"},
		"no protector":         {func(o *FormatOptions) { o.Protectors = nil }, "no protector"},
		"no randomness":        {func(o *FormatOptions) { o.Rand = nil }, "randomness"},
		"too little of it":     {func(o *FormatOptions) { o.Rand = bytes.NewReader(make([]byte, 40)) }, "cannot draw"},
		"areas overlap":        {func(o *FormatOptions) { o.HeaderCopy = o.Metadata[1] + 512 }, "overlap"},
		"area unaligned":       {func(o *FormatOptions) { o.Metadata[1]++ }, "does not fit"},
		"area missing":         {func(o *FormatOptions) { o.Metadata[1] = 0 }, "overlap"},
		"description too long": {func(o *FormatOptions) { o.Description = strings.Repeat("x", 33000) }, "too long"},
	} {
		o := testOptions(t)
		v.f(&o)
		m := &memory{b: randomBytes(3, testSize)}
		before := bytes.Clone(m.b)
		if err := Format(m, testSize, o); err == nil || !strings.Contains(err.Error(), v.says) {
			t.Errorf("%s: %v, want an error with %q", name, err, v.says)
		}
		if !bytes.Equal(m.b, before) {
			t.Errorf("%s: the image was changed", name)
		}
	}
}

// TestInterruptedFormat has the disk fail at every write: what is left is never
// taken for a volume.
func TestInterruptedFormat(t *testing.T) {
	o := testOptions(t)
	for _, at := range append(o.Metadata[:], o.HeaderCopy, 0x90000, 0) {
		f := failing{&memory{b: randomBytes(3, testSize)}, at}
		if err := Format(f.writesOnly(), testSize, o); !errors.Is(err, errDisk) {
			t.Errorf("failing at %#x: %v", at, err)
		}
		if _, err := Open(f.memory, testSize); !errors.Is(err, ErrNotBitLocker) {
			t.Errorf("failing at %#x leaves a volume: %v", at, err)
		}
	}
}

// writesOnly lets reads succeed.
func (f failing) writesOnly() Storage {
	return struct {
		io.ReaderAt
		io.WriterAt
	}{f.memory, f}
}

// TestHeaderOnly formats without touching the data.
func TestHeaderOnly(t *testing.T) {
	o := testOptions(t)
	o.HeaderOnly = true
	before := randomBytes(3, testSize)
	m, view := formatted(t, o)
	if !bytes.Equal(m.b[0x90000:], before[0x90000:]) {
		t.Error("data were touched")
	}
	p := unlocked(t, m, testSize, externalKey(o))
	readSame(t, p, view, 0, headerSize)
	writeSame(t, p, o, view, 0x90001, 1000)
	readSame(t, p, view, 0x90001, 1000)
}

// TestNonces finds every sealed item of a volume, at any depth: no two share a
// nonce, and the next one that the metadata announce is a new one.
func TestNonces(t *testing.T) {
	o := testOptions(t)
	password, _ := ParseRecoveryPassword(goodPassword)
	o.Protectors = append(o.Protectors, ProtectorKey{GUID{1}, password})
	m, _ := formatted(t, o)
	v, err := Open(m, testSize)
	if err != nil {
		t.Fatal(err)
	}
	raw := v.copies[0].raw
	size := le.Uint32(raw[blockHeaderSize:])
	var nonces []string
	for _, s := range append(sealedItems(t, raw[entriesAt:blockHeaderSize+size]), v.copies[0].validation) {
		nonces = append(nonces, string(s[:nonceSize]))
	}
	if len(nonces) != 7 {
		t.Errorf("%d sealed items, want 7", len(nonces))
	}
	next := string(le.AppendUint32(u64(uint64(newFiletime(testNow))), le.Uint32(raw[blockHeaderSize+32:])))
	nonces = append(nonces, next)
	slices.Sort(nonces)
	if len(slices.Compact(slices.Clone(nonces))) != len(nonces) || nonces[len(nonces)-1] != next {
		t.Errorf("nonces %x, the next one being %x", nonces, next)
	}
}

func sealedItems(t *testing.T, b []byte) (items []sealed) {
	t.Helper()
	entries, err := parseEntries(b)
	if err != nil {
		t.Fatal(err)
	}
	fixed := map[uint16]int{valueVMK: vmkFixed, valueStretch: 4 + saltSize, valueUseKey: 4}
	for _, e := range entries {
		if e.value == valueSealed {
			items = append(items, sealed(e.data))
		} else if n, ok := fixed[e.value]; ok {
			items = append(items, sealedItems(t, e.data[n:])...)
		}
	}
	return items
}
