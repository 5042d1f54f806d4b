package cli_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane"
	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/controlplane/internal/cli"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/keyvault/keyvaulttest"
	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
	"github.com/databox-lockbox/lockbox/protocol/tunnel"
)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"lockbox": func() { os.Exit(cli.Main()) }})
}

// leakChecked are tests that must leave no goroutine behind.
type leakChecked struct{ tests *testing.M }

func (m leakChecked) Run() int {
	code := m.tests.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// What the scripts' world is made of.
const (
	order  = "ORD-1001"
	serial = "DBX0001"
	share  = "contosodata_BlockBlob"
)

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			w, err := start(env.WorkDir)
			if err != nil {
				return err
			}
			env.Values[worldKey{}] = w
			env.Defer(w.stop)
			env.Setenv("SERVER", w.server())
			env.Setenv("VAULT_KEY", w.vaultKey)
			env.Setenv("VAULT_NEWEST", keyvaulttest.Address(w.vaultKey))
			env.Setenv("LOCKBOX_HOME", filepath.Join(env.WorkDir, "admin"))
			env.Setenv("TZ", "UTC")
			env.Setenv("GORACE", "atexit_sleep_ms=0") // no command leaves anything running: it need not wait a second for races
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":     code,
			"json":     validJSON,
			"person":   person,
			"prepared": prepared,
			"device":   device,
			"offline":  func(ts *testscript.TestScript, _ bool, _ []string) { worldOf(ts).offline() },
			"mode":     mode,
			"visible":  visible,
			"hostile":  hostile,
			"session":  session,
			"recorded": recorded,
			"logkey":   logkey,
			"vault":    vault,
			"rotated":  rotated,
			"flip":     flip,
		},
	})
}

type worldKey struct{}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

// code runs a command that must end with the given exit code.
func code(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("cannot run %v: %v", args[1:], err)
	}
	if args[0] != strconv.Itoa(got) {
		ts.Fatalf("exit code %d, want %s: %s%s", got, args[0], ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// validJSON demands that standard output was one JSON document, or with "lines"
// one a line.
func validJSON(ts *testscript.TestScript, _ bool, args []string) {
	docs := []string{ts.ReadFile("stdout")}
	if len(args) == 1 {
		docs = strings.Split(strings.TrimSpace(docs[0]), "\n")
	}
	for _, d := range docs {
		if !json.Valid([]byte(d)) {
			ts.Fatalf("not JSON: %q", d)
		}
	}
}

// person registers somebody, makes their SSH key NAME.key and logs them in with
// the home NAME.
func person(ts *testscript.TestScript, _ bool, args []string) {
	tenant := ""
	if len(args) == 3 {
		tenant = args[2]
	}
	ts.Check(worldOf(ts).person(args[0], args[1], tenant))
}

// prepared writes what provisioning of the device writes.
func prepared(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(worldOf(ts).prepared(ts.MkAbs(args[0])))
}

// device enrols the device with the token in a file, and runs it until the
// script ends.
func device(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(worldOf(ts).device(strings.TrimSpace(ts.ReadFile(args[0]))))
}

// mode demands the permissions of a file.
func mode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}

// visible demands that what was printed cannot steer a terminal.
func visible(ts *testscript.TestScript, _ bool, _ []string) {
	for _, name := range []string{"stdout", "stderr"} {
		for _, r := range ts.ReadFile(name) {
			if r < 0x20 && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r == '\u202e' || r == '\u2066' || r == '\u200b' {
				ts.Fatalf("%s holds %U: %q", name, r, ts.ReadFile(name))
			}
		}
	}
}

// world is a control plane in this process, and what reaches it.
type world struct {
	dir      string
	control  *controlplane.ControlPlane
	cfg      controlplane.Config
	admin    *client.Client
	end      context.CancelFunc
	offline  func() // cuts the device off
	nodeKey  ed25519.PrivateKey
	node     devicev1.ControlServiceClient // what the device calls
	recorder *recorder
	running  sync.WaitGroup
	failed   error
	vault    *keyvaulttest.Server
	vaultKey string
}

func start(dir string) (*world, error) {
	w := &world{dir: dir, cfg: controlplane.DefaultConfig()}
	w.cfg.DataDir = filepath.Join(dir, ".controlplane")
	w.cfg.API.Address, w.cfg.Tunnel.Address = "127.0.0.1:0", "127.0.0.1:0"
	err := w.startVault()
	if err != nil {
		return nil, err
	}
	if w.control, err = controlplane.New(w.cfg, controlplane.Options{Log: zerolog.Nop()}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.end = cancel
	w.running.Go(func() { w.failed = w.control.Run(ctx) })
	token, err := os.ReadFile(filepath.Join(w.cfg.DataDir, "first-admin.token"))
	if err == nil {
		w.admin, err = w.login(ctx, "admin", strings.TrimSpace(string(token)))
	}
	if err != nil {
		w.stop()
	}
	return w, err
}

// startVault starts a customer's vault with a key, and gives the control plane an
// identity for it.
func (w *world) startVault() error {
	w.vault = keyvaulttest.Start()
	w.vaultKey = w.vault.AddKey("orders", 2048)
	v := &w.cfg.Keys.KeyVault
	v.ClientID, v.Authority, v.Hosts = keyvaulttest.ClientID, w.vault.URL, []string{w.vault.Host()}
	v.CAFile, v.ClientSecretFile = filepath.Join(w.dir, ".vault-roots"), filepath.Join(w.dir, ".vault-secret")
	return errors.Join(
		os.WriteFile(v.CAFile, w.vault.Certificate(), 0o600),
		os.WriteFile(v.ClientSecretFile, []byte(keyvaulttest.Secret+"\n"), 0o600),
	)
}

// vault changes the customer's key: disable, enable, or version for another
// version of it.
func vault(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	switch args[0] {
	case "version":
		w.vault.AddKey("orders", 2048)
	default:
		w.vault.Change(w.vaultKey, func(k *keyvaulttest.Key) { k.Enabled = args[0] == "enable" })
	}
}

// rotated waits until a rotation has ended.
func rotated(ts *testscript.TestScript, _ bool, _ []string) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		s, err := worldOf(ts).admin.Keys.GetKeyStatus(context.Background(), &lockboxv1.GetKeyStatusRequest{})
		ts.Check(err)
		if s.Rotation.GetFinished() != 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the rotation does not end: %v", s)
		}
	}
}

func (w *world) stop() {
	defer w.vault.Close()
	if w.admin != nil {
		w.admin.Close()
	}
	w.end()
	w.running.Wait()
	if w.failed != nil {
		panic(w.failed)
	}
}

func (w *world) server() string {
	return "localhost:" + w.control.APIAddress()[strings.LastIndex(w.control.APIAddress(), ":")+1:]
}

func (w *world) login(ctx context.Context, short, token string) (*client.Client, error) {
	id, _, err := client.Login(ctx, w.server(), token)
	if err != nil {
		return nil, err
	}
	if err := id.Save(filepath.Join(w.dir, short)); err != nil {
		return nil, err
	}
	return client.New(id)
}

func (w *world) person(name, role, tenant string) error {
	short, _, _ := strings.Cut(name, "@")
	line, err := makeKey(filepath.Join(w.dir, short+".key"), nil)
	if err != nil {
		return err
	}
	ctx := context.Background()
	resp, err := w.admin.Accounts.CreatePerson(ctx, &lockboxv1.CreatePersonRequest{Name: name, Role: role, Tenant: tenant, SshKeys: []string{line}})
	if err != nil {
		return err
	}
	c, err := w.login(ctx, short, resp.LoginToken)
	if err == nil {
		c.Close()
	}
	return err
}

// makeKey makes an SSH key, encrypted if there is a passphrase.
func makeKey(file string, passphrase []byte) (line string, err error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	var block *pem.Block
	if passphrase == nil {
		block, err = ssh.MarshalPrivateKey(key, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", passphrase)
	}
	if err != nil {
		return "", err
	}
	public, err := ssh.NewPublicKey(pub)
	if err != nil {
		return "", err
	}
	line = string(ssh.MarshalAuthorizedKey(public))
	return line, errors.Join(os.WriteFile(file, pem.EncodeToMemory(block), 0o600), os.WriteFile(file+".pub", []byte(line), 0o644))
}

func (w *world) prepared(file string) error {
	s, err := manifest.ParseShare(share)
	if err != nil {
		return err
	}
	bom, err := manifest.BOM{Share: s, Files: []manifest.File{{Path: "Wrong_Folder/a.bin", Size: 8, CRC64: manifest.ChecksumCRC64([]byte("contents"))}}}.Encode()
	if err != nil {
		return err
	}
	data, err := protojson.Marshal(&lockboxv1.PrepareDeviceRequest{Serial: serial, Disks: []*lockboxv1.PreparedDisk{{
		Node: 1, Disk: "disk1", VolumeGuid: "{a}", ExternalKey: make([]byte, 32),
		RecoveryPassword: "000011-000022-000033-000044-000055-000066-000077-000088",
		Manifests:        []*lockboxv1.PreparedManifest{{Share: share, Bom: bom}},
	}}})
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}

// device enrols node 1 of the device and runs its end of the tunnel.
func (w *world) device(token string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	source, root, err := w.enrol(ctx, token)
	if err != nil {
		return err
	}
	up := make(chan struct{}, 1)
	n := &node{}
	server := rpc.NewServer(func(context.Context, string, error) {})
	devicev1.RegisterNodeServiceHandler(server, n)
	mux := http.NewServeMux()
	rpc.Mount(mux, server)
	mux.HandleFunc("/ssh", n.ssh)
	n.tunnel = tunnel.NewClient(tunnel.ClientConfig{
		Address: w.control.TunnelAddress(), TLS: certs.DeviceDialer(source, root, "localhost"), Handler: mux,
		BackoffMin: 10 * time.Millisecond, BackoffMax: 50 * time.Millisecond,
		Connected: func() {
			select {
			case up <- struct{}{}:
			default:
			}
		},
	})
	run, end := context.WithCancel(context.Background())
	stop := w.end
	w.end = func() { end(); stop() }
	gone := make(chan struct{})
	w.offline = func() { end(); <-gone }
	w.running.Go(func() {
		defer close(gone)
		_ = n.tunnel.Run(run)
	})
	select {
	case <-up:
	case <-ctx.Done():
		return errors.New("the device did not connect")
	}
	w.node = devicev1.NewControlServiceClient(rpc.NewClient(n.tunnel.HTTP(), tunnel.BaseURL))
	_, err = w.node.Heartbeat(ctx, &devicev1.HeartbeatRequest{Status: status()})
	return err
}

// enrol gets the device's certificate with a join token.
func (w *world) enrol(ctx context.Context, token string) (*certs.Source, *x509.Certificate, error) {
	key, err := certs.NewKey()
	if err != nil {
		return nil, nil, err
	}
	w.nodeKey = key
	csr, err := certs.NewCSR(key)
	if err != nil {
		return nil, nil, err
	}
	host, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return nil, nil, err
	}
	o, err := w.admin.Orders.GetOrder(ctx, &lockboxv1.GetOrderRequest{Id: order})
	if err != nil {
		return nil, nil, err
	}
	config, err := certs.PinnedDialer("sha256:"+token[strings.LastIndex(token, ".")+1:], "localhost")
	if err != nil {
		return nil, nil, err
	}
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	resp, err := devicev1.NewEnrolmentServiceClient(rpc.NewClient(h, "https://"+w.server())).Enrol(ctx, &devicev1.EnrolRequest{
		Token: token, Serial: serial, Node: 1, Csr: csr, SshHostKey: host.Marshal(),
		TrustPolicyDigest: o.TrustPolicyDigest, Disks: []*devicev1.DiskStatus{{Disk: "disk1"}},
	})
	if err != nil {
		return nil, nil, err
	}
	root, err := x509.ParseCertificate(resp.ServerRoots[0])
	if err != nil {
		return nil, nil, err
	}
	source, err := certs.NewSource(key, resp.Chain, nil, nil)
	return source, root, err
}

// node is a device that lets sessions in and opens nothing.
type node struct {
	devicev1.UnimplementedNodeServiceHandler
	tunnel *tunnel.Client
}

func status() *devicev1.NodeStatus {
	return &devicev1.NodeStatus{
		Serial: serial, Node: 1, State: string(protocol.Locked), Time: time.Now().Unix(),
		Disks: []*devicev1.DiskStatus{{Disk: "disk1", State: "locked"}},
	}
}

func (n *node) Status(context.Context, *devicev1.StatusRequest) (*devicev1.StatusResponse, error) {
	return &devicev1.StatusResponse{Status: status()}, nil
}

func (n *node) EnableSession(context.Context, *devicev1.EnableSessionRequest) (*devicev1.EnableSessionResponse, error) {
	return &devicev1.EnableSessionResponse{}, nil
}

func (n *node) DisableSession(context.Context, *devicev1.DisableSessionRequest) (*devicev1.DisableSessionResponse, error) {
	return &devicev1.DisableSessionResponse{}, nil
}

func (n *node) Lock(context.Context, *devicev1.LockRequest) (*devicev1.LockResponse, error) {
	return &devicev1.LockResponse{Status: status()}, nil
}

func (n *node) Challenge(context.Context, *devicev1.ChallengeRequest) (*devicev1.ChallengeResponse, error) {
	return nil, protocol.Errorf(protocol.CodeFaulted, "tampered with: \x1b[2J call staff")
}

func (n *node) OpenBulk(ctx context.Context, _ *devicev1.OpenBulkRequest) (*devicev1.OpenBulkResponse, error) {
	return &devicev1.OpenBulkResponse{}, n.tunnel.DialBulk(ctx)
}

// ssh answers like a server of SSH until it has heard a line.
func (n *node) ssh(w http.ResponseWriter, r *http.Request) {
	conn, err := tunnel.AcceptUpgrade(w, r)
	if err != nil {
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "SSH-2.0-test %s\r\n", r.URL.Query().Get("session"))
	buf := make([]byte, 64)
	k, _ := conn.Read(buf)
	fmt.Fprintf(conn, "heard %q\n", buf[:k])
}

// hostile runs a command with one argument more, which wants to steer the
// terminal of whoever reads it.
func hostile(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec(args[0], append(args[1:], "\x1b[2J\x1b]0;evil\x07\u009b31m\u202etxt\u200b\nState  Approved")...))
}

// session puts the id of the session just printed into a variable.
func session(ts *testscript.TestScript, _ bool, args []string) {
	var s struct{ Id string }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &s))
	ts.Setenv(args[0], s.Id)
}

// logkey puts the log's key just printed into a variable.
func logkey(ts *testscript.TestScript, _ bool, args []string) {
	_, key, _ := strings.Cut(ts.ReadFile("stdout"), "Log key  ")
	ts.Setenv(args[0], strings.TrimSpace(key))
}

// flip changes one bit in the middle of a file.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	data := []byte(ts.ReadFile(args[0]))
	data[len(data)/2] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o600))
}
