//go:build !amd64 || purego

package bitlocker

// stretchKernels are the kernels that this processor can use.
var stretchKernels = []*stretchKernel{portable}

// kernelFor returns the kernel for the next of the keys that are left.
func kernelFor(left, workers int) *stretchKernel { return portable }
