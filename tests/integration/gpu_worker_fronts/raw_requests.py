"""The bytes of requests as they go over a socket, to be cut, repeated and left unfinished."""

from __future__ import annotations

import json
import struct

import h2.config
import h2.connection

from protos.inference.v2 import predict_pb2

PATH = "/inference.GRPCInferenceService/ModelInfer"


def http(elements: int = 4, model: str = "text", count: int = 1) -> bytes:
    """So many infer requests in a row, of so many numbers, or strings of 250 characters for `text`."""
    datatype, one = ("BYTES", "x" * 250) if model == "text" else ("FP32", 1.0)
    entry = {"name": "INPUT", "shape": [elements // 4, 4], "datatype": datatype, "data": [one] * elements}
    body = json.dumps({"inputs": [entry]}).encode()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head.encode() + body) * count


def grpc(elements: int = 4, model: str = "text", count: int = 1) -> bytes:
    """A whole connection's worth: so many calls of a client that never reads a word."""
    datatype, wire = ("BYTES", struct.pack("<I", 250) + b"x" * 250) if model == "text" else ("FP32", bytes(4))
    message = predict_pb2.ModelInferRequest(model_name=model, raw_input_contents=[wire * elements])
    message.inputs.add(name="INPUT", datatype=datatype, shape=[elements // 4, 4])
    raw = message.SerializeToString()
    body = b"\0" + len(raw).to_bytes(4) + raw
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    head = [(":method", "POST"), (":scheme", "http"), (":path", PATH), (":authority", "h")]
    head += [("content-type", "application/grpc"), ("te", "trailers")]
    for _ in range(count):
        stream = client.get_next_available_stream_id()
        client.send_headers(stream, head)
        for at in range(0, len(body), 2**14):
            client.send_data(stream, body[at : at + 2**14], end_stream=at + 2**14 >= len(body))
    said: bytes = client.data_to_send()
    return said
