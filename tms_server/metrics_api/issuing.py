"""Certificates of the control plane's own: an authority, and what it signs for the server's names.

Takes `now` and answers PEM texts; keeps nothing. Keys come from the operating system's randomness.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import oid

from tms_server.model import errors

AUTHORITY_LIFE = dt.timedelta(days=3650)
SERVING_LIFE = dt.timedelta(days=90)
RENEW_SHARE = 3
"""A certificate is renewed when less than this part of its life is left."""
AUTHORITY = "TMS authority"
"""No host can be called so: a server that bears the name of its authority looks as if it had signed itself."""
CLOCK_SKEW = dt.timedelta(minutes=5)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its key, as PEM."""

    certificate: str
    key: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a server shows and what its clients check it with. `trusted` holds old authorities too while they change."""

    serving: Pair
    authority: Pair
    trusted: str


def issue(names: Sequence[str], now: dt.datetime) -> Bundle:
    """A new authority and a serving certificate for DNS names and addresses; the first name is its subject."""
    authority = _authority(now)
    return Bundle(serving=_serving(names, authority, now), authority=authority, trusted=authority.certificate)


def renewed(bundle: Bundle, names: Sequence[str], now: dt.datetime) -> Bundle:
    """The bundle with whatever is due made anew; the same when nothing is.

    A new authority is trusted beside the old one, so that neither side meets a stranger while it spreads.
    """
    if _due(bundle.authority, now):
        authority = _authority(now)
        trusted = authority.certificate + bundle.authority.certificate
        return Bundle(serving=_serving(names, authority, now), authority=authority, trusted=trusted)
    if _due(bundle.serving, now) or not _covers(bundle.serving, names):
        return dataclasses.replace(bundle, serving=_serving(names, bundle.authority, now))
    return bundle


def due_at(bundle: Bundle) -> dt.datetime:
    """When the first of its certificates is to be renewed."""
    return min(_due_at(bundle.authority), _due_at(bundle.serving))


def check(bundle: Bundle) -> None:
    """Refuses what is no pair of certificate and key; FailedPrecondition."""
    for pair in (bundle.authority, bundle.serving):
        try:
            certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
            key = serialization.load_pem_private_key(pair.key.encode(), password=None)
        except (ValueError, TypeError) as error:
            raise errors.FailedPrecondition(f"not a certificate with its key: {error}") from error
        if certificate.public_key() != key.public_key():
            raise errors.FailedPrecondition("the key does not belong to the certificate")


def _authority(now: dt.datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(oid.NameOID.COMMON_NAME, AUTHORITY)])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    built = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(built.sign(key, hashes.SHA256()), key)


def _serving(names: Sequence[str], authority: Pair, now: dt.datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    signer = serialization.load_pem_private_key(authority.key.encode(), password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise errors.FailedPrecondition("the authority's key is not of an elliptic curve")
    subject = x509.Name([x509.NameAttribute(oid.NameOID.COMMON_NAME, names[0][:64])])
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    built = (
        _builder(subject, issuer.subject, key.public_key(), now, SERVING_LIFE)
        .add_extension(x509.SubjectAlternativeName([_alternative(each) for each in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    return _pair(built.sign(signer, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, life: dt.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + life)
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(), key=text.decode())


def _due(pair: Pair, now: dt.datetime) -> bool:
    return now >= _due_at(pair)


def _due_at(pair: Pair) -> dt.datetime:
    certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - life / RENEW_SHARE


def _covers(pair: Pair, names: Sequence[str]) -> bool:
    certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
    present = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {_alternative(each) for each in names} <= set(present)


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
