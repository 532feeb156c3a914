"""The gRPC front: V2 over gRPC. It parses and answers; it never computes."""
