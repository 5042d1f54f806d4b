package config

import (
	"cmp"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"path/filepath"
)

// Notify configures how people are told of what happens.
type Notify struct {
	// BaseURL is where people reach the portal, for the links in notices.
	// Default none: notices name the command instead.
	BaseURL string `mapstructure:"base_url"`
	// From is the sender of mails. Default lockbox@localhost.
	From string `mapstructure:"from"`
	// File is the directory in which mails become files, if smtp.address is
	// empty. Absolute. Default <data_dir>/outbox.
	File string `mapstructure:"file"`
	// SMTP is the mail server.
	SMTP SMTP `mapstructure:"smtp"`
	// Webhooks says where webhooks may lead.
	Webhooks Webhooks `mapstructure:"webhooks"`
}

// SMTP is a mail server. The connection is always encrypted.
type SMTP struct {
	// Address is host:port of the server. Default none: mails become files.
	Address string `mapstructure:"address"`
	// TLS is starttls, or implicit as on port 465. Default starttls.
	TLS string `mapstructure:"tls"`
	// CAFile holds the roots (PEM) that the server's certificate may come from.
	// Absolute. Default the system's.
	CAFile string `mapstructure:"ca_file"`
	// Hello is how this machine calls itself. Default its host name.
	Hello string `mapstructure:"hello"`
	// Username is the mail account. Default none: the server wants no login.
	Username string `mapstructure:"username"`
	// PasswordFile holds the account's password, mode 0600. Absolute. It is read
	// for each connection.
	PasswordFile string `mapstructure:"password_file"`
}

// Webhooks bounds where webhooks may lead.
type Webhooks struct {
	// Networks may be reached although they are private, as in 10.1.2.0/24.
	// Default none.
	Networks []string `mapstructure:"networks"`
	// Loopback allows this machine itself, also by http. For development only.
	// Default false.
	Loopback bool `mapstructure:"loopback"`
	// CAFile holds the roots (PEM) that their certificates may come from.
	// Absolute. Default the system's.
	CAFile string `mapstructure:"ca_file"`
}

func defaultNotify() Notify {
	return Notify{From: "lockbox@localhost", SMTP: SMTP{TLS: "starttls"}, Webhooks: Webhooks{Networks: []string{}}}
}

// Outbox is the directory in which mails become files.
func (c Config) Outbox() string { return cmp.Or(c.Notify.File, filepath.Join(c.DataDir, "outbox")) }

func (p *problems) notify(n Notify) {
	if n.BaseURL != "" {
		u, err := url.Parse(n.BaseURL)
		p.Check(err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "",
			"notify.base_url", "%q is no address of a portal: write one, as in https://lockbox.provider.example", n.BaseURL)
	}
	_, err := mail.ParseAddress(n.From)
	p.Check(err == nil, "notify.from", "%q is no mail address: write one, as in lockbox@provider.example", n.From)
	p.optional("notify.file", n.File)
	p.smtp(n.SMTP)
	p.optional("notify.webhooks.ca_file", n.Webhooks.CAFile)
	for _, s := range n.Webhooks.Networks {
		network, err := netip.ParsePrefix(s)
		p.Check(err == nil && network.Masked() == network, "notify.webhooks.networks", "%q is no network: write one, as in 10.1.2.0/24", s)
	}
}

func (p *problems) smtp(s SMTP) {
	if s.Address != "" {
		host, port, err := net.SplitHostPort(s.Address)
		p.Check(err == nil && host != "" && port != "", "notify.smtp.address", "%q is not an address: write host:port, as in mail.provider.example:587", s.Address)
	}
	p.OneOf("notify.smtp.tls", s.TLS, "starttls", "implicit")
	p.optional("notify.smtp.ca_file", s.CAFile)
	p.optional("notify.smtp.password_file", s.PasswordFile)
	p.Check((s.Username == "") == (s.PasswordFile == ""), "notify.smtp.username", "an account needs username and password_file: write both or neither")
}
