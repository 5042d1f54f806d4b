package api

import (
	"slices"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
)

// Row is a row of the table, as tests see it.
type Row struct {
	Procedure string
	Open      bool
	Roles     []auth.Role
}

// Rows is the table.
func Rows() (rows []Row) {
	for _, r := range publicRoutes(Services{}) {
		rows = append(rows, Row{r.procedure, r.roles == nil, slices.Clone(r.roles)})
	}
	return rows
}

// NodeProcedures are the procedures of the device port.
func NodeProcedures() (names []string) {
	for name := range nodeRoutes(NodeServices{}) {
		names = append(names, name)
	}
	return names
}

// Splice is what carries sessions.
var Splice = splice

// Catalogued are the procedures of the catalogue's operations.
func Catalogued() (calls []string) {
	for _, o := range catalogue {
		calls = append(calls, o.calls...)
	}
	return calls
}
