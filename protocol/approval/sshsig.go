package approval

import (
	"bytes"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// SSHSIG, as in OpenSSH's PROTOCOL.sshsig.
const (
	sshsigVersion = 1
	sshsigHash    = "sha512"
	armorBegin    = "-----BEGIN SSH SIGNATURE-----"
	armorEnd      = "-----END SSH SIGNATURE-----"
)

var sshsigMagic = [6]byte{'S', 'S', 'H', 'S', 'I', 'G'}

// skApplication is the only application of a security key that is accepted:
// the one ssh-keygen gives, and not one of a web page.
const skApplication = "ssh:"

// userPresence is the flag of a security key that was touched.
const userPresence = 0x01

// sshsigBlob is the signature as it is stored.
type sshsigBlob struct {
	Magic     [6]byte
	Version   uint32
	PublicKey []byte
	Namespace string
	Reserved  string
	HashAlg   string
	Signature []byte
}

// sshsigMessage is what the key signs.
type sshsigMessage struct {
	Magic     [6]byte
	Namespace string
	Reserved  string
	HashAlg   string
	Hash      []byte
}

func sshsigData(namespace string, message []byte) []byte {
	sum := sha512.Sum512(message)
	return ssh.Marshal(sshsigMessage{sshsigMagic, namespace, "", sshsigHash, sum[:]})
}

// SignSSH adds the signature of an SSH key, a key file's or an ssh-agent's,
// under the id that the trust policy gives to it. The key must be one that
// [NewSSHKey] accepts.
func (e *Envelope) SignSSH(keyID string, signer ssh.Signer) error {
	sig, err := SignSSH(signer, e.PayloadType.Namespace(), e.PAE())
	if err != nil {
		return err
	}
	return e.add(keyID, sig)
}

// AddSSH adds a signature made elsewhere over [Envelope.PAE], armored as
// ssh-keygen -Y sign writes it, under the namespace of the document's kind. It
// verifies nothing.
func (e *Envelope) AddSSH(keyID string, armored []byte) error {
	sig, err := unarmor(armored)
	if err != nil {
		return err
	}
	return e.add(keyID, sig)
}

// SignSSH returns a raw SSHSIG blob over message. It verifies what it returns,
// so that a faulty agent is found where it can be mended.
func SignSSH(signer ssh.Signer, namespace string, message []byte) ([]byte, error) {
	pub, err := ssh.ParsePublicKey(signer.PublicKey().Marshal())
	if err != nil {
		return nil, fmt.Errorf("cannot sign with this SSH key: %w", err)
	}
	if err := acceptSSH(pub); err != nil {
		return nil, err
	}
	sig, err := signer.Sign(rand.Reader, sshsigData(namespace, message))
	if err != nil {
		return nil, fmt.Errorf("cannot sign with SSH key %s: %w", ssh.FingerprintSHA256(pub), err)
	}
	raw := ssh.Marshal(sshsigBlob{
		Magic: sshsigMagic, Version: sshsigVersion, PublicKey: pub.Marshal(),
		Namespace: namespace, HashAlg: sshsigHash, Signature: ssh.Marshal(sig),
	})
	if err := verifySSH(pub, namespace, message, raw); err != nil {
		return nil, fmt.Errorf("the signature of SSH key %s is of no use: %w", ssh.FingerprintSHA256(pub), err)
	}
	return raw, nil
}

// verifySSH verifies a raw SSHSIG blob over message, made by pub.
func verifySSH(pub ssh.PublicKey, namespace string, message, raw []byte) error {
	var blob sshsigBlob
	if err := ssh.Unmarshal(raw, &blob); err != nil {
		return errors.New("not an SSHSIG signature")
	}
	switch {
	case blob.Magic != sshsigMagic || blob.Version != sshsigVersion:
		return errors.New("not an SSHSIG signature of version 1")
	case !bytes.Equal(blob.PublicKey, pub.Marshal()):
		return errors.New("made by another SSH key")
	case blob.Namespace != namespace:
		return fmt.Errorf("made for namespace %q, want %q", blob.Namespace, namespace)
	case blob.Reserved != "":
		return errors.New("has a reserved field")
	case blob.HashAlg != sshsigHash:
		return fmt.Errorf("uses hash %q, want %q", blob.HashAlg, sshsigHash)
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(blob.Signature, &sig); err != nil {
		return errors.New("its inner signature cannot be read")
	}
	if err := checkSSHRest(pub.Type(), sig.Rest); err != nil {
		return err
	}
	return pub.Verify(sshsigData(namespace, message), &sig)
}

// checkSSHRest checks what follows the inner signature: nothing, or the flags
// and counter of a security key that was touched.
func checkSSHRest(keyType string, rest []byte) error {
	if keyType == ssh.KeyAlgoED25519 {
		if len(rest) != 0 {
			return errors.New("has trailing bytes")
		}
		return nil
	}
	if len(rest) != 5 || rest[0]&userPresence == 0 {
		return errors.New("the security key was not touched")
	}
	return nil
}

// sshsigKey returns the public key that a raw SSHSIG blob claims to be of, nil
// if it is none.
func sshsigKey(raw []byte) ssh.PublicKey {
	var blob sshsigBlob
	if ssh.Unmarshal(raw, &blob) != nil || blob.Magic != sshsigMagic {
		return nil
	}
	pub, err := ssh.ParsePublicKey(blob.PublicKey)
	if err != nil {
		return nil
	}
	return pub
}

// acceptSSH refuses SSH keys of other types than ours.
func acceptSSH(pub ssh.PublicKey) error {
	switch pub.Type() {
	case ssh.KeyAlgoED25519:
		return nil
	case ssh.KeyAlgoSKED25519:
		if app := skApplicationOf(pub); app != skApplication {
			return fmt.Errorf("the security key has application %q: want %q", app, skApplication)
		}
		return nil
	}
	return fmt.Errorf("SSH key type %s is not accepted: use ssh-ed25519 or %s", pub.Type(), ssh.KeyAlgoSKED25519)
}

func skApplicationOf(pub ssh.PublicKey) string {
	var key struct {
		Type        string
		Key         []byte
		Application string
	}
	if ssh.Unmarshal(pub.Marshal(), &key) != nil {
		return ""
	}
	return key.Application
}

// unarmor returns the raw blob of an armored SSHSIG.
func unarmor(armored []byte) ([]byte, error) {
	text := strings.TrimSpace(string(armored))
	body, begins := strings.CutPrefix(text, armorBegin)
	body, ends := strings.CutSuffix(body, armorEnd)
	if !begins || !ends {
		return nil, invalid("not an armored SSH signature: want the file that ssh-keygen -Y sign writes")
	}
	raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(body), ""))
	if err != nil {
		return nil, invalid("the armored SSH signature is damaged: sign again")
	}
	return raw, nil
}
