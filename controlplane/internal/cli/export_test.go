package cli

// NewRoot is the whole command.
var NewRoot = newRoot

// For tests of what is printed.
var (
	ShowCopyLog = showCopyLog
	JobProgress = jobProgress
)
