package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// print writes m as JSON if that was asked for, else calls text.
func (a *app) print(cmd *cobra.Command, m proto.Message, text func(w io.Writer)) error {
	if a.output != "json" {
		text(cmd.OutOrStdout())
		return nil
	}
	data, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	// protojson varies its white space on purpose; people diff this.
	var value any
	if err := json.Unmarshal(data, &value); err != nil {
		return err
	}
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(value)
}

// table writes rows under a header, in columns.
func table(w io.Writer, header string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(header, " ", "\t"))
	for _, r := range rows {
		for i := range r {
			r[i] = printable(r[i])
		}
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	t.Flush()
}

// fields writes name and value pairs, one a line; empty values are left out.
func fields(w io.Writer, pairs ...string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(t, "%s\t%s\n", pairs[i], printable(pairs[i+1]))
		}
	}
	t.Flush()
}

// printable keeps what others wrote from steering the terminal: control
// characters become visible.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || (r >= 0x7f && r < 0xa0) || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// when shows Unix seconds as local time, "" for 0.
func when(unix int64) string {
	if unix == 0 {
		return ""
	}
	return time.Unix(unix, 0).Format("2006-01-02 15:04:05 MST")
}

// until shows Unix seconds as time and what is left of it.
func until(unix int64) string {
	if unix == 0 {
		return ""
	}
	left := time.Until(time.Unix(unix, 0)).Round(time.Second)
	if left < 0 {
		return when(unix) + " (over)"
	}
	return fmt.Sprintf("%s (in %s)", when(unix), left)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
