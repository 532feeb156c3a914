"""Certificates of a test cluster: two authorities and what they sign. Never used for anything that outlives a test."""

from __future__ import annotations

import dataclasses
import datetime as dt
import ipaddress
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import oid

from tests.kubernetes.cluster import layout as layouts

# Certificates are read by clocks only, and a test may turn its own clock: the span covers any of them.
_NOT_BEFORE = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_NOT_AFTER = dt.datetime(2099, 1, 1, tzinfo=dt.UTC)


@dataclasses.dataclass(frozen=True)
class Subject:
    """Who a certificate is for: common name, organisations (Kubernetes' groups), host names and addresses."""

    name: str
    groups: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    authority: bool = False


@dataclasses.dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def issue(self, subject: Subject) -> Pair:
        """Signs a new key of `subject`."""
        key = ec.generate_private_key(ec.SECP256R1())
        return Pair(_certificate(subject, key.public_key(), self.certificate.subject, self.key), key)

    def write(self, layout: layouts.Layout, name: str) -> None:
        layout.certificate(name).write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        write_key(layout.key(name), self.key)


def authority(name: str) -> Pair:
    """Makes an authority that signs itself."""
    subject = Subject(name, authority=True)
    key = ec.generate_private_key(ec.SECP256R1())
    return Pair(_certificate(subject, key.public_key(), _name(subject), key), key)


def write_key(path: pathlib.Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Writes a key in the form that Kubernetes reads for TLS and for tokens of service accounts alike."""
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )


def _certificate(
    subject: Subject, key: ec.EllipticCurvePublicKey, issuer: x509.Name, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=subject.authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(_key_usage(authority=subject.authority), critical=True)
    )
    if not subject.authority:
        purposes = [oid.ExtendedKeyUsageOID.SERVER_AUTH, oid.ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if subject.hosts:
        names = x509.SubjectAlternativeName([_host(host) for host in subject.hosts])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signer, hashes.SHA256())


def _name(subject: Subject) -> x509.Name:
    groups = [x509.NameAttribute(oid.NameOID.ORGANIZATION_NAME, group) for group in subject.groups]
    return x509.Name([*groups, x509.NameAttribute(oid.NameOID.COMMON_NAME, subject.name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
