"""Time-stamping authorities on this machine: certificates made here, time-stamps by `openssl ts`."""

import dataclasses
import datetime
import pathlib
import subprocess

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_CONFIG = """
[tsa]
default_tsa = authority
[authority]
serial = {folder}/serial
default_policy = 1.2.3.4.1
digests = sha256, sha512
signer_digest = sha256
accuracy = secs:1
tsa_name = yes
ess_cert_id_alg = sha256
"""
TIME_STAMPING = [x509.ExtendedKeyUsageOID.TIME_STAMPING]


@dataclasses.dataclass(frozen=True)
class Certified:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self):
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self):
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def certified(name, issuer=None, days=(-10, 3650), purposes=None):
    """A certificate that is valid from and to so many days from now; a root without an issuer."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    is_authority = purposes is None
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not is_authority, key_cert_sign=is_authority, crl_sign=is_authority, **usage
            ),
            True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=True)
    return Certified(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def time_stamp(request, signer, folder, chain=b""):
    """The reply of `openssl ts` to a request."""
    folder = pathlib.Path(folder)
    files = {"request": request, "signer": signer.pem, "key": signer.key_pem, "chain": chain}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "config").write_text(_CONFIG.format(folder=folder))
    if not (folder / "serial").exists():
        (folder / "serial").write_text("01\n")
    command = [
        "openssl",
        "ts",
        "-reply",
        "-config",
        "config",
        "-queryfile",
        "request",
        "-signer",
        "signer",
        "-inkey",
        "key",
    ]
    command += ["-out", "reply"] + (["-chain", "chain"] if chain else [])
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / "reply").read_bytes()
