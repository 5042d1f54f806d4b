package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// InsertPersonCert notes that a certificate was issued to a person.
func (tx *Tx) InsertPersonCert(ctx context.Context, person protocol.Person, certSerial string) error {
	_, err := exec(ctx, tx, `INSERT INTO person_certs (cert_serial, person) VALUES ($1, $2)`, certSerial, person)
	if isDuplicate(err) {
		return exists("certificate", certSerial)
	}
	return err
}

// EndPersonCerts ends every certificate that was issued to a person.
func (tx *Tx) EndPersonCerts(ctx context.Context, person protocol.Person, at time.Time) error {
	_, err := exec(ctx, tx, `INSERT INTO revoked_certs (cert_serial, subject, time)
		SELECT cert_serial, $1, $2 FROM person_certs WHERE person = $1 ON CONFLICT DO NOTHING`, person, millis(at))
	return err
}
