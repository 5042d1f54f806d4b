package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// table is what the row helpers know of a table: its columns in the order of
// the record's fields, the first of which are the primary key. If rows change,
// the last column is rev.
type table struct {
	name string // in SQL
	what string // for people
	keys int    // how many columns form the primary key
	cols string
}

// record is a struct whose fields are the columns of a table. Fields returns
// pointers: they are scanned into and written from.
type record[T any] interface {
	*T
	fields() []any
}

// insert adds r; a duplicate is [ErrConflict].
func insert(ctx context.Context, tx *Tx, t table, fields []any) error {
	marks := make([]string, len(fields))
	for i := range fields {
		marks[i] = fmt.Sprintf("$%d", i+1)
	}
	_, err := tx.tx.ExecContext(ctx, "INSERT INTO "+t.name+" ("+t.cols+") VALUES ("+strings.Join(marks, ", ")+")", fields...)
	if isDuplicate(err) {
		return exists(t.what, values(fields[:t.keys])...)
	}
	return refine(err)
}

// update writes all fields where the key and rev still fit, and moves rev on.
func update(ctx context.Context, tx *Tx, t table, rev *int64, fields []any) error {
	var set, where []string
	for i, col := range strings.Split(t.cols, ", ") {
		switch {
		case i < t.keys:
			where = append(where, fmt.Sprintf("%s = $%d", col, i+1))
		case i == len(fields)-1:
			set = append(set, "rev = rev + 1")
			where = append(where, fmt.Sprintf("rev = $%d", i+1))
		default:
			set = append(set, fmt.Sprintf("%s = $%d", col, i+1))
		}
	}
	res, err := tx.tx.ExecContext(ctx, "UPDATE "+t.name+" SET "+strings.Join(set, ", ")+" WHERE "+strings.Join(where, " AND "), fields...)
	if isDuplicate(err) {
		return exists(t.what, values(fields[:t.keys])...)
	}
	if err != nil {
		return refine(err)
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return errors.Join(err, changed(t.what, values(fields[:t.keys])...))
	}
	*rev++
	return nil
}

// get reads the one row that where names.
func get[T any, P record[T]](ctx context.Context, tx *Tx, t table, where string, args ...any) (T, error) {
	var r T
	err := tx.tx.QueryRowContext(ctx, "SELECT "+t.cols+" FROM "+t.name+" "+where, args...).Scan(P(&r).fields()...)
	if errors.Is(err, sql.ErrNoRows) {
		return r, notFound(t.what, args...)
	}
	return r, refine(err)
}

// list reads all rows that where names.
func list[T any, P record[T]](ctx context.Context, tx *Tx, t table, where string, args ...any) ([]T, error) {
	rows, err := tx.tx.QueryContext(ctx, "SELECT "+t.cols+" FROM "+t.name+" "+where, args...)
	if err != nil {
		return nil, refine(err)
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		var r T
		if err := rows.Scan(P(&r).fields()...); err != nil {
			return nil, refine(err)
		}
		out = append(out, r)
	}
	return out, refine(rows.Err())
}

// exec runs a statement and returns how many rows it changed.
func exec(ctx context.Context, tx *Tx, query string, args ...any) (int64, error) {
	res, err := tx.tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, refine(err)
	}
	return res.RowsAffected()
}

// values dereferences fields for an error message.
func values(fields []any) []any {
	out := make([]any, len(fields))
	for i, f := range fields {
		v, err := driver.DefaultParameterConverter.ConvertValue(f)
		if err != nil {
			v = "?"
		}
		out[i] = v
	}
	return out
}

// ms stores a time as Unix milliseconds, the zero time as 0.
type ms struct{ t *time.Time }

func (m ms) Value() (driver.Value, error) { return millis(*m.t), nil }

func (m ms) Scan(src any) error {
	n, ok := src.(int64)
	if !ok {
		return fmt.Errorf("%T is no time", src)
	}
	*m.t = time.Time{}
	if n != 0 {
		*m.t = time.UnixMilli(n).UTC()
	}
	return nil
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// msd stores a duration in milliseconds.
type msd struct{ d *time.Duration }

func (m msd) Value() (driver.Value, error) { return m.d.Milliseconds(), nil }

func (m msd) Scan(src any) error {
	n, ok := src.(int64)
	if !ok {
		return fmt.Errorf("%T is no duration", src)
	}
	*m.d = time.Duration(n) * time.Millisecond
	return nil
}

// text stores JSON as it is.
type text struct{ json *json.RawMessage }

func (t text) Value() (driver.Value, error) { return string(*t.json), nil }

func (t text) Scan(src any) error {
	s, ok := src.(string)
	if !ok {
		return fmt.Errorf("%T is no text", src)
	}
	*t.json = json.RawMessage(s)
	return nil
}

// js stores a list as JSON text.
type js[T any] struct{ list *[]T }

func (j js[T]) Value() (driver.Value, error) {
	if len(*j.list) == 0 {
		return "[]", nil
	}
	text, err := json.Marshal(*j.list)
	return string(text), err
}

func (j js[T]) Scan(src any) error {
	text, ok := src.(string)
	if !ok {
		return fmt.Errorf("%T is no list", src)
	}
	*j.list = nil
	if text == "[]" {
		return nil
	}
	return json.Unmarshal([]byte(text), j.list)
}
