//go:build (!amd64 && !arm64) || purego

package bitlocker

const keyStride = blockSize

func machineKernels() []kernel { return nil }

func encryptBlocks(keys *byte, rounds int, b, pre, post *byte, blocks int) { panic(errNoAES) }
func decryptBlocks(keys *byte, rounds int, b, pre, post *byte, blocks int) { panic(errNoAES) }

const errNoAES = "bitlocker: internal error: no AES instructions"
