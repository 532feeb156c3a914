"""The gRPC face: translation at the edge, nothing decided."""
