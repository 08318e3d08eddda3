"""What an operator does to topics in mid-run: settings, rights, removal. And who leads a partition."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from typing import Any, Final

from tests.kafka import Cluster

WAIT_SECONDS: Final = 30.0
ASK_SECONDS: Final = 3.0
USER: Final = "kernel"
PASSWORD: Final = "hunter2hunter2"
_module: Final = "org.apache.kafka.common.security.plain.PlainLoginModule"
GUARDED: Final[Mapping[str, object]] = {
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
    "sasl.enabled.mechanisms": "PLAIN",
    "listener.name.proxied.plain.sasl.jaas.config": f'{_module} required user_{USER}="{PASSWORD}";',
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
}
"""Settings of brokers whose proxied door asks for a password, and behind it for rights; by the other door one may do all."""
LOGIN: Final = {
    "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": USER, "sasl.password": PASSWORD,
}  # fmt: skip


class Admin:
    """By the door where one may do all."""

    def __init__(self, cluster: Cluster) -> None:
        self._api: Any = importlib.import_module("confluent_kafka.admin")
        self._kafka: Any = importlib.import_module("confluent_kafka")
        self._bootstrap = cluster.bootstrap
        self.client = self._connected()

    def _connected(self) -> Any:
        return self._api.AdminClient({"bootstrap.servers": self._bootstrap, "log_level": 0})

    def set(self, topic: str, **settings: object) -> None:
        """Topic settings, with `_` for `.`."""
        entries = [
            self._api.ConfigEntry(
                name.replace("_", "."), str(value), incremental_operation=self._api.AlterConfigOpType.SET
            )
            for name, value in settings.items()
        ]  # fmt: skip
        resource = self._api.ConfigResource(self._api.ResourceType.TOPIC, topic, incremental_configs=entries)
        _done(self.client.incremental_alter_configs([resource]))

    def delete(self, *topics: str) -> None:
        _done(self.client.delete_topics(list(topics)))

    def make(self, topic: str, brokers: list[int], **settings: object) -> None:
        """A topic of one partition on these brokers; the first leads."""
        config = {name.replace("_", "."): str(value) for name, value in settings.items()}
        new = self._api.NewTopic(topic, num_partitions=1, replica_assignment=[brokers], config=config)
        _done(self.client.create_topics([new]))
        self.led(topic, brokers[0])

    def _partition(self, topic: str) -> Any:
        """What the brokers that answer say of the topic's partition; None when it has none."""
        until = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                found = self.client.list_topics(topic, timeout=ASK_SECONDS).topics[topic]
                return found.partitions.get(0)
            except self._kafka.KafkaException:
                if time.monotonic() > until:
                    raise
                # A client stays with a broker that is paused; a new one asks around.
                self.client = self._connected()

    def leader(self, topic: str) -> int:
        """The leader, or -1."""
        found = self._partition(topic)
        leader: int = -1 if found is None else found.leader
        return leader

    def in_sync(self, topic: str) -> list[int]:
        found = self._partition(topic)
        return [] if found is None else sorted(found.isrs)

    def led(self, topic: str, *brokers: int, seconds: float = WAIT_SECONDS) -> int:
        """Return when one of these brokers leads."""
        until = time.monotonic() + seconds
        while (leader := self.leader(topic)) not in brokers:
            assert time.monotonic() < until, f"{topic} is led by {leader}"
            time.sleep(0.1)
        return leader

    def synced(self, topic: str, brokers: list[int], seconds: float = WAIT_SECONDS) -> None:
        """Return when exactly these brokers are in sync."""
        until = time.monotonic() + seconds
        while (found := self.in_sync(topic)) != sorted(brokers):
            assert time.monotonic() < until, f"in sync for {topic} are {found}"
            time.sleep(0.1)

    def elect_preferred(self, topic: str) -> None:
        """The first replica leads again: a change of leaders that nobody has to die for."""
        where = self._kafka.TopicPartition(topic, 0)
        self.client.elect_leaders(self._kafka.ElectionType.PREFERRED, [where]).result(WAIT_SECONDS)

    def _acl(self, kind: str, name: str, word: str, *, allow: bool) -> Any:
        api = self._api
        pattern = api.ResourcePatternType.PREFIXED if kind == "TOPIC" and allow else api.ResourcePatternType.LITERAL
        permission = api.AclPermissionType.ALLOW if allow else api.AclPermissionType.DENY
        return api.AclBinding(api.ResourceType[kind], name, pattern, f"User:{USER}", "*", api.AclOperation[word], permission)

    def grant_all(self, prefix: str) -> None:
        words = ("CREATE", "DESCRIBE", "DESCRIBE_CONFIGS", "READ", "WRITE")
        acls = [self._acl("TOPIC", prefix, word, allow=True) for word in words]
        _done(self.client.create_acls([*acls, self._acl("GROUP", "memos", "READ", allow=True)]))

    def revoke(self, topic: str, word: str) -> None:
        _done(self.client.create_acls([self._acl("TOPIC", topic, word, allow=False)]))

    def grant_again(self, topic: str, word: str) -> None:
        binding = self._acl("TOPIC", topic, word, allow=False)
        _done(self.client.delete_acls([
            self._api.AclBindingFilter(
                binding.restype, binding.name, binding.resource_pattern_type, binding.principal, binding.host,
                binding.operation, binding.permission_type,
            )
        ]))  # fmt: skip


def _done(futures: Mapping[Any, Any]) -> None:
    for future in futures.values():
        future.result(WAIT_SECONDS)
