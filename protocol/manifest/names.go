package manifest

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Kind is the kind of storage behind a share.
type Kind string

// The kinds of storage.
const (
	BlockBlob Kind = "BlockBlob"
	PageBlob  Kind = "PageBlob"
	AzFile    Kind = "AzFile"
)

// Share is a share of a device: one per storage account and kind.
type Share struct {
	Account string // 3 to 24 lower-case letters and digits
	Kind    Kind
}

// String returns the share's name, "<account>_<kind>".
func (s Share) String() string { return s.Account + "_" + string(s.Kind) }

var shareForm = regexp.MustCompile(`^([a-z0-9]{3,24})_(BlockBlob|PageBlob|AzFile)$`)

// ParseShare reads the form of [Share.String].
func ParseShare(name string) (Share, error) {
	m := shareForm.FindStringSubmatch(name)
	if m == nil {
		return Share{}, invalid("%.100q is not a share: want <account>_BlockBlob, _PageBlob or _AzFile, the account 3 to 24 lower-case letters and digits", name)
	}
	return Share{m[1], Kind(m[2])}, nil
}

// ErrorCode says why a file was not copied. The codes are those of the field.
type ErrorCode string

// Codes of the upload checks.
const (
	NameLength       ErrorCode = "ERROR_CONTAINER_OR_SHARE_NAME_LENGTH"             // 3 to 63 characters; none at all for a file at the share's root
	NameAlphaNumeric ErrorCode = "ERROR_CONTAINER_OR_SHARE_NAME_ALPHA_NUMERIC_DASH" // lower-case letters, digits, dashes
	NameImproperDash ErrorCode = "ERROR_CONTAINER_OR_SHARE_NAME_IMPROPER_DASH"      // leading, trailing or double dash
	CharacterIllegal ErrorCode = "ERROR_BLOB_OR_FILE_NAME_CHARACTER_ILLEGAL"        // one of "\:|<>*? or no Unicode
	CharacterControl ErrorCode = "ERROR_BLOB_OR_FILE_NAME_CHARACTER_CONTROL"        // a control character
	SegmentCount     ErrorCode = "ERROR_BLOB_OR_FILE_NAME_SEGMENT_COUNT"            // too many folders above the file
	AggregateLength  ErrorCode = "ERROR_BLOB_OR_FILE_NAME_AGGREGATE_LENGTH"         // the whole name is too long
	ComponentLength  ErrorCode = "ERROR_BLOB_OR_FILE_NAME_COMPONENT_LENGTH"         // one part of the name is too long
	SizeLimit        ErrorCode = "ERROR_BLOB_OR_FILE_SIZE_LIMIT"                    // larger than the kind of storage takes
	SizeAlignment    ErrorCode = "ERROR_BLOB_OR_FILE_SIZE_ALIGNMENT"                // a page blob that is no multiple of 512 bytes
	TypeUnsupported  ErrorCode = "ERROR_BLOB_OR_FILE_TYPE_UNSUPPORTED"              // not a regular file
)

// pageSize is what the size of a page blob is a multiple of, in bytes.
const pageSize = 512

// limits are what one kind of storage takes.
type limits struct {
	size      int64 // bytes
	name      int   // characters of the whole name
	segments  int   // parts of the name
	component int   // characters of one part
}

// The sizes are those of the Data Box, the names those of Azure Storage.
var limitsOf = map[Kind]limits{
	BlockBlob: {size: 50_000 * 100 << 20, name: 1024, segments: 254, component: 1024},
	PageBlob:  {size: 8 << 40, name: 1024, segments: 254, component: 1024},
	AzFile:    {size: 1 << 40, name: 2048, segments: 250, component: 255},
}

// Object is what becomes of one file of a share.
type Object struct {
	Share     Share
	Container string      // of a blob, or the Azure file share; "" for a file at the share's root
	Name      string      // of the blob, or path within the Azure file share
	Codes     []ErrorCode // why it cannot be copied; empty if it can
}

// Classify says where the regular file at path, relative to the share and with
// slashes, is to be uploaded to, and everything that is wrong with its name and
// size. The size is in bytes.
func (s Share) Classify(path string, size int64) Object {
	container, name, ok := strings.Cut(path, "/")
	if !ok {
		container, name = "", path
	}
	codes := append(CheckContainer(container), CheckName(s.Kind, name)...)
	return Object{s, container, name, append(codes, CheckSize(s.Kind, size)...)}
}

// CheckContainer returns what is wrong with the name of a container or Azure
// file share.
func CheckContainer(name string) []ErrorCode {
	var codes []ErrorCode
	if n := utf8.RuneCountInString(name); n < 3 || n > 63 {
		codes = append(codes, NameLength)
	}
	if strings.ContainsFunc(name, func(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-') }) {
		codes = append(codes, NameAlphaNumeric)
	}
	if strings.HasPrefix(name, "-") || strings.HasSuffix(name, "-") || strings.Contains(name, "--") {
		codes = append(codes, NameImproperDash)
	}
	return codes
}

// CheckName returns what is wrong with the name of a blob or file below its
// container, with slashes between its parts.
func CheckName(kind Kind, name string) []ErrorCode {
	var codes []ErrorCode
	parts := strings.Split(name, "/")
	if strings.ContainsFunc(name, isIllegal) || !utf8.ValidString(name) || hasOddPart(parts) {
		codes = append(codes, CharacterIllegal)
	}
	if strings.ContainsFunc(name, unicode.IsControl) {
		codes = append(codes, CharacterControl)
	}
	limit := limitsOf[kind]
	if len(parts) > limit.segments {
		codes = append(codes, SegmentCount)
	}
	if utf8.RuneCountInString(name) > limit.name {
		codes = append(codes, AggregateLength)
	}
	for _, part := range parts {
		if utf8.RuneCountInString(part) > limit.component {
			return append(codes, ComponentLength)
		}
	}
	return codes
}

// CheckSize returns what is wrong with the size in bytes of a blob or file.
func CheckSize(kind Kind, size int64) []ErrorCode {
	var codes []ErrorCode
	if size < 0 || size > limitsOf[kind].size {
		codes = append(codes, SizeLimit)
	}
	if kind == PageBlob && size%pageSize != 0 {
		codes = append(codes, SizeAlignment)
	}
	return codes
}

// isIllegal reports whether Windows and Azure Files refuse r in a name.
func isIllegal(r rune) bool {
	return strings.ContainsRune(`"\:|<>*?`, r) || r == '\ufffe' || r == '\uffff'
}

// hasOddPart reports whether a part of a name would not survive as it stands:
// an empty one, or one that means another folder.
func hasOddPart(parts []string) bool {
	for _, part := range parts {
		if part == "" || part == "." || part == ".." {
			return true
		}
	}
	return false
}
