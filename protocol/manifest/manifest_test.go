package manifest

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/databox-lockbox/lockbox/protocol"
)

var testShare = Share{"contosodata", BlockBlob}

// hostile are paths that have to survive every document.
var hostile = []string{
	"a", "container/file.txt", "Wrong_Folder/report 1.docx", `con/back\slash`, `con/trailing\`, "con/new\nline", "con/tab\t",
	"con/carriage\rreturn", "con/\x01\x1f", "con/\x7f\u0085", "con/not\xffutf8", "con/\ufffe", "con/\uffff", "con/\ufffd", "con/\u2028\u202e",
	`con/<file size="0">`, "con/a&amp;b", "con/]]>", `con/"quoted"'`, "con/ leading", "con/trailing ", "con/日本語", "con/😀", "con/--",
	"con/...", "con/%2e%2e/x", "con/" + strings.Repeat("long/", 500) + "x",
}

func TestCRC64(t *testing.T) {
	for text, want := range map[string]uint64{"123456789": 0xae8b14860a799888, "": 0} {
		if got := ChecksumCRC64([]byte(text)); got != want {
			t.Errorf("CRC64 of %q = %#x, want %#x", text, got, want)
		}
		h := NewCRC64()
		for i := range len(text) {
			io.WriteString(h, text[i:i+1])
		}
		if h.Sum64() != want {
			t.Errorf("CRC64 of %q in pieces = %#x", text, h.Sum64())
		}
	}
}

// bitwiseCRC64 is the checksum by definition: reflected, one bit at a time.
func bitwiseCRC64(data []byte) uint64 {
	crc := ^uint64(0)
	for _, b := range data {
		crc ^= uint64(b)
		for range 8 {
			crc = crc>>1 ^ 0x9a6c9329ac4bc9b5&-(crc&1)
		}
	}
	return ^crc
}

func TestJoinCRC64(t *testing.T) {
	data := make([]byte, 3000)
	rand.NewChaCha8([32]byte{1}).Read(data)
	for _, n := range []int{0, 1, 7, 256, 2999, 3000} {
		first, second := data[:len(data)-n], data[len(data)-n:]
		if got := JoinCRC64(ChecksumCRC64(first), ChecksumCRC64(second), int64(n)); got != ChecksumCRC64(data) {
			t.Errorf("the last %d bytes apart: %#x, want %#x", n, got, ChecksumCRC64(data))
		}
	}
}

func TestCRC64ByDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SliceOf(rapid.Byte()).Draw(t, "data")
		if got, want := ChecksumCRC64(data), bitwiseCRC64(data); got != want {
			t.Fatalf("%#x, want %#x", got, want)
		}
	})
}

func TestParseShare(t *testing.T) {
	for _, name := range []string{"abc_BlockBlob", "contoso1_PageBlob", strings.Repeat("a", 24) + "_AzFile"} {
		if s, err := ParseShare(name); err != nil || s.String() != name {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	for _, name := range []string{"", "ab_BlockBlob", strings.Repeat("a", 25) + "_AzFile", "Contoso_BlockBlob", "abc_blockblob", "abc_BlockBlob\n", "abc_BlockBlob/x", "abc-d_AzFile", "_AzFile"} {
		if _, err := ParseShare(name); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		kind            Kind
		path            string
		size            int64
		container, name string
		codes           []ErrorCode
	}{
		{BlockBlob, "backup/2026/a.vhd", 1, "backup", "2026/a.vhd", nil},
		{BlockBlob, "a-1/x", 0, "a-1", "x", nil},
		{BlockBlob, "at-the-root.txt", 1, "", "at-the-root.txt", []ErrorCode{NameLength}},
		{BlockBlob, "Wrong_Folder/a", 1, "Wrong_Folder", "a", []ErrorCode{NameAlphaNumeric}},
		{BlockBlob, "ab/a", 1, "ab", "a", []ErrorCode{NameLength}},
		{BlockBlob, strings.Repeat("a", 63) + "/a", 1, strings.Repeat("a", 63), "a", nil},
		{BlockBlob, strings.Repeat("a", 64) + "/a", 1, strings.Repeat("a", 64), "a", []ErrorCode{NameLength}},
		{BlockBlob, "-abc/a", 1, "-abc", "a", []ErrorCode{NameImproperDash}},
		{BlockBlob, "abc-/a", 1, "abc-", "a", []ErrorCode{NameImproperDash}},
		{BlockBlob, "a--c/a", 1, "a--c", "a", []ErrorCode{NameImproperDash}},
		{BlockBlob, "A-/a", 1, "A-", "a", []ErrorCode{NameLength, NameAlphaNumeric, NameImproperDash}},
		{AzFile, "share/a:b", 1, "share", "a:b", []ErrorCode{CharacterIllegal}},
		{BlockBlob, `abc/a\b`, 1, "abc", `a\b`, []ErrorCode{CharacterIllegal}},
		{BlockBlob, "abc/\xff", 1, "abc", "\xff", []ErrorCode{CharacterIllegal}},
		{BlockBlob, "abc/a\x01", 1, "abc", "a\x01", []ErrorCode{CharacterControl}},
		{BlockBlob, "abc/a?\u0085", 1, "abc", "a?\u0085", []ErrorCode{CharacterIllegal, CharacterControl}},
		{BlockBlob, "abc/../x", 1, "abc", "../x", []ErrorCode{CharacterIllegal}},
		{BlockBlob, "abc/", 1, "abc", "", []ErrorCode{CharacterIllegal}},
		{BlockBlob, "abc/" + strings.Repeat("ü", 1024), 1, "abc", strings.Repeat("ü", 1024), nil},
		{BlockBlob, "abc/" + strings.Repeat("ü", 1025), 1, "abc", strings.Repeat("ü", 1025), []ErrorCode{AggregateLength, ComponentLength}},
		{AzFile, "abc/" + strings.Repeat("a", 256), 1, "abc", strings.Repeat("a", 256), []ErrorCode{ComponentLength}},
		{BlockBlob, "abc/" + strings.Repeat("a/", 254) + "a", 1, "abc", strings.Repeat("a/", 254) + "a", []ErrorCode{SegmentCount}},
		{PageBlob, "abc/a", 512, "abc", "a", nil},
		{PageBlob, "abc/a", 513, "abc", "a", []ErrorCode{SizeAlignment}},
		{PageBlob, "abc/a", 8<<40 + 512, "abc", "a", []ErrorCode{SizeLimit}},
		{AzFile, "abc/a", 1 << 40, "abc", "a", nil},
		{AzFile, "abc/a", 1<<40 + 1, "abc", "a", []ErrorCode{SizeLimit}},
		{BlockBlob, "abc/a", 50_000*100<<20 + 1, "abc", "a", []ErrorCode{SizeLimit}},
		{BlockBlob, "abc/a", -1, "abc", "a", []ErrorCode{SizeLimit}},
	} {
		share := Share{"contoso", c.kind}
		want := Object{share, c.container, c.name, c.codes}
		if diff := cmp.Diff(want, share.Classify(c.path, c.size)); diff != "" {
			t.Errorf("%s %.100q: %s", c.kind, c.path, diff)
		}
	}
}

func testBOM() BOM {
	b := BOM{Share: testShare, Previous: Digest([]byte("before"))}
	for i, path := range hostile {
		b.Files = append(b.Files, File{path, int64(i), uint64(i) << 50})
	}
	b.Files = sorted(b.Files)
	return b
}

func TestBOMRoundTrip(t *testing.T) {
	for _, b := range []BOM{{Share: testShare}, testBOM()} {
		data, err := b.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseBOM(data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b, got); diff != "" {
			t.Error(diff)
		}
		shuffled := b
		shuffled.Files = slices.Clone(b.Files)
		slices.Reverse(shuffled.Files)
		if again, err := shuffled.Encode(); err != nil || !bytes.Equal(again, data) {
			t.Errorf("the order of the files matters: %v", err)
		}
	}
}

// TestBOMIsXML has another XML reader read what the field's tools would.
func TestBOMIsXML(t *testing.T) {
	b := testBOM()
	data, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Share string `xml:"share,attr"`
		Files []struct {
			Size     int64  `xml:"size,attr"`
			CRC      string `xml:"crc64,attr"`
			Encoding string `xml:"name_encoding,attr"`
			Path     string `xml:",chardata"`
		} `xml:"file"`
	}
	if err := xml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Share != testShare.String() || len(doc.Files) != len(b.Files) {
		t.Fatalf("share %q, %d files", doc.Share, len(doc.Files))
	}
	for i, f := range doc.Files {
		path, err := decodePath(f.Encoding == "Base64", f.Path)
		if err != nil || path != b.Files[i].Path || f.Size != b.Files[i].Size {
			t.Errorf("file %d: %q, %d bytes, %v; want %v", i, path, f.Size, err, b.Files[i])
		}
	}
}

func TestBOMLine(t *testing.T) {
	data, err := BOM{Share: testShare, Files: []File{{"path", 10923, 0x51c78833c90e4e3f}}}.Encode()
	if want := `<file size="10923" crc64="0x51c78833c90e4e3f">\path</file>` + "\n"; err != nil || !strings.Contains(string(data), want) {
		t.Errorf("%s lacks %s (%v)", data, want, err)
	}
}

func TestBOMRefusals(t *testing.T) {
	for name, b := range map[string]BOM{
		"no share":   {},
		"odd share":  {Share: Share{"UP", BlockBlob}},
		"odd digest": {Share: testShare, Previous: "sha1:00"},
		"twice":      {Share: testShare, Files: []File{{"a", 0, 0}, {"a", 1, 1}}},
		"no path":    {Share: testShare, Files: []File{{"", 0, 0}}},
		"absolute":   {Share: testShare, Files: []File{{"/a", 0, 0}}},
		"climbs":     {Share: testShare, Files: []File{{"a/../b", 0, 0}}},
		"not clean":  {Share: testShare, Files: []File{{"a//b", 0, 0}}},
		"a folder":   {Share: testShare, Files: []File{{"a/", 0, 0}}},
		"NUL":        {Share: testShare, Files: []File{{"a\x00b", 0, 0}}},
		"negative":   {Share: testShare, Files: []File{{"a", -1, 0}}},
		"endless":    {Share: testShare, Files: []File{{strings.Repeat("a", maxPath+1), 0, 0}}},
	} {
		if _, err := b.Encode(); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseBOMRefusals(t *testing.T) {
	data, err := BOM{Share: testShare, Files: []File{{"a", 1, 1}, {"b/c", 2, 2}}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	for _, change := range [][2]string{
		{`\a`, `a`}, {`\a`, `\b\c`}, {`\a`, `\..`}, {`\a`, `/a`}, {`\a`, `\&#97;`}, {`\a`, `\a&unknown;`}, {`\a`, `\a<b/>`}, {`\a`, ""},
		{`size="1"`, `size="01"`}, {`size="1"`, `size="-1"`}, {`size="1"`, `size="99999999999999999999"`}, {`size="1"`, `size='1'`},
		{"0x0000000000000001", "0x1"}, {"0x0000000000000001", "0x000000000000000A"},
		{"<bom ", "<BOM "}, {`version="1"`, `version="2"`}, {`previous=""`, `previous="x"`}, {`<file size="1"`, ` <file size="1"`},
		{"</bom>\n", "</bom>"}, {"</bom>\n", "</bom>\n\n"}, {"</bom>", ""}, {"utf-8", "utf-16"},
		{`>\a<`, ` name_encoding="Base64">L2E=<`}, {`>\a<`, ` name_encoding="Base64">!<`},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("%q changes nothing", change)
		}
		if b, err := ParseBOM([]byte(bad)); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%q: %v, %v", change, b, err)
		}
	}
	for n := range len(good) {
		if _, err := ParseBOM(data[:n]); err == nil {
			t.Errorf("cut at byte %d passes", n)
		}
	}
}

func TestDiff(t *testing.T) {
	older := BOM{Files: []File{{"same", 1, 1}, {"Wrong_Folder/a", 2, 2}, {"Wrong_Folder/b", 2, 2}, {"gone", 3, 3}, {"edited", 4, 4}, {"dup", 5, 5}}}
	newer := BOM{Files: []File{{"same", 1, 1}, {"right/a", 2, 2}, {"right/b", 2, 2}, {"new file", 6, 6}, {"edited", 4, 7}, {"dup", 5, 5}, {"dup2", 5, 5}}}
	got := Diff(older, newer)
	want := Changes{
		Added:   []File{{"dup2", 5, 5}, {"new file", 6, 6}},
		Removed: []File{{"gone", 3, 3}},
		Changed: []Move{{File{"edited", 4, 4}, File{"edited", 4, 7}}},
		Moved:   []Move{{File{"Wrong_Folder/a", 2, 2}, File{"right/a", 2, 2}}, {File{"Wrong_Folder/b", 2, 2}, File{"right/b", 2, 2}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	const text = "moved Wrong_Folder/a to right/a\nmoved Wrong_Folder/b to right/b\nadded dup2 (5 bytes)\nadded \"new file\" (6 bytes)\nremoved gone (3 bytes)\nchanged edited (4 to 4 bytes)\n"
	if got.String() != text {
		t.Errorf("got\n%s", got)
	}
	if same := Diff(older, older).String(); same != "" {
		t.Errorf("a bill differs from itself: %s", same)
	}
	deceit := Diff(BOM{}, BOM{Files: []File{{"a\nremoved b", 0, 0}, {"\u202etxt", 0, 0}}}).String()
	if strings.Count(deceit, "\n") != 2 || strings.Contains(deceit, "\u202e") {
		t.Errorf("a name deceives: %q", deceit)
	}
}

// TestDiffAccountsForEveryFile applies the changes and gets the newer bill.
func TestDiffAccountsForEveryFile(t *testing.T) {
	files := rapid.SliceOfDistinct(rapid.Custom(func(t *rapid.T) File {
		return File{rapid.StringMatching("[a-d]/[a-d]").Draw(t, "path"), rapid.Int64Range(0, 2).Draw(t, "size"), rapid.Uint64Range(0, 1).Draw(t, "crc")}
	}), func(f File) string { return f.Path })
	rapid.Check(t, func(t *rapid.T) {
		older, newer := BOM{Files: files.Draw(t, "older")}, BOM{Files: files.Draw(t, "newer")}
		c := Diff(older, newer)
		have := byPath(older.Files)
		for _, m := range slices.Concat(c.Moved, c.Changed) {
			if have[m.Old.Path] != m.Old {
				t.Fatalf("%v was not there", m.Old)
			}
			delete(have, m.Old.Path)
		}
		for _, f := range c.Removed {
			delete(have, f.Path)
		}
		for _, m := range slices.Concat(c.Moved, c.Changed) {
			have[m.New.Path] = m.New
		}
		for _, f := range c.Added {
			have[f.Path] = f
		}
		if diff := cmp.Diff(byPath(newer.Files), have); diff != "" {
			t.Fatal(diff)
		}
	})
}

func testCopyLog() CopyLog {
	l := CopyLog{Status: CompletedWithErrors, TotalFiles: 1000}
	for _, path := range hostile {
		l.Errored = append(l.Errored, ErroredEntity{testShare.String() + "/" + path, []ErrorCode{NameLength, CharacterIllegal}})
	}
	return l
}

func TestCopyLogRoundTrip(t *testing.T) {
	for _, l := range []CopyLog{{Status: Succeeded}, {Status: Succeeded, TotalFiles: 45}, {Status: Failed, TotalFiles: 1}, {Status: Failed, TotalFiles: 2, Unlisted: 2}, testCopyLog()} {
		data, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseCopyLog(data)
		if err != nil {
			t.Fatalf("%v in\n%s", err, data)
		}
		if diff := cmp.Diff(l, got); diff != "" {
			t.Error(diff)
		}
		for n := range len(data) {
			if _, err := ParseCopyLog(data[:n]); err == nil {
				t.Errorf("cut at byte %d passes", n)
			}
		}
	}
	if got := testCopyLog().Codes(); !slices.Equal(got, []ErrorCode{NameLength, CharacterIllegal}) {
		t.Errorf("codes = %v", got)
	}
}

func TestCopyLogForm(t *testing.T) {
	data, err := CopyLog{Status: CompletedWithErrors, TotalFiles: 45, Errored: []ErroredEntity{{"contosodata_BlockBlob/Wrong_Folder/a & b", []ErrorCode{NameAlphaNumeric}}}}.Encode()
	const want = `<?xml version="1.0" encoding="utf-8"?>
<CopyLog Summary="Summary">
  <Status>CompletedWithErrors</Status>
  <TotalFiles>45</TotalFiles>
  <FilesErrored>1</FilesErrored>
  <ErroredEntity Path="\contosodata_BlockBlob\Wrong_Folder\a &amp; b">
    <ErrorCode>ERROR_CONTAINER_OR_SHARE_NAME_ALPHA_NUMERIC_DASH</ErrorCode>
  </ErroredEntity>
</CopyLog>
`
	if err != nil || string(data) != want {
		t.Errorf("%v\n%s", err, data)
	}
}

func TestCopyLogWithin(t *testing.T) {
	l := CopyLog{Status: Failed, TotalFiles: 10_000}
	for i := range 10_000 {
		l.Errored = append(l.Errored, ErroredEntity{fmt.Sprintf("contosodata_BlockBlob/%d", i), []ErrorCode{NameLength}})
	}
	const limit = 64 << 10
	data, err := l.EncodeWithin(limit)
	if err != nil || len(data) > limit || len(data) < limit-1000 {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	got, err := ParseCopyLog(data)
	if err != nil {
		t.Fatal(err)
	}
	n := len(got.Errored)
	want := CopyLog{Status: Failed, TotalFiles: 10_000, Errored: l.Errored[:n], Unlisted: int64(10_000 - n)}
	if diff := cmp.Diff(want, got); diff != "" || n == 0 {
		t.Error(diff)
	}
}

func TestCopyLogRefusals(t *testing.T) {
	entity := []ErroredEntity{{"a", []ErrorCode{NameLength}}}
	for name, l := range map[string]CopyLog{
		"no status":      {},
		"odd status":     {Status: "Fine"},
		"fewer than 0":   {Status: Failed, TotalFiles: 1, Unlisted: -1, Errored: entity},
		"too many":       {Status: Failed, TotalFiles: 1, Unlisted: 1, Errored: entity},
		"more than all":  {Status: Failed, Errored: entity},
		"succeeded":      {Status: Succeeded, TotalFiles: 1, Errored: entity},
		"without code":   {Status: Failed, TotalFiles: 1, Errored: []ErroredEntity{{"a", nil}}},
		"odd code":       {Status: Failed, TotalFiles: 1, Errored: []ErroredEntity{{"a", []ErrorCode{"<x>"}}}},
		"too many codes": {Status: Failed, TotalFiles: 1, Errored: []ErroredEntity{{"a", slices.Repeat([]ErrorCode{"X"}, 17)}}},
		"no path":        {Status: Failed, TotalFiles: 1, Errored: []ErroredEntity{{"", []ErrorCode{NameLength}}}},
	} {
		if _, err := l.Encode(); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func fuzzDocument[T encoder](f *testing.F, parse func([]byte) (T, error), seeds ...encoder) {
	for _, s := range seeds {
		data, err := s.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, err := parse(data)
		if err != nil {
			if _, ok := errors.AsType[*protocol.Error](err); !ok {
				t.Errorf("untyped refusal: %v", err)
			}
			return
		}
		again, err := doc.Encode()
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q encodes as %q, %v", data, again, err)
		}
	})
}

func FuzzParseBOM(f *testing.F) { fuzzDocument(f, ParseBOM, BOM{Share: testShare}, testBOM()) }
func FuzzParseCopyLog(f *testing.F) {
	fuzzDocument(f, ParseCopyLog, CopyLog{Status: Succeeded}, testCopyLog())
}

func FuzzClassify(f *testing.F) {
	for _, path := range hostile {
		f.Add(path, int64(0))
	}
	f.Fuzz(func(t *testing.T, path string, size int64) {
		for _, kind := range []Kind{BlockBlob, PageBlob, AzFile} {
			o := Share{"contoso", kind}.Classify(path, size)
			whole := o.Name
			if o.Container != "" || strings.HasPrefix(path, "/") {
				whole = o.Container + "/" + o.Name
			}
			if whole != path {
				t.Errorf("%q became %+v", path, o)
			}
			if len(o.Codes) == 0 && (checkPath(path) != nil || strings.ContainsAny(path, "\\\x00\n")) {
				t.Errorf("%q passes", path)
			}
		}
	})
}

// TestVectors reads testdata, which another program wrote from SPEC.md.
func TestVectors(t *testing.T) {
	read := func(name string) []byte {
		data, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	first, err := ParseBOM(read("first.bom.xml"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := ParseBOM(read("second.bom.xml"))
	if err != nil {
		t.Fatal(err)
	}
	if second.Previous != Digest(read("first.bom.xml")) || len(first.Files) != 5 {
		t.Errorf("the second bill follows %q", second.Previous)
	}
	const want = "moved \"Wrong_Folder/report 1.txt\" to \"right-folder/report 1.txt\"\n"
	if got := Diff(first, second).String(); got != want {
		t.Errorf("difference:\n%s", got)
	}
	for _, f := range first.Files {
		object := first.Share.Classify(f.Path, f.Size)
		if ok := f.Path == "backup/a & b.txt" || f.Path == "backup/日本"; ok != (len(object.Codes) == 0) {
			t.Errorf("%q: %v", f.Path, object.Codes)
		}
		if f.Path == "Wrong_Folder/report 1.txt" && f.CRC64 != ChecksumCRC64([]byte("123456789")) {
			t.Errorf("CRC64 = %#x", f.CRC64)
		}
	}
	log, err := ParseCopyLog(read("halted.copylog.xml"))
	if err != nil || !slices.Equal(log.Codes(), []ErrorCode{NameAlphaNumeric, CharacterIllegal}) {
		t.Errorf("copy log: %+v, %v", log, err)
	}
}

func TestCheckEndpoint(t *testing.T) {
	for endpoint, ok := range map[string]bool{
		"https://contosodata.blob.core.windows.net": true, "http://127.0.0.1:10000/devstoreaccount1": true, "http://[::1]:1/a": true,
		"": false, "https://": false, "https://user@host": false, "https://host?x": false, "https://host#x": false, "http://localhost:1/a": false,
		"http://10.0.0.1/a": false, "ftp://127.0.0.1/a": false, "https://contosodata.file.core.windows.net": false, "https://file.core.example": true, "//127.0.0.1": false, "file:///srv": false,
	} {
		if err := CheckEndpoint(endpoint); ok != (err == nil) {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
}

func TestCheckSignature(t *testing.T) {
	for query, ok := range map[string]bool{
		"sv=2023-11-03&ss=b&srt=co&sp=rwdc&se=2050-01-01T00%3A00%3A00Z&spr=https&sig=c2ln%2B%3D": true,
		"si=policy&sr=c&sv=1&sig=a+b/c=": true, "sig=x": true,
		"": false, "sig=x\r\nHost: evil": false, "sig=x y": false, "sig=x#": false, "sig=x\x00": false, "sig=\xff": false,
		"sig=x&comp=acl": false, "sig=x&restype=container": false, "sig=x&": false, "?sig=x": false, "SIG=x": false,
	} {
		if err := CheckSignature([]byte(query)); (err == nil) != ok || err != nil && strings.Contains(err.Error(), "evil") {
			t.Errorf("%q: %v", query, err)
		}
	}
}
