"""HTTP/2 for servers (RFC 9113) with HPACK (RFC 7541). Knows nothing of gRPC, or of what a request means."""
