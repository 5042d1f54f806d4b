package shell

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// command is one command of the shell.
type command struct {
	usage string
	help  string // one line
	more  string // what help CMD says beyond it
	flags string // as for getopt: letters, those with a value followed by a colon; "-" if it reads its options itself
	long  bool   // it goes through files: see longTime
	run   func(ctx context.Context, t *task, args []string) error
}

// commands are all there are. It is filled by init because help lists it.
var commands map[string]command

func init() {
	commands = map[string]command{
		"help":   {usage: "help [COMMAND]", help: "list the commands, or explain one", run: help},
		"disks":  {usage: "disks", help: "the node's disks: locked or unlocked", run: disks},
		"shares": {usage: "shares", help: "the node's shares: closed or open, and how to reach them", run: shares},
		"lease":  {usage: "lease", help: "who may do what until when", run: showLease},
		"job":    {usage: "job", help: "how the copy job stands", run: job},
		"pwd":    {usage: "pwd", help: "print the folder you are in", run: pwd},
		"cd":     {usage: "cd [FOLDER]", help: "go to a folder; without one to /, above the shares", run: cd},
		"ls": {usage: "ls [-laAhRtSrd1F] [PATH…]", help: "list folders", flags: "laAhRtSrd1F", long: true, run: ls, more: `  -l  mode, links, size in bytes, time of the last change (UTC)
  -a  names that begin with a dot too (-A the same)
  -h  sizes as 1.5K, 12M, 3.2G
  -R  everything below
  -t  newest first; -S largest first; -r the other way round
  -d  a folder itself
  -1  one name a line
  -F  / after folders, @ after links (at a terminal always)`},
		"stat": {usage: "stat [-L] PATH…", help: "show size, times and kind of files", flags: "L", run: stat, more: "  -L  what a link leads to"},
		"find": {usage: "find [PATH…] [TEST…]", help: "list what is below folders", flags: "-", long: true, run: find, more: `  -name PATTERN  -iname PATTERN  -path PATTERN  (quote them)
  -type f|d|l    files, folders, links
  -size [+-]N[ckMGT]  more, less or just as many units (c: bytes; without a letter: 512 bytes)
  -mtime [+-]DAYS     changed so many days ago
  -newer FILE         changed after it
  -empty  -maxdepth N  -mindepth N  -not TEST  TEST -o TEST  -print  -ls`},
		"du": {usage: "du [-shabc] [-d N] [PATH…]", help: "sizes of folders, in KiB", flags: "shabcd:", long: true, run: du, more: `  -s  the sum only; -d N down to so many folders; -a files too
  -h  sizes as 1.5K, 12M, 3.2G
  -b  bytes of content, not of disk
  -c  the sum of all`},
		"tree": {usage: "tree [-ad] [-L N] [PATH…]", help: "show folders as a tree", flags: "adL:", long: true, run: tree, more: "  -a  names that begin with a dot too\n  -d  folders only\n  -L  down to so many folders"},
		"cat":  {usage: "cat [-n] [FILE…]", help: "print files, or the input", flags: "n", long: true, run: cat, more: "  -n  number the lines"},
		"head": {usage: "head [-n [-]LINES | -c [-]BYTES] [-qv] [FILE…]", help: "print how files begin", flags: "n:c:qv", long: true, run: head, more: "  -n  so many lines (10), also as -20; all but the last N with -N\n  -c  so many bytes; 4K and 1M work\n  -q  without names; -v with them"},
		"tail": {usage: "tail [-n [+]LINES | -c [+]BYTES] [-fqv] [FILE…]", help: "print how files end", flags: "n:c:fqv", long: true, run: tail, more: `  -n  so many lines (10), also as -20; from line N on with +N
  -c  so many bytes; from byte N on with +N
  -f  and what is appended, until Ctrl-C, for an hour at most
  -q  without names; -v with them`},
		"less":      {usage: "less [FILE…]", help: "page through text", long: true, run: less, more: "  space b  a page on, back     j k  a line on, back     g G  beginning, end\n  /TEXT    search (a regular expression)     n N  next, previous     q  end\nWithout a terminal it prints the text."},
		"hexdump":   {usage: "hexdump [-Cv] [-n BYTES] [-s OFFSET] [FILE…]", help: "print bytes as hexadecimal digits and characters", flags: "Cvn:s:", long: true, run: hexdump, more: "  -n  so many bytes only; -s after so many (0x… and 4K work)\n  -v  repeated lines too\n  -C  as it is always printed"},
		"file":      {usage: "file FILE…", help: "tell what is in files", run: fileCommand},
		"sha256sum": {usage: "sha256sum [-c] [FILE…]", help: "print SHA-256 checksums", flags: "c", long: true, run: sha256sum, more: "  -c  check the checksums that FILE lists"},
		"crc64":     {usage: "crc64 [FILE…]", help: "print CRC64 checksums, as in bills of materials", long: true, run: crc64sum},
		"mkdir":     {usage: "mkdir [-pv] FOLDER…", help: "make folders", flags: "pv", run: mkdir, more: "  -p  and those above it, and none that is there"},
		"cp": {usage: "cp [-rRapnfv] FROM… TO", help: "copy files; what is there is replaced with an approval that says delete", flags: "rRapnfv", long: true, run: cp, more: `  -r  folders with all in them (-R, -a the same)
  -p  keep the times of the last change (-a the same)
  -n  leave what is there
  -v  say what is copied
A copy is written aside, read back and compared, and then takes its place.`},
		"mv": {usage: "mv [-nfv] FROM… TO", help: "move or rename; what is there is replaced with an approval that says delete", flags: "nfv", long: true, run: mv, more: `  -n  leave what is there
  -v  say what is moved
Between disks it copies, reads back, compares, and only then removes.`},
		"rm":              {usage: "rm [-rRfv] PATH…", help: "remove; needs an approval that says delete", flags: "rRfv", long: true, run: rm, more: "  -r  folders with all in them\n  -f  nothing there is no error\n  -v  say what is removed"},
		"prepare-to-ship": {usage: "prepare-to-ship", help: "write new bills of materials for the copy job", long: true, run: prepareToShip, more: "Every file of every share is read. The bill before is kept under a number."},
		"convert-vhd": {usage: "convert-vhd [-nm] RAW [VHD]", help: "make a fixed VHD of a raw disk image", flags: "nm", long: true, run: convertVHD, more: `  -n  only say what would be made
  -m  padded to whole MiB, as disks of virtual machines must be
The VHD is the image, padded to a multiple of 512 bytes, and a footer of 512 bytes:
what a page blob takes. It is named as the image, with .vhd, unless you name it. The
image stays. It is written aside, read back and compared, and then takes its place.`},
		"exit": {usage: "exit [STATUS]", help: "end this shell", run: exit},
	}
}

func help(_ context.Context, t *task, args []string) error {
	if len(args) > 0 {
		return t.helpAbout(args)
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	for _, name := range slices.Sorted(maps.Keys(commands)) {
		fmt.Fprintf(w, "%s\t%s\n", commands[name].usage, commands[name].help)
	}
	fmt.Fprint(w, `
help COMMAND explains its options.
Join commands with ; && || and |. Redirect with > >> < 2> and 2>&1.
Quote names with spaces; * ? and [a-z] match names. The shares are in /shares.
read-write lets you add, move and change; to remove or replace, the approval must
say delete. Everything is recorded, command by command and file by file.
`)
	return w.Flush()
}

func (t *task) helpAbout(names []string) error {
	for _, name := range names {
		c, ok := commands[name]
		if !ok {
			t.complain(name, fmt.Errorf("no such command"))
			continue
		}
		fmt.Fprintf(t.out, "%s\n%s\n", c.usage, c.help)
		if c.more != "" {
			fmt.Fprintln(t.out, c.more)
		}
	}
	return nil
}

func exit(_ context.Context, t *task, args []string) error {
	if len(args) > 1 {
		return usageError("")
	}
	t.done = true
	if len(args) == 0 {
		return exitStatus(t.status)
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 0 || n > 255 {
		return usageError("a status is a number from 0 to 255")
	}
	return exitStatus(n)
}

// options are those that were typed, with their values.
type options map[byte]string

func (o options) has(letters string) bool {
	return slices.ContainsFunc([]byte(letters), func(c byte) bool { _, ok := o[c]; return ok })
}

// parseOptions takes the options off the arguments, wherever they are, up to --.
func (t *task) parseOptions(args []string) (options, []string, error) {
	if t.flags == "-" {
		return nil, args, nil
	}
	opts, rest := options{}, []string{}
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			return opts, append(rest, args...), nil
		case arg == "--help":
			return nil, nil, usageError("")
		case len(arg) < 2 || arg[0] != '-':
			rest = append(rest, arg)
			continue
		case isNumber(arg[1:]) && strings.HasPrefix(t.flags, "n:"): // head -20
			opts['n'] = arg[1:]
			continue
		}
		var err error
		if args, err = t.letters(opts, arg[1:], args); err != nil {
			return nil, nil, err
		}
	}
	return opts, rest, nil
}

// letters takes the options of one argument, -la or -n5, and returns the
// arguments behind it.
func (t *task) letters(opts options, letters string, rest []string) ([]string, error) {
	for i := range len(letters) {
		at := strings.IndexByte(t.flags, letters[i])
		switch {
		case letters[0] == '-' || letters[i] == ':' || at < 0:
			return nil, usageError(fmt.Sprintf("unrecognized option '-%s'", letters))
		case at+1 == len(t.flags) || t.flags[at+1] != ':':
			opts[letters[i]] = ""
			continue
		case i+1 < len(letters):
			opts[letters[i]] = letters[i+1:]
		case len(rest) == 0:
			return nil, usageError(fmt.Sprintf("option -%c needs a value", letters[i]))
		default:
			opts[letters[i]], rest = rest[0], rest[1:]
		}
		break
	}
	return rest, nil
}

func isNumber(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
}

// number reads the value of an option, with a unit perhaps.
func (t *task) number(letter byte, otherwise int64) (int64, error) {
	text, ok := t.opts[letter]
	if !ok {
		return otherwise, nil
	}
	return parseSize(text)
}

// parseSize reads a number of bytes or of something else: 10, 0x1f, 4K, 1M.
func parseSize(text string) (int64, error) {
	digits, shift := text, 0
	if !strings.HasPrefix(text, "0x") && text != "" {
		if i := strings.IndexByte("kMGT", text[len(text)-1]); i >= 0 {
			digits, shift = text[:len(text)-1], 10*(i+1)
		} else if text[len(text)-1] == 'K' {
			digits, shift = text[:len(text)-1], 10
		}
	}
	base := 10
	if strings.HasPrefix(digits, "0x") {
		digits, base = digits[2:], 16
	}
	n, err := strconv.ParseInt(digits, base, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return 0, usageError(fmt.Sprintf("'%s' is no number", text))
	}
	return n << shift, nil
}
