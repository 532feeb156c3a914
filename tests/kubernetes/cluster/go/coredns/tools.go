//go:build tools

// Package tools names CoreDNS, so that this module pins it.
package tools

import _ "github.com/coredns/coredns"
