"""The local Apache Kafka with the locks that people put on it: TLS, SASL, mutual TLS, ACLs.

The unlocked listener stays open beside the others, for the tests' own reading and writing.
"""

from pathlib import Path

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.kafka.certificates import CertificateAuthority
from tests.kafka.local_broker import LocalBroker, free_port

#: May do everything, however it proves who it is.
USER = "skydelta"
PASSWORD = "open sesame"
CLIENT_KEY_PASSWORD = "sesame seed"

_PACKAGE = "org.apache.kafka.common.security"
_LISTENERS = {"SCRAM": "SASL_SSL", "PLAIN": "SASL_SSL", "OAUTH": "SASL_SSL", "MTLS": "SSL"}


class SecureBroker(LocalBroker):
    """A broker with one listener for each way in.

    Parameters
    ----------
    folder : Path
        Where its data, configuration, certificates and log go.

    Attributes
    ----------
    authority : CertificateAuthority
        Signed the broker's certificate, and those of the clients that MTLS lets in.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.authority = CertificateAuthority(folder / "certificates")
        taken = {self.port, self.controller_port}
        self._ports: dict[str, int] = {}
        for name in _LISTENERS:
            port = free_port()
            while port in taken:
                port = free_port()
            taken.add(port)
            self._ports[name] = port
        self.properties |= self._locks()

    def at(self, listener: str) -> str:
        """Return the address of a listener: SCRAM, PLAIN, OAUTH or MTLS."""
        return f"127.0.0.1:{self._ports[listener]}"

    def start(self, timeout: float = 90.0) -> None:
        """Start it, and let `USER` in."""
        super().start(timeout)
        self.set_scram_password(USER, PASSWORD)

    def set_scram_password(self, user: str, password: str) -> None:
        """Make a SCRAM user, or change its password."""
        changes = [
            UserScramCredentialUpsertion(
                user, ScramCredentialInfo(mechanism, 4096), password.encode()
            )
            for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512)
        ]
        admin = self._admin()  # kept while its answers are waited for
        for change in changes:  # the broker takes one change of a user at a time
            for done in admin.alter_user_scram_credentials([change]).values():
                done.result(30)

    def allow(self, user: str, *kinds: ResourceType) -> None:
        """Let a user do everything with every resource of some kinds."""
        bindings = [
            AclBinding(
                kind,
                "kafka-cluster" if kind is ResourceType.BROKER else "*",
                ResourcePatternType.LITERAL,
                f"User:{user}",
                "*",
                AclOperation.ALL,
                AclPermissionType.ALLOW,
            )
            for kind in kinds
        ]
        admin = self._admin()
        for done in admin.create_acls(bindings).values():
            done.result(30)

    def allow_everything(self, user: str) -> None:
        """Let a user do what the service needs."""
        self.allow(user, ResourceType.TRANSACTIONAL_ID, ResourceType.GROUP, ResourceType.TOPIC)

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 2})

    def _locks(self) -> dict[str, str]:
        own = self.authority.issue("broker")
        listeners = ",".join(
            [
                f"PLAINTEXT://{self.bootstrap}",
                f"CONTROLLER://127.0.0.1:{self.controller_port}",
                *(f"{name}://{self.at(name)}" for name in _LISTENERS),
            ]
        )
        protocols = {"CONTROLLER": "PLAINTEXT", "PLAINTEXT": "PLAINTEXT", **_LISTENERS}
        scram = f"{_PACKAGE}.scram.ScramLoginModule required;"
        plain = f'{_PACKAGE}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        bearer = (
            f"{_PACKAGE}.oauthbearer.OAuthBearerLoginModule required "
            'unsecuredLoginStringClaim_sub="broker";'
        )
        return {
            "listeners": listeners,
            "advertised.listeners": listeners,
            "listener.security.protocol.map": ",".join(f"{k}:{v}" for k, v in protocols.items()),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(own.both.resolve()),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.path.resolve()),
            "listener.name.mtls.ssl.client.auth": "required",
            "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.scram.scram-sha-256.sasl.jaas.config": scram,
            "listener.name.scram.scram-sha-512.sasl.jaas.config": scram,
            "listener.name.plain.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.plain.plain.sasl.jaas.config": plain,
            "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
            "listener.name.oauth.oauthbearer.sasl.jaas.config": bearer,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:ANONYMOUS;User:{USER};User:CN={USER}",
        }
