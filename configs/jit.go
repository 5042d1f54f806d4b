package configs

import (
	"embed"
	"io/fs"
)

//go:embed jit
var jit embed.FS

// JIT returns the just-in-time policies that come with the program: Cedar
// files and their schema.
func JIT() fs.FS {
	files, err := fs.Sub(jit, "jit")
	if err != nil {
		panic("configs: internal error: " + err.Error())
	}
	return files
}
