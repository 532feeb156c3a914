"""The engine: batching, scheduling, model life. Knows neither HTTP nor gRPC."""
