package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Whoever is asked and does not answer can leave.
func TestAQuestionIsInterrupted(t *testing.T) {
	for name, ask := range map[string]func(*cobra.Command) error{
		"confirm": func(c *cobra.Command) error { return confirm(c, "Sign?") },
		"secret":  func(c *cobra.Command) error { _, err := readSecret(c, "", "Token: "); return err },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			in, typing := io.Pipe()
			defer typing.Close()
			var said bytes.Buffer
			c := &cobra.Command{}
			c.SetContext(ctx)
			c.SetIn(in)
			c.SetErr(&said)
			cancel()
			if err := ask(c); !errors.Is(err, errInterrupted) {
				t.Errorf("%v, after %q", err, said.String())
			}
		})
	}
}

// A device is no file to keep a secret in, and one that never ends is not read to
// its end.
func TestSecretsOfDevices(t *testing.T) {
	if err := mustBePrivate("/dev/null"); err == nil || strings.Contains(err.Error(), "chmod") {
		t.Errorf("/dev/null: %v", err)
	}
	if _, err := readSecret(&cobra.Command{}, "/dev/zero", ""); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("/dev/zero: %v", err)
	}
}
