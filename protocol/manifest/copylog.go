package manifest

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"regexp"
	"slices"
)

// Status is how an upload ended.
type Status string

// The ends of an upload.
const (
	Succeeded             Status = "Succeeded"
	CompletedWithWarnings Status = "CompletedWithWarnings" // all files were copied; those listed not with all that is known of them
	CompletedWithErrors   Status = "CompletedWithErrors"
	Failed                Status = "Failed"
)

// ErroredEntity is one file that was not copied, or not with all that is known
// of it.
type ErroredEntity struct {
	Path  string      // "<share>/<path below it>", with slashes; any bytes but NUL
	Codes []ErrorCode // why, at least one
}

// maxCodesPerEntity bounds the codes of one file.
const maxCodesPerEntity = 16

// CopyLog is what became of the files of an upload.
type CopyLog struct {
	Status     Status
	TotalFiles int64 // copied or not
	Errored    []ErroredEntity
	Unlisted   int64 // files that errored too, beyond those listed in Errored
}

var codeForm = regexp.MustCompile(`^[A-Z0-9_]{1,80}$`)

// Encode returns the copy log as XML.
func (l CopyLog) Encode() ([]byte, error) { return l.EncodeWithin(math.MaxInt) }

// EncodeWithin returns the copy log as XML of at most limit bytes: files that
// errored are listed from the first on as far as there is room, and counted all.
func (l CopyLog) EncodeWithin(limit int) ([]byte, error) {
	if !slices.Contains([]Status{Succeeded, CompletedWithWarnings, CompletedWithErrors, Failed}, l.Status) {
		return nil, invalid("copy status %.50q is unknown", l.Status)
	}
	errored := int64(len(l.Errored)) + l.Unlisted
	if l.Unlisted < 0 || l.TotalFiles < errored {
		return nil, invalid("%d files errored of %d in all", errored, l.TotalFiles)
	}
	if l.Status == Succeeded && errored > 0 {
		return nil, invalid("an upload with %d errored files did not succeed", errored)
	}
	var out bytes.Buffer
	out.WriteString(xmlHeader)
	fmt.Fprintf(&out, "<CopyLog Summary=\"Summary\">\n  <Status>%s</Status>\n  <TotalFiles>%d</TotalFiles>\n  <FilesErrored>%d</FilesErrored>\n",
		l.Status, l.TotalFiles, errored)
	for _, e := range l.Errored {
		before := out.Len()
		if err := e.encode(&out); err != nil {
			return nil, err
		}
		if out.Len() > limit-len(copyLogEnd) {
			out.Truncate(before)
			break
		}
	}
	out.WriteString(copyLogEnd)
	return out.Bytes(), nil
}

const copyLogEnd = "</CopyLog>\n"

func (e ErroredEntity) encode(out *bytes.Buffer) error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	if len(e.Codes) == 0 || len(e.Codes) > maxCodesPerEntity {
		return invalid("errored file %.200q has %d codes: want 1 to %d", e.Path, len(e.Codes), maxCodesPerEntity)
	}
	attr, text := encodePath(e.Path)
	fmt.Fprintf(out, "  <ErroredEntity Path=\"%s\"%s>\n", text, attr)
	for _, code := range e.Codes {
		if !codeForm.MatchString(string(code)) {
			return invalid("%.100q is not an error code", code)
		}
		fmt.Fprintf(out, "    <ErrorCode>%s</ErrorCode>\n", code)
	}
	out.WriteString("  </ErroredEntity>\n")
	return nil
}

// ParseCopyLog reads what [CopyLog.Encode] writes, and nothing else.
func ParseCopyLog(data []byte) (CopyLog, error) {
	var doc struct {
		XMLName    xml.Name `xml:"CopyLog"`
		Status     Status
		TotalFiles int64
		Count      int64 `xml:"FilesErrored"`
		Errored    []struct {
			Path     string      `xml:"Path,attr"`
			Encoding string      `xml:"name_encoding,attr"`
			Codes    []ErrorCode `xml:"ErrorCode"`
		} `xml:"ErroredEntity"`
	}
	if err := xml.Unmarshal(data, &doc); err != nil {
		return CopyLog{}, invalid("the copy log is not XML of the expected form: %v", err)
	}
	l := CopyLog{Status: doc.Status, TotalFiles: doc.TotalFiles, Unlisted: doc.Count - int64(len(doc.Errored))}
	for _, e := range doc.Errored {
		path, err := decodePath(e.Encoding != "", e.Path)
		if err != nil {
			return CopyLog{}, invalid("%v", err)
		}
		l.Errored = append(l.Errored, ErroredEntity{path, e.Codes})
	}
	return l, sameBytes(l, data)
}

// Codes returns the distinct codes of the log, in order of appearance.
func (l CopyLog) Codes() []ErrorCode {
	var codes []ErrorCode
	seen := make(map[ErrorCode]bool)
	for _, e := range l.Errored {
		for _, code := range e.Codes {
			if !seen[code] {
				seen[code] = true
				codes = append(codes, code)
			}
		}
	}
	return codes
}
