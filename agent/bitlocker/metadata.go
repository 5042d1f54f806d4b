package bitlocker

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
)

// Sizes of a metadata area, in bytes (BITLOCKER format, metadata version 2).
const (
	areaSize         = 64 << 10
	blockHeaderSize  = 64
	headerLength     = 48 // the metadata header behind the block header
	entriesAt        = blockHeaderSize + headerLength
	blockUnit        = 16 // the block's length is stored in these
	containerHeader  = 12 // u16 size, u16 0, u16 1, u16 0, u32 method
	sealedKeyMin     = nonceSize + macSize + containerHeader
	validationHeader = 8 // u16 size, u16 version, u32 CRC
	validationSeal   = nonceSize + macSize + containerHeader + sha256.Size
	validationSize   = validationHeader + entryHeader + validationSeal
	maxProtectors    = 64 // each may cost a stretch; Windows has a handful
)

// States of a volume.
const (
	stateNone      = 0
	stateDecrypted = 1
	stateSwitching = 2
	stateEOW       = 3
	stateEncrypted = 4
	statePaused    = 5
)

// states says of each state but encrypted what it is, and why it is refused.
var states = map[uint16]struct {
	name string
	kind Refusal
}{
	stateNone:      {"no state", RefusedState},
	stateDecrypted: {"decrypted", RefusedState},
	stateSwitching: {"conversion is running", RefusedConverting},
	stateEOW:       {"encrypt-on-write is active", RefusedEncryptOnWrite},
	statePaused:    {"conversion is paused", RefusedPaused},
}

// Methods of keys inside sealed containers.
const (
	keyPassword       = 0x1000 // stretched from, or being, a recovery password
	keyPassphrase     = 0x1001
	keyClear          = 0x2000
	keyExternal       = 0x2002
	keyVMK            = 0x2003
	keyHash           = 0x2005
	keyFromPassphrase = 0x2007
	keyFromPassword   = 0x2008
)

// ProtectorKind is what a protector wants to see; the values are those on disk.
type ProtectorKind uint16

// The kinds of protectors. Those with a TPM or a public key cannot be opened here.
const (
	ClearKeyProtector         ProtectorKind = 0x0000
	TPMProtector              ProtectorKind = 0x0100
	ExternalKeyProtector      ProtectorKind = 0x0200
	TPMAndKeyProtector        ProtectorKind = 0x0300
	TPMAndPINProtector        ProtectorKind = 0x0500
	RecoveryPasswordProtector ProtectorKind = 0x0800
	PublicKeyProtector        ProtectorKind = 0x1000
	PassphraseProtector       ProtectorKind = 0x2000
)

var kindNames = map[ProtectorKind]string{
	ClearKeyProtector: "clear key", TPMProtector: "TPM", ExternalKeyProtector: "external key",
	TPMAndKeyProtector: "TPM and startup key", TPMAndPINProtector: "TPM and PIN", RecoveryPasswordProtector: "recovery password",
	PublicKeyProtector: "smart card", PassphraseProtector: "passphrase",
}

// String returns the name people use, such as "recovery password".
func (k ProtectorKind) String() string {
	if name, ok := kindNames[k]; ok {
		return name
	}
	return fmt.Sprintf("protector of kind %#04x", uint16(k))
}

// metadata is one whole copy of the metadata.
type metadata struct {
	raw []byte // what CRC and sealed hash cover
	geometry
	layout      layout
	id          GUID
	method      Method
	created     filetime
	description string
	entries     []entry // all of them, as they are
	protectors  []protector
	fvek        sealed
	validation  sealed // hash of raw, under the VMK
	nextNonce   uint32
	problem     error // why the volume is not opened if this copy is genuine; then there is no layout
}

// same reports whether two copies say the same, seal included.
func (m *metadata) same(other *metadata) bool {
	return bytes.Equal(m.raw, other.raw) && bytes.Equal(m.validation, other.validation)
}

// protector is one VMK entry.
type protector struct {
	Protector
	salt     []byte // of a password or passphrase
	clearKey []byte // of a clear-key protector
	vmk      sealed
}

// parseMetadata reads one metadata area. It returns [ErrDamaged] if that is not
// whole, and a [RefusedError] if it is of another version.
func parseMetadata(area []byte) (*metadata, error) {
	raw, validation, err := checkedBlock(area)
	if err != nil {
		return nil, err
	}
	m := &metadata{raw: raw, validation: validation, problem: checkState(raw)}
	m.encryptedSize = int64(le.Uint64(raw[16:]))
	m.headerSectors = int64(le.Uint32(raw[28:]))
	for i := range m.metadata {
		m.metadata[i] = int64(le.Uint64(raw[32+8*i:]))
	}
	m.headerCopy = int64(le.Uint64(raw[56:]))
	if m.entries, err = m.parseHeader(raw[blockHeaderSize:]); err != nil {
		return nil, damaged("%v", err)
	}
	for _, e := range m.entries {
		if err := m.addEntry(e); err != nil {
			return nil, damaged("%v", err)
		}
	}
	return m, nil
}

// checkedBlock returns the part of the area that its CRC covers and the sealed
// hash of it.
func checkedBlock(area []byte) (raw []byte, validation sealed, err error) {
	if len(area) != areaSize || string(area[:8]) != signature {
		return nil, nil, damaged("no %s signature", signature)
	}
	if version := le.Uint16(area[10:]); version != 2 {
		if version == 1 {
			return nil, nil, refused(RefusedVista, "made by Windows Vista")
		}
		return nil, nil, damaged("metadata version %d", version)
	}
	length := blockUnit * int(le.Uint16(area[8:]))
	if length < entriesAt || length > areaSize-validationSize {
		return nil, nil, damaged("block of %d bytes", length)
	}
	raw, v := area[:length:length], area[length:length+validationSize]
	if crc32.ChecksumIEEE(raw) != le.Uint32(v[4:]) {
		return nil, nil, damaged("checksum does not fit")
	}
	if size := le.Uint16(v[validationHeader:]); size != entryHeader+validationSeal || le.Uint16(v[validationHeader+4:]) != valueSealed {
		return nil, nil, damaged("no sealed checksum")
	}
	return raw, sealed(v[validationHeader+entryHeader:]), nil
}

// checkState returns why a volume in this state is not opened, or nil.
func checkState(raw []byte) error {
	current, next := le.Uint16(raw[12:]), le.Uint16(raw[14:])
	if current == stateEncrypted && next == stateEncrypted {
		return nil
	}
	state := current
	if state == stateEncrypted {
		state = next
	}
	if s, ok := states[state]; ok {
		return refused(s.kind, "%s (state %d, next %d)", s.name, current, next)
	}
	return refused(RefusedState, "state %d, next %d", current, next)
}

// parseHeader reads the metadata header and returns the entries behind it.
func (m *metadata) parseHeader(b []byte) ([]entry, error) {
	size := int(le.Uint32(b))
	switch {
	case le.Uint32(b) > uint32(len(b)) || size < headerLength || le.Uint32(b[8:]) != headerLength:
		return nil, fmt.Errorf("metadata of %d bytes in a block of %d", le.Uint32(b), len(b))
	case le.Uint32(b[12:]) != uint32(size):
		return nil, fmt.Errorf("metadata has two sizes, %d and %d", size, le.Uint32(b[12:]))
	}
	m.id = GUID(b[16:])
	m.nextNonce = le.Uint32(b[32:])
	m.method = Method(le.Uint16(b[36:]))
	m.created = filetime(le.Uint64(b[40:]))
	return parseEntries(b[headerLength:size])
}

// addEntry takes what is known of a top-level entry and skips what is not.
func (m *metadata) addEntry(e entry) error {
	switch {
	case e.typ == typeDescription && e.value == valueString:
		m.description = decodeString(e.data)
	case e.isVMK():
		if len(m.protectors) == maxProtectors {
			return fmt.Errorf("more than %d protectors", maxProtectors)
		}
		p, err := parseProtector(e)
		if err != nil {
			return err
		}
		m.protectors = append(m.protectors, p)
	case e.typ == typeFVEK && e.value == valueSealed:
		if len(e.data) < sealedKeyMin {
			return fmt.Errorf("volume key of %d bytes", len(e.data))
		}
		m.fvek = sealed(e.data)
	case e.typ == typeHeaderArea && e.value == valueHeaderArea:
		if len(e.data) < 16 {
			return fmt.Errorf("header area entry of %d bytes", len(e.data))
		}
		if at := int64(le.Uint64(e.data)); at != m.headerCopy {
			return fmt.Errorf("header copy at two places, %#x and %#x", m.headerCopy, at)
		}
		m.headerSize = int64(le.Uint64(e.data[8:]))
	}
	return nil
}

// checkComplete demands what no volume can do without.
func (m *metadata) checkComplete() error {
	switch {
	case m.fvek == nil:
		return damaged("no volume key")
	case m.headerSize == 0:
		return damaged("no header area")
	}
	return nil
}

// vmkFixed is the fixed part of a VMK entry: GUID, FILETIME, u16 0, u16 kind.
const vmkFixed = 28

// kind returns the kind of a protector's entry.
func (e entry) kind() ProtectorKind {
	if !e.isVMK() || len(e.data) < vmkFixed {
		return ^ProtectorKind(0)
	}
	return ProtectorKind(le.Uint16(e.data[vmkFixed-2:]))
}

// parseProtector reads a VMK entry. The sealed VMK is a direct child of it;
// those inside its stretch and use-key entries are other keys. What lies inside a
// protector that is of no use here is not looked at.
func parseProtector(e entry) (protector, error) {
	if len(e.data) < vmkFixed {
		return protector{}, fmt.Errorf("protector of %d bytes", len(e.data))
	}
	p := protector{Protector: Protector{ID: GUID(e.data), Kind: e.kind(), Modified: filetime(le.Uint64(e.data[16:])).time()}}
	children, err := e.nested(vmkFixed)
	if err != nil && p.Kind.usable() {
		return protector{}, err
	}
	if c, ok := find(children, valueString); ok {
		p.Name = decodeString(c.data)
	}
	if c, ok := find(children, valueSealed); ok {
		if p.vmk = sealed(c.data); len(p.vmk) < sealedKeyMin && p.Kind.usable() {
			return protector{}, fmt.Errorf("sealed key of %d bytes", len(p.vmk))
		}
	}
	p.KeyData = p.vmk.size()
	if c, ok := find(children, valueStretch); ok && len(c.data) >= 4+saltSize {
		p.salt = c.data[4 : 4+saltSize]
		copy(p.Salt[:], p.salt)
	}
	if c, ok := find(children, valueKey); ok && len(c.data) == 4+keySize {
		p.clearKey = c.data[4:]
	}
	return p, nil
}

// usable reports whether protectors of this kind can be opened here.
func (k ProtectorKind) usable() bool {
	switch k {
	case ClearKeyProtector, ExternalKeyProtector, RecoveryPasswordProtector, PassphraseProtector:
		return true
	}
	return false
}

// openable reports whether p is of a usable kind and has all that it needs.
func (p protector) openable() bool {
	switch p.Kind {
	case RecoveryPasswordProtector, PassphraseProtector:
		return p.vmk != nil && p.salt != nil
	case ClearKeyProtector:
		return p.vmk != nil && p.clearKey != nil
	}
	return p.Kind.usable() && p.vmk != nil
}

// checkOpenable refuses a volume that no credential of ours opens, or whose
// sectors nobody here can decrypt.
func (m *metadata) checkOpenable() *RefusedError {
	if err := m.method.supported(); err != nil {
		return err
	}
	if slices.ContainsFunc(m.protectors, func(p protector) bool { return p.Kind.usable() }) {
		return nil
	}
	var kinds []string
	for _, p := range m.protectors {
		if !slices.Contains(kinds, p.Kind.String()) {
			kinds = append(kinds, p.Kind.String())
		}
	}
	if kinds == nil {
		return refused(RefusedProtectors, "it has no protectors")
	}
	return refused(RefusedProtectors, "opens with nothing but: %s", strings.Join(kinds, ", "))
}

// openVMK returns the volume master key, for the caller to clear, and the
// protector that c opened.
func (m *metadata) openVMK(c Credential) ([]byte, Protector, error) {
	k := make([]byte, keySize)
	defer clear(k)
	found := false
	for _, p := range m.protectors {
		if p.Kind != c.protects() || !p.openable() {
			continue
		}
		found = true
		c.key(p, k)
		if vmk, _, ok := openContainer(k, p.vmk); ok && len(vmk) == keySize {
			return vmk, p.Protector, nil
		}
	}
	if !found {
		return nil, Protector{}, fmt.Errorf("%w: %v", ErrNoProtector, c.protects())
	}
	return nil, Protector{}, ErrWrongKey
}

// verify checks the whole copy against the hash sealed under the VMK.
func (m *metadata) verify(vmk []byte) error {
	want, method, ok := openContainer(vmk, m.validation)
	have := sha256.Sum256(m.raw)
	if !ok || method != keyHash || subtle.ConstantTimeCompare(want, have[:]) != 1 {
		return damaged("the metadata have been altered: their sealed checksum does not fit")
	}
	return nil
}

// openCipher opens the volume key and makes the sector cipher of it.
func (m *metadata) openCipher(vmk []byte, sectorSize int) (sectorCipher, error) {
	key, _, ok := openContainer(vmk, m.fvek)
	if !ok {
		return nil, damaged("the volume key does not open")
	}
	defer clear(key)
	return newSectorCipher(m.method, key, sectorSize)
}

// openContainer opens a sealed key, for the caller to clear, and returns what kind
// of key the container says it is.
func openContainer(key []byte, s sealed) (secret []byte, method uint32, ok bool) {
	text, ok := s.open(key)
	if !ok {
		return nil, 0, false
	}
	if len(text) < containerHeader || int(le.Uint16(text)) != len(text) {
		clear(text)
		return nil, 0, false
	}
	return text[containerHeader:], le.Uint32(text[8:]), true
}

// container returns the plaintext of a sealed key, for the caller to clear.
func container(method uint32, key []byte) []byte {
	b := make([]byte, 0, containerHeader+len(key))
	b = le.AppendUint16(b, uint16(containerHeader+len(key)))
	b = append(b, 0, 0, 1, 0, 0, 0)
	b = le.AppendUint32(b, method)
	return append(b, key...)
}
