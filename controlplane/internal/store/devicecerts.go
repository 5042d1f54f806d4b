package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// InsertDeviceCert notes that a certificate was issued to a node.
func (tx *Tx) InsertDeviceCert(ctx context.Context, id protocol.NodeID, certSerial string) error {
	_, err := exec(ctx, tx, `INSERT INTO device_certs (cert_serial, serial, node) VALUES ($1, $2, $3)`, certSerial, id.Serial, id.Node)
	if isDuplicate(err) {
		return exists("certificate", certSerial)
	}
	return err
}

// EndDeviceCerts ends every certificate that was issued to a node.
func (tx *Tx) EndDeviceCerts(ctx context.Context, id protocol.NodeID, at time.Time) error {
	_, err := exec(ctx, tx, `INSERT INTO revoked_certs (cert_serial, subject, time)
		SELECT cert_serial, $3, $4 FROM device_certs WHERE serial = $1 AND node = $2 ON CONFLICT DO NOTHING`,
		id.Serial, id.Node, id.String(), millis(at))
	return err
}
