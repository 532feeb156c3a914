"""What the HTTP and the gRPC front share: datatypes, parameter rules, and the way to the engine."""
