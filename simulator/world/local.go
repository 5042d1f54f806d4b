package world

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/agent"
	"github.com/databox-lockbox/lockbox/controlplane"
	"github.com/databox-lockbox/lockbox/controlplane/client"
)

// RunControlPlane runs lockboxd's control plane in this process until ctx ends.
// ready is called when its ports are open.
func (w *World) RunControlPlane(ctx context.Context, log zerolog.Logger, ready func()) error {
	cfg, err := controlplane.LoadConfig(w.ControlConfig())
	if err != nil {
		return err
	}
	c, err := controlplane.New(cfg, controlplane.Options{Log: log})
	if err != nil {
		return err
	}
	ready()
	return c.Run(ctx)
}

// RunAgent runs the agent of an enrolled node in this process until ctx ends.
// It has no keeper: a process that is killed leaves its mounts to the next
// start.
func (w *World) RunAgent(ctx context.Context, n Node, opts agent.Options) error {
	cfg, err := agent.LoadConfig(n.ConfigFile())
	if err != nil {
		return err
	}
	a, err := agent.New(cfg, opts)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// Client logs a person in with the token that was left for them, unless they
// are logged in, and returns their client of the API. The caller closes it.
func (w *World) Client(ctx context.Context, short string) (*client.Client, error) {
	p, ok := w.People[short]
	if !ok {
		return nil, fmt.Errorf("there is no %q in this world", short)
	}
	id, err := client.LoadIdentity(p.Home())
	if err == nil {
		return client.New(id)
	}
	token, err := os.ReadFile(w.TokenFile(short))
	if err != nil {
		return nil, err
	}
	if id, _, err = client.Login(ctx, w.API, strings.TrimSpace(string(token))); err != nil {
		return nil, err
	}
	if err := id.Save(p.Home()); err != nil {
		return nil, err
	}
	return client.New(id)
}
