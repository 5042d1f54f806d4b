// Package manifest is what both sides agree on about the files of an order:
// how shares and containers are named, which files can be uploaded and why
// others cannot, what was on the shares when they were shipped, and what became
// of each file.
//
// The rules:
//
//   - A [Share] is named after a storage account and the kind of storage. The
//     first folder below it is the container; a file that lies beside the
//     containers is not copied ([Share.Classify]).
//   - A bill of materials ([BOM]) lists a share's files with size and CRC64.
//     A new one carries the digest of the one before, so that a repair leaves
//     a chain, and [Diff] says what was moved, added, removed or changed.
//   - A copy log ([CopyLog]) says how an upload ended, with an entity and its
//     codes for each file that was not copied.
//   - Each document has one form only: what a parser accepts, Encode gives back
//     byte for byte. Names that XML cannot carry are in base64, never changed.
//
// The package does no input or output of its own. SPEC.md beside it gives the
// formats.
package manifest

import (
	"fmt"
	"hash"
	"hash/crc64"

	"github.com/databox-lockbox/lockbox/protocol"
)

// crcTable has the polynomial that Azure Storage uses for its CRC64 (known as
// CRC-64/NVME), in reflected form. The check value is 0xae8b14860a799888.
var crcTable = crc64.MakeTable(crcPolynomial)

const crcPolynomial = 0x9a6c9329ac4bc9b5 // the coefficient of x⁶³ is the lowest bit

// NewCRC64 returns the checksum of Azure Storage and of bills of materials.
func NewCRC64() hash.Hash64 { return crc64.New(crcTable) }

// ChecksumCRC64 returns the CRC64 of data.
func ChecksumCRC64(data []byte) uint64 { return crc64.Checksum(data, crcTable) }

// JoinCRC64 returns the CRC64 of two parts from those of each. n is the number of
// bytes of the second.
func JoinCRC64(first, second uint64, n int64) uint64 {
	shift, square := uint64(1)<<63, uint64(1)<<55 // x⁰; x⁸, which is one byte
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			shift = multiply(shift, square)
		}
		square = multiply(square, square)
	}
	return multiply(first, shift) ^ second
}

// multiply multiplies two polynomials modulo that of the checksum.
func multiply(a, b uint64) (product uint64) {
	for ; a != 0; a <<= 1 {
		if a>>63 != 0 {
			product ^= b
		}
		b = b>>1 ^ crcPolynomial&-(b&1) // b times x
	}
	return product
}

func invalid(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeInvalid, "%s", "manifest: "+fmt.Sprintf(format, args...))
}
