package hostile

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/simulator/actor"
)

// The names of things.
const (
	tenant  = "contoso"
	orderID = "ORD-1001"
)

// holder is somebody with an SSH key. Its id in a trust policy is the name.
type holder struct {
	person protocol.Person
	line   string // public key
	sign   func(e *approval.Envelope, keyID string) error
}

// people are all who sign anything, by the name of their key. Alice has two.
type people map[string]holder

// customers and providers are who the trust policy names.
var (
	customers = []string{"alice-laptop", "alice-phone", "bob-laptop", "carla-laptop", "dave-laptop"}
	providers = []string{"petra-laptop", "paul-laptop"}
)

func newPeople(dir string) (people, error) {
	all := make(people)
	for _, key := range append(append([]string{"rita-laptop", "erin-laptop", "mallory-laptop"}, customers...), providers...) {
		name, _, _ := strings.Cut(key, "-")
		p := actor.Person{Name: protocol.Person(name + "@people.example"), Dir: filepath.Join(dir, key)}
		if err := p.MakeKey(); err != nil {
			return nil, err
		}
		signer, err := p.Signer()
		if err != nil {
			return nil, err
		}
		line, err := os.ReadFile(p.KeyFile() + ".pub")
		if err != nil {
			return nil, err
		}
		all[key] = holder{p.Name, strings.TrimSpace(string(line)), func(e *approval.Envelope, keyID string) error { return e.SignSSH(keyID, signer) }}
	}
	return all, nil
}

func (all people) key(name string) (approval.Key, error) {
	return approval.NewSSHKey(name, all[name].person, all[name].line)
}

// envelope has the named keys sign a document.
func (all people) envelope(doc approval.Document, keys ...string) ([]byte, error) {
	e, err := approval.NewEnvelope(doc)
	if err != nil {
		return nil, err
	}
	for _, name := range keys {
		if err := all[name].sign(&e, name); err != nil {
			return nil, err
		}
	}
	return e.Encode()
}

// forged is a document signed by one key under the id of another.
func (all people) forged(doc approval.Document, by, keyID string) ([]byte, error) {
	e, err := approval.NewEnvelope(doc)
	if err != nil {
		return nil, err
	}
	if err := all[by].sign(&e, keyID); err != nil {
		return nil, err
	}
	return e.Encode()
}

// enough are the customers' keys that complete every group.
var enough = []string{"alice-laptop", "bob-laptop", "dave-laptop"}

// policy is the first trust policy of a device: two owners and one of security,
// and one of the provider's support; with a recovery key, and break-glass for
// reading by two of the provider's.
func (all people) policy(p *plane) (doc approval.TrustPolicy, err error) {
	for _, name := range append(append([]string{}, customers...), providers...) {
		k, err := all.key(name)
		if err != nil {
			return doc, err
		}
		doc.Keys = append(doc.Keys, k)
	}
	recovery, err := all.key("rita-laptop")
	if err != nil {
		return doc, err
	}
	groups := []approval.Group{
		{Name: "owners", Threshold: 2, Keys: customers[:4]},
		{Name: "security", Threshold: 1, Keys: customers[4:]},
	}
	doc.TenantID, doc.OrderID, doc.Version, doc.RecoveryKey = tenant, orderID, 1, &recovery
	doc.Rules = []approval.Rule{
		{
			Action: approval.UnlockDatabox, Service: true, MaxDuration: 12 * 3600, CustomerGroups: groups,
			ProviderGroups: []approval.Group{{Name: "support", Threshold: 1, Keys: providers}},
		},
		{Action: approval.CopyData, Service: true, MaxDuration: 24 * 3600, CustomerGroups: groups},
	}
	doc.Exclusions = []approval.ExclusionRule{{
		Kind: approval.BreakGlass, Access: approval.ReadOnly, MaxDuration: 3600,
		ProviderGroups: []approval.Group{{Name: "duty", Threshold: 2, Keys: providers}},
	}}
	doc.ServiceKeys = [][]byte{p.service.Public().(ed25519.PublicKey)}
	doc.LogKey, err = auditlog.VerifierKey(logName, p.log.Public().(ed25519.PublicKey))
	return doc, err
}
