"""The own gRPC front: gRPC over gpu_worker.http2, messages by protobuf's C core, everything else in Python."""
