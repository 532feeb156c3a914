//go:build tools

// Package tools names h2spec, so that this module pins it.
package tools

import _ "github.com/summerwind/h2spec/cmd/h2spec"
