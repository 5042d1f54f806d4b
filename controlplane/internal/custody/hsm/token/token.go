//go:build cgo

// Package token is the helper program lockbox-hsm: it loads a PKCS#11 library,
// logs in to a token, and answers requests on its standard input until that ends.
// It is the only cgo of the project.
package token

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm/wire"
)

// nonceSize is the size of a GCM nonce, which precedes the ciphertext.
const nonceSize = 12

// Main is the helper program. It returns the exit code.
func Main() int {
	err := errors.Join(
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0), // keys pass through
	)
	if err == nil {
		err = run(os.Args[1:], os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lockbox-hsm:", err)
		return 1
	}
	return 0
}

// options are the flags of the program.
type options struct{ module, token, label, pinFile string }

func run(args []string, in io.Reader, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("lockbox-hsm", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "lockbox-hsm is started by lockboxd, when keys.service is pkcs11. It wraps keys in a token.")
		flags.PrintDefaults()
	}
	flags.StringVar(&o.module, "module", "", "the PKCS#11 library")
	flags.StringVar(&o.token, "token", "", "the label of the token")
	flags.StringVar(&o.label, "label", "", "the label of the keys")
	flags.StringVar(&o.pinFile, "pin-file", "", "the file with the user's PIN")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	requests := make(chan [][]byte)
	go read(in, requests)
	t := &token{options: o}
	for request := range requests {
		reply := t.answer(request)
		err := wire.Write(out, reply)
		for _, field := range append(request, reply...) {
			clear(field)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// read takes requests until there are no more. Then whoever asked is gone: the
// program ends, even if the library hangs.
func read(in io.Reader, requests chan<- [][]byte) {
	for {
		request, err := wire.Read(in)
		if err != nil {
			os.Exit(0)
		}
		requests <- request
	}
}

// token is the token, logged in to at the first request.
type token struct {
	options
	ctx *crypto11.Context
}

// answer does what is asked. The library's panics are crypto11's way to tell of
// a failure to encrypt.
func (t *token) answer(request [][]byte) (reply [][]byte) {
	defer func() {
		if p := recover(); p != nil {
			reply = failed(fmt.Errorf("%v", p))
		}
	}()
	fields, err := t.do(request)
	switch {
	case errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_INCORRECT)), errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_LEN_RANGE)),
		errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_LOCKED)), errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_EXPIRED)), errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_INVALID)):
		return [][]byte{[]byte(wire.StatusPIN)}
	case errors.Is(err, errMismatch):
		return [][]byte{[]byte(wire.StatusMismatch)}
	case err != nil:
		return failed(err)
	}
	return append([][]byte{[]byte(wire.StatusOK)}, fields...)
}

func failed(err error) [][]byte { return [][]byte{[]byte(wire.StatusFailed), []byte(err.Error())} }

// arguments is how many fields an operation takes.
var arguments = map[string]int{wire.OpVersions: 0, wire.OpGenerate: 1, wire.OpDestroy: 1, wire.OpWrap: 3, wire.OpUnwrap: 3}

func (t *token) do(request [][]byte) ([][]byte, error) {
	if len(request) == 0 {
		return nil, errors.New("an empty request")
	}
	op, fields := string(request[0]), request[1:]
	if n, ok := arguments[op]; !ok || n != len(fields) {
		return nil, fmt.Errorf("%.40q with %d fields is no request", op, len(fields))
	}
	if err := t.open(); err != nil {
		return nil, err
	}
	switch op {
	case wire.OpVersions:
		return t.versions()
	case wire.OpGenerate:
		return nil, t.generate(fields[0])
	case wire.OpDestroy:
		key, err := t.key(fields[0])
		if err != nil {
			return nil, err
		}
		return nil, key.Delete()
	case wire.OpWrap:
		return t.wrap(fields[0], fields[1], fields[2])
	}
	return t.unwrap(fields[0], fields[1], fields[2])
}

// open logs in.
func (t *token) open() error {
	if t.ctx != nil {
		return nil
	}
	pin, err := readPIN(t.pinFile)
	if err != nil {
		return err
	}
	defer clear(pin)
	t.ctx, err = crypto11.Configure(&crypto11.Config{Path: t.module, TokenLabel: t.options.token, Pin: string(pin), MaxSessions: 4, GCMIVLength: nonceSize})
	return err
}

// maxPIN is the longest PIN, in bytes.
const maxPIN = 256

// readPIN reads a file that only its owner can read. A newline at its end is not
// of the PIN.
func readPIN(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot read the PIN: %w", err)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("others can read the PIN in %s (mode %04o): run 'chmod 600 %s', and change the PIN", path, info.Mode().Perm(), path)
	case !info.Mode().IsRegular() || info.Size() == 0 || info.Size() > maxPIN:
		return nil, fmt.Errorf("%s does not hold a PIN", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the PIN: %w", err)
	}
	return bytes.TrimRight(data, "\r\n"), nil
}

func (t *token) versions() (ids [][]byte, err error) {
	keys, err := t.ctx.FindKeys(nil, []byte(t.label))
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		id, err := t.ctx.GetAttribute(key, crypto11.CkaId)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id.Value)
	}
	return ids, nil
}

// generate makes a key that cannot leave the token.
func (t *token) generate(version []byte) error {
	there, err := t.ctx.FindKeys(version, []byte(t.label))
	if err == nil && len(there) > 0 {
		err = fmt.Errorf("key %q version %s is there already", t.label, version)
	}
	if err != nil {
		return err
	}
	_, err = t.ctx.GenerateSecretKeyWithLabel(version, []byte(t.label), 256, crypto11.CipherAES)
	return err
}

// key finds the one key of a version.
func (t *token) key(version []byte) (*crypto11.SecretKey, error) {
	keys, err := t.ctx.FindKeys(version, []byte(t.label))
	if err == nil && len(keys) != 1 {
		err = fmt.Errorf("it has %d keys %q of version %s: want one", len(keys), t.label, version)
	}
	if err != nil {
		return nil, err
	}
	return keys[0], nil
}

// aead encrypts in the token, under the key of a version.
func (t *token) aead(version []byte) (cipher.AEAD, error) {
	k, err := t.key(version)
	if err != nil {
		return nil, err
	}
	return k.NewGCM()
}

func (t *token) wrap(version, key, aad []byte) ([][]byte, error) {
	aead, err := t.aead(version)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	return [][]byte{aead.Seal(nonce, nonce, key, aad)}, nil
}

// errMismatch says that something was not wrapped by that key with that data.
var errMismatch = errors.New("mismatch")

func (t *token) unwrap(version, wrapped, aad []byte) ([][]byte, error) {
	aead, err := t.aead(version)
	if err != nil {
		return nil, err
	}
	if len(wrapped) < nonceSize+aead.Overhead() {
		return nil, errMismatch
	}
	key, err := aead.Open(nil, wrapped[:nonceSize], wrapped[nonceSize:], aad)
	if err != nil && isMismatch(err.Error()) {
		err = errMismatch
	}
	return [][]byte{key}, err
}

// isMismatch reports whether a failure to decrypt is about what was decrypted.
// crypto11 keeps only the text of the library's error; tokens use either of
// these for a tag that is wrong.
func isMismatch(text string) bool {
	return strings.HasPrefix(text, "C_Decrypt: ") && (strings.Contains(text, "CKR_ENCRYPTED_DATA_INVALID") || strings.Contains(text, "CKR_GENERAL_ERROR"))
}
