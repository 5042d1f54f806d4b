package config

import "time"

// Recordings configures what is kept of support sessions and shares. Sizes are in
// MiB.
type Recordings struct {
	// MaxMiB bounds one part of a recording, and is to be above recording.part_mib
	// of the devices, 256 by default: larger ones stay there, and sessions end
	// when a device has no more room. Default 1024.
	MaxMiB int `mapstructure:"max_mib"`
	// NodeMiB bounds those of one device node. Default 16384.
	NodeMiB int `mapstructure:"node_mib"`
	// TotalMiB bounds all of them. Default 131072, 128 GiB.
	TotalMiB int `mapstructure:"total_mib"`
	// Retention is how long they are kept after their end. 0 keeps them for
	// ever, else at least 90 days (2160h). Default 0.
	Retention time.Duration `mapstructure:"retention"`
}

func defaultRecordings() Recordings {
	return Recordings{MaxMiB: 1 << 10, NodeMiB: 16 << 10, TotalMiB: 128 << 10}
}

func (p *problems) recordings(r Recordings) {
	const most = 1 << 30 // a PiB
	p.Check(r.MaxMiB >= 1 && r.MaxMiB <= most, "recordings.max_mib", "%d is no size: write 1 to %d MiB", r.MaxMiB, most)
	p.Check(r.NodeMiB >= r.MaxMiB && r.NodeMiB <= most, "recordings.node_mib", "%d is too small or too large: write at least max_mib, at most %d", r.NodeMiB, most)
	p.Check(r.TotalMiB >= r.NodeMiB && r.TotalMiB <= most, "recordings.total_mib", "%d is too small or too large: write at least node_mib, at most %d", r.TotalMiB, most)
	p.Check(r.Retention == 0 || r.Retention >= minRetention, "recordings.retention", "%v is too short: use 0, or at least %v", r.Retention, minRetention)
}
