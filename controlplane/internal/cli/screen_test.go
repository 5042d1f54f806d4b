package cli

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// through is what a screen passes on of text, given to it in pieces of n bytes.
func through(plain bool, n int, text string) string {
	var out bytes.Buffer
	s := &screen{out: &out, plain: plain}
	for len(text) > 0 {
		n := min(n, len(text))
		s.Write([]byte(text[:n]))
		text = text[n:]
	}
	return out.String()
}

func TestScreenPassesOnWhatIsSeen(t *testing.T) {
	for _, text := range []string{
		"plain text\r\n\tand tabs\b\b", "Grüße, 日本語 ✓",
		"\x1b[1;31mred\x1b[0m \x1b[38;5;196m256\x1b[38:2::1:2:3m true colour\x1b[m",
		"\x1b[H\x1b[2J\x1b[10;20H\x1b[A\x1b[3B\x1b[K\x1b[1K\x1b[2L\x1b[5P\x1b[4@\x1b[3X\x1b[2S\x1b[7d\x1b[9G\x1b[1;24r",
		"\x1b[?25l\x1b[?25h\x1b[?1049h\x1b[?1049l\x1b[?7l\x1b7\x1b8\x1bM\x1b(0qqq\x1b(B\x1b[s\x1b[u",
	} {
		for _, n := range []int{1, 2, 1000} {
			if got := through(false, n, text); got != text {
				t.Errorf("%q in pieces of %d became %q", text, n, got)
			}
		}
	}
}

// TestExportIsNotForTerminals writes what a device recorded, which holds anything, to
// files and pipes only.
func TestExportIsNotForTerminals(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("no terminals here: ", err)
	}
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	defer terminal.Close()
	const file = "testdata/none.rec" // it is refused before it is opened
	export := func(out io.Writer, format string) (int, string) {
		var errOut bytes.Buffer
		code := Run(t.Context(), []string{"--home", t.TempDir(), "session", "export", file, "--format", format}, strings.NewReader(""), out, &errOut)
		return code, errOut.String()
	}
	for _, format := range []string{"raw", "asciicast"} {
		if code, text := export(terminal, format); code != ExitUsage || !strings.Contains(text, "--out") {
			t.Errorf("%s to a terminal: %d, %s", format, code, text)
		}
		if _, text := export(&bytes.Buffer{}, format); !strings.Contains(text, "no such file") {
			t.Errorf("the control, %s to a pipe: %s", format, text)
		}
	}
}

func TestScreenLeavesOutWhatSteers(t *testing.T) {
	for name, text := range map[string]string{
		"clipboard":             "a\x1b]52;c;ZXZpbA==\x07b",
		"clipboard, ended ST":   "a\x1b]52;c;ZXZpbA==\x1b\\b",
		"clipboard, C1":         "a\u009d52;c;ZXZpbA==\u009cb",
		"title":                 "a\x1b]0;owned\x07b",
		"link":                  "a\x1b]8;;https://evil.example/\x1b\\\x1b]8;;\x1b\\b",
		"notification":          "a\x1b]777;notify;x;y\x07b",
		"image":                 "a\x1b_Gf=100;AAAA\x1b\\b",
		"sixel":                 "a\x1bPq#0;2;0;0;0\x1b\\b",
		"termcap query":         "a\x1bP+q544e\x1b\\b",
		"device attributes":     "a\x1b[c\x1b[0c\x1b[>c\x1b[=c\x1bZb",
		"status report":         "a\x1b[5n\x1b[6n\x1b[?6nb",
		"version":               "a\x1b[>q\x1b[>0qb",
		"window":                "a\x1b[21t\x1b[8;10;10t\x1b[18tb",
		"mode query":            "a\x1b[?25$p\x1b[4$pb",
		"mouse":                 "a\x1b[?1000h\x1b[?1003h\x1b[?1006hb",
		"focus and paste":       "a\x1b[?1004h\x1b[?2004hb",
		"two modes in one":      "a\x1b[?25;1003hb",
		"keyboard":              "a\x1b[>4;2m\x1b[>1u\x1b=\x1b>b",
		"scrollback":            "a\x1b[3Jb",
		"mouse tracking":        "a\x1b[1;2;3;4;5Tb",
		"huge number":           "a\x1b[99999999999999999999Cb",
		"bell and shifts":       "a\x07\x0e\x0f\x05b",
		"answerback":            "a\x05b",
		"sequence cut by OSC":   "a\x1b[\x1b]52;c;eA==\x07b",
		"OSC cut by a sequence": "a\x1b]52;c\x1b[6nb",
		"delete":                "a\x7fb",
		"8-bit CSI":             "a\u009b6nb",
		"in a string":           "a\x1b^\x1b]52;c;eA==\x07b",
	} {
		for _, n := range []int{1, 3, 1000} {
			if got := through(false, n, text); got != "ab" {
				t.Errorf("%s, in pieces of %d: %q became %q", name, n, text, got)
			}
		}
	}
	if got := through(false, 10, "a\x9bb\u202ec"); got != "a\uFFFDb\uFFFDc" {
		t.Errorf("got %q", got)
	}
}

// Nobody hides what follows behind a string that does not end.
func TestScreenEndsStrings(t *testing.T) {
	got := through(false, 100, "\x1b]0;"+strings.Repeat("x", 2*maxString)+"\r\nrm -rf /shares\r\n")
	if !strings.HasSuffix(got, "\r\nrm -rf /shares\r\n") || len(got) > maxString+100 {
		t.Errorf("%d bytes, the end is %q", len(got), got[max(0, len(got)-40):])
	}
}

func TestScreenAsPlainText(t *testing.T) {
	got := through(true, 1, "\x1b[1mls\x1b[0m\r\n 10%\r 20%\r\n\x1b]0;t\x07done\b\b\r\n")
	if want := "ls\n 10%\n 20%\ndone\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestScreenRestoresTheTerminal(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out}
	s.Write([]byte("\x1b[?1049h\x1b[?25l"))
	out.Reset()
	s.restore()
	for _, want := range []string{"\x1b[0m", "\x1b[?25h", "\x1b[?1049l", "\x1b(B", "\x1b[r"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q does not hold %q", out.String(), want)
		}
	}
}

// seen is all that a screen may write.
var seen = regexp.MustCompile(`^(?:[^\x00-\x1f\x7f-\x9f]|[\n\r\t\x08]|\x1b[78DEM]|\x1b\([0B]|\x1b\[[0-9;:]*m|\x1b\[[0-9;]*[A-IKLMPSTXZ@` + "`" + `abdefrsuJ]|\x1b\[(?:\?(?:7|25|47|1047|1048|1049)|4)[hl])*$`)

func FuzzScreen(f *testing.F) {
	f.Add([]byte("\x1b[1;31mred\x1b]52;c;eA==\x07"), 3)
	f.Add([]byte("\x1bP\x1b\\\u009b6n\xff\x9b"), 1)
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		got := through(false, max(1, n), string(data))
		if !utf8.ValidString(got) || !seen.MatchString(got) {
			t.Errorf("%q became %q", data, got)
		}
		if whole := through(false, len(data)+1, string(data)); whole != got {
			t.Errorf("%q became %q, in pieces %q", data, whole, got)
		}
		if plain := through(true, max(1, n), string(data)); strings.ContainsAny(plain, "\x1b\x07\b") {
			t.Errorf("plain %q", plain)
		}
	})
}

func TestPlayerBeginsALineOfItsOwn(t *testing.T) {
	var out bytes.Buffer
	p := &player{screen: &screen{out: &out, plain: true}}
	for _, shown := range []string{"prompt> ", "done\n"} {
		if _, err := p.screen.Write([]byte(shown)); err != nil {
			t.Fatal(err)
		}
		p.line("-- ended")
	}
	if _, err := p.screen.Write([]byte("prompt> ")); err != nil {
		t.Fatal(err)
	}
	p.current = "1"
	if err := p.show(recording.Frame{}, recording.Close{Channel: "1"}); err != nil {
		t.Fatal(err)
	}
	if want := "prompt> \n-- ended\ndone\n-- ended\nprompt> \n"; out.String() != want {
		t.Errorf("shown %q, want %q", out.String(), want)
	}
}
