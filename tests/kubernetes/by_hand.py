"""Services whose endpoints are written by hand and answered by the test itself, for tests of the cluster alone."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import http.server
import ssl
import threading

import kubernetes


@dataclasses.dataclass(frozen=True)
class Service:
    """A Service without a selector: `port` leads to `target_port` of each of `addresses`."""

    namespace: str
    name: str
    addresses: tuple[str, ...]
    port: int = 80
    target_port: int = 8000
    headless: bool = False


def publish(api: kubernetes.client.ApiClient, service: Service) -> str:
    """Makes the Service with its endpoints, and gives its address."""
    ports = [kubernetes.client.V1ServicePort(name="main", port=service.port, target_port=service.target_port)]
    made = kubernetes.client.CoreV1Api(api).create_namespaced_service(
        service.namespace,
        kubernetes.client.V1Service(
            metadata=kubernetes.client.V1ObjectMeta(name=service.name),
            spec=kubernetes.client.V1ServiceSpec(ports=ports, cluster_ip="None" if service.headless else None),
        ),
    )
    kubernetes.client.DiscoveryV1Api(api).create_namespaced_endpoint_slice(service.namespace, _endpoints(service))
    assert made.spec is not None
    return str(made.spec.cluster_ip)


@contextlib.contextmanager
def serving(
    address: str, handler: type[http.server.BaseHTTPRequestHandler], port: int = 8000, tls: ssl.SSLContext | None = None
) -> collections.abc.Iterator[None]:
    """Answers HTTP (or HTTPS) on a pod's address."""
    server = http.server.ThreadingHTTPServer((address, port), handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, name=f"server on {address}")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with `answer()`, quietly."""

    def do_GET(self) -> None:
        content, kind = self.answer()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer(self) -> tuple[bytes, str]:
        """Content and its type: here, which address was reached."""
        return str(self.connection.getsockname()[0]).encode(), "text/plain"

    def log_message(self, *_: object) -> None:
        """Says nothing: the test looks at what arrives."""


def _endpoints(service: Service) -> kubernetes.client.V1EndpointSlice:
    labels = {"kubernetes.io/service-name": service.name}
    return kubernetes.client.V1EndpointSlice(
        metadata=kubernetes.client.V1ObjectMeta(name=service.name, labels=labels),
        address_type="IPv4",
        endpoints=[kubernetes.client.V1Endpoint(addresses=[address]) for address in service.addresses],
        ports=[kubernetes.client.DiscoveryV1EndpointPort(name="main", port=service.target_port)],
    )
