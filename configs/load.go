// Package configs reads a YAML file strictly into a typed struct, and holds the
// example files.
//
//   - Every key must be known, every value of the right type, every duration has
//     a unit. All problems are reported at once, each with its full path and what
//     to do about it.
//   - The variable PREFIX_SECTION_KEY overrides the key section.key, for strings,
//     durations, booleans and integers.
//   - Fields of the struct are exported and carry one tag, mapstructure. A map is
//     not allowed as a field (its keys would lose their case): use a list whose
//     entries have an id.
package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"
)

// maxSize bounds a configuration file.
const maxSize = 1 << 20

// Error lists everything that is wrong with a configuration, a line each that
// starts with the key's full path.
type Error struct{ Problems []string }

func (e *Error) Error() string {
	return "cannot load configuration:\n  " + strings.Join(e.Problems, "\n  ")
}

// LoadFile is [Load] for the file at path.
func LoadFile[T any](path, envPrefix string, def T) (T, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return def, fmt.Errorf("cannot load configuration: %w: name the file with --config", err)
	}
	if err != nil {
		return def, fmt.Errorf("cannot load configuration: %w", err)
	}
	defer f.Close()
	c, err := Load(f, envPrefix, def)
	if err != nil {
		return def, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Load reads YAML from r into a copy of def, so what r leaves out keeps its
// default. On any problem it returns def and an [*Error], or the error of r.
func Load[T any](r io.Reader, envPrefix string, def T) (T, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return def, fmt.Errorf("cannot load configuration: %w", err)
	}
	v, err := parse(data)
	if err != nil {
		return def, err
	}
	fields := fieldsOf(reflect.TypeFor[T](), "")
	problems := slices.Concat(missingValues(v), override(v, envPrefix, fields))
	c := def
	err = v.UnmarshalExact(&c, func(d *mapstructure.DecoderConfig) {
		d.WeaklyTypedInput = false
		d.ZeroFields = true // a list replaces the default list, it is not laid over it
		d.DecodeHook = strict
	})
	problems = append(problems, describe(err, fields, reflect.TypeFor[T]().String())...)
	if len(problems) > 0 {
		slices.Sort(problems)
		return def, &Error{Problems: slices.Compact(problems)}
	}
	return c, nil
}

func parse(data []byte) (*viper.Viper, error) {
	if len(data) > maxSize {
		return nil, &Error{[]string{fmt.Sprintf("the file has more than %d bytes", maxSize)}}
	}
	if i := bytes.LastIndex(data, []byte("\n---")); i >= 0 && !onlyComments(data[:i]) {
		return nil, &Error{[]string{"the file has more than one YAML document: keep one"}}
	}
	v := viper.New()
	v.SetConfigType("yaml")
	if err := v.ReadConfig(bytes.NewReader(data)); err != nil {
		return nil, &Error{[]string{"the file is not valid YAML: " + flat(err)}}
	}
	return v, nil
}

func onlyComments(data []byte) bool {
	for line := range bytes.Lines(data) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return false
		}
	}
	return true
}

// missingValues finds the keys written without a value, which viper ignores even
// when they are unknown.
func missingValues(v *viper.Viper) (problems []string) {
	for _, key := range v.AllKeys() {
		if v.Get(key) == nil {
			problems = append(problems, key+": has no value: write one, or remove the line to get the default")
		}
	}
	return problems
}

// override lets the environment replace values. They arrive as text, so each is
// read as the type of its field.
func override(v *viper.Viper, prefix string, fields map[string]reflect.Type) (problems []string) {
	for key, t := range fields {
		name := prefix + "_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
		text, ok := os.LookupEnv(name)
		if !ok || strings.Contains(key, "[]") {
			continue
		}
		value, err := parseText(text, t)
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: environment variable %s: %v", key, name, err))
			continue
		}
		v.Set(key, value)
	}
	return problems
}

func parseText(text string, t reflect.Type) (any, error) {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return parseDuration(text)
	case t.Kind() == reflect.String:
		return text, nil
	case t.Kind() == reflect.Bool:
		if text != "true" && text != "false" {
			return nil, fmt.Errorf("%q is not a boolean: write true or false", text)
		}
		return text == "true", nil
	case reflect.Zero(t).CanInt():
		n, err := strconv.ParseInt(text, 10, t.Bits())
		if err != nil {
			return nil, fmt.Errorf("%q is not a whole number that fits", text)
		}
		return n, nil
	}
	return nil, errors.New("this key can be set in the file only: remove the variable")
}

// strict refuses what mapstructure would convert though it means something else.
func strict(from, to reflect.Value) (any, error) {
	data := from.Interface()
	switch {
	case to.Type() == reflect.TypeFor[time.Duration]() && from.Type() != to.Type():
		if s, ok := data.(string); ok {
			return parseDuration(s)
		}
		return nil, fmt.Errorf("%v is not a duration: write a unit, as in 90s, 15m or 8h", data)
	case from.CanFloat() && (to.CanInt() || to.CanUint()):
		return nil, fmt.Errorf("%v is not a whole number", data)
	case from.CanInt() && (to.CanInt() && to.OverflowInt(from.Int()) || to.CanUint() && from.Int() >= 0 && to.OverflowUint(uint64(from.Int()))):
		return nil, fmt.Errorf("%v is too large: it has to fit into %v", data, to.Type())
	}
	return data, nil
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration: write a number and a unit, as in 90s, 15m or 8h", s)
	}
	return d, nil
}

// describe turns what mapstructure found into lines. It calls the whole struct
// by its type's name, root.
func describe(err error, fields map[string]reflect.Type, root string) (problems []string) {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			problems = append(problems, describe(e, fields, root)...)
		}
		return problems
	}
	if err == nil {
		return nil
	}
	one, ok := err.(*mapstructure.DecodeError)
	if !ok {
		if inner := errors.Unwrap(err); inner != nil {
			return describe(inner, fields, root)
		}
		return []string{flat(err)}
	}
	if _, nested := errors.AsType[*mapstructure.DecodeError](one.Unwrap()); nested {
		return describe(one.Unwrap(), fields, root)
	}
	return describeOne(strings.TrimPrefix(one.Name(), root), flat(one.Unwrap()), fields)
}

func describeOne(path, text string, fields map[string]reflect.Type) (problems []string) {
	keys, ok := strings.CutPrefix(text, "has invalid keys: ")
	if !ok {
		return []string{path + ": " + text}
	}
	for key := range strings.SplitSeq(keys, ", ") {
		problems = append(problems, fmt.Sprintf("%s: unknown key: remove it or correct it (known here: %s)",
			join(path, key), strings.Join(siblings(path, fields), ", ")))
	}
	return problems
}

// siblings lists the keys that section has, sorted.
func siblings(section string, fields map[string]reflect.Type) (names []string) {
	prefix := index.ReplaceAllString(section, "[]")
	if prefix != "" {
		prefix += "."
	}
	for key := range fields {
		if rest, ok := strings.CutPrefix(key, prefix); ok && rest != "" {
			name, _, _ := strings.Cut(rest, ".")
			names = append(names, strings.TrimSuffix(name, "[]"))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// index is the place of an entry within a list, as in "disks[3]".
var index = regexp.MustCompile(`\[\d+\]`)

// fieldsOf lists the leaves of a struct by path; what an entry of a list holds is
// under "path[]".
func fieldsOf(t reflect.Type, path string) map[string]reflect.Type {
	fields := make(map[string]reflect.Type)
	for i := range t.NumField() {
		f := t.Field(i)
		tag, ok := f.Tag.Lookup("mapstructure")
		if !ok || tag == "" || !f.IsExported() {
			panic(fmt.Sprintf("configs: internal error: field %s of %v has no mapstructure tag or is not exported", f.Name, t))
		}
		key := join(path, tag)
		switch kind := f.Type.Kind(); {
		case kind == reflect.Map || kind == reflect.Pointer || kind == reflect.Interface:
			panic(fmt.Sprintf("configs: internal error: field %s of %v is a %v: use a list or a plain value", f.Name, t, kind))
		case kind == reflect.Struct:
			maps.Copy(fields, fieldsOf(f.Type, key))
		case kind == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			fields[key] = f.Type
			maps.Copy(fields, fieldsOf(f.Type.Elem(), key+"[]"))
		default:
			fields[key] = f.Type
		}
	}
	return fields
}

func join(section, key string) string {
	if section == "" {
		return key
	}
	return section + "." + key
}

// flat puts an error on one line.
func flat(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
