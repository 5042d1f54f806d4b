package nfs

import "encoding/binary"

// decoder reads XDR (RFC 4506). The first failure stays.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) take(n int) []byte {
	if d.err != nil || n > len(d.rest) { // n is small, or was bounded by the caller
		d.err = errMalformed
		return make([]byte, n)
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) uint32() uint32 { return binary.BigEndian.Uint32(d.take(4)) }

func (d *decoder) uint64() uint64 { return binary.BigEndian.Uint64(d.take(8)) }

// opaque reads at most limit bytes, which stay part of what is decoded.
func (d *decoder) opaque(limit int) []byte {
	n := d.uint32()
	if d.err != nil || n > uint32(limit) {
		d.err = errMalformed
		return nil
	}
	b := d.take(int(n+3) &^ 3)
	if d.err != nil {
		return nil
	}
	return b[:n]
}

// encode appends values in XDR: uint32, uint64, bool, or string of variable length.
func encode(b []byte, values ...any) []byte {
	for _, value := range values {
		switch v := value.(type) {
		case uint32:
			b = binary.BigEndian.AppendUint32(b, v)
		case uint64:
			b = binary.BigEndian.AppendUint64(b, v)
		case bool:
			b = append(b, 0, 0, 0, 0)
			if v {
				b[len(b)-1] = 1
			}
		case string:
			b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
			b = append(b, v...)
			b = append(b, make([]byte, -len(v)&3)...)
		}
	}
	return b
}
