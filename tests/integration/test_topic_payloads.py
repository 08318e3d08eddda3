"""Pieces of payloads in a topic: they come back in order, with little memory, and nobody takes a hole for the end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.kafka import Cluster, StartCluster, create_topic

from memos_kernel.eventlog import partition
from memos_kernel.eventlog.base import Ended, OutOfReach
from memos_kernel.eventlog.link import Link
from memos_kernel.eventlog.partition import UNCONFIRMED_BYTES_MAX, NoTopic
from memos_kernel.eventlog.payloadtopic import PayloadTopic
from memos_kernel.eventlog.topics import SETTINGS
from memos_syscalls import limits

PIECE = limits.PAYLOAD_CHUNK_BYTES + 16
Found = list[tuple[bytes, bytes | None, int]]


@pytest.fixture
def link(kafka: str, topic: str) -> Link:
    link = Link.parse(f"kafka://{kafka}/{topic}")
    create_topic(kafka, link.payloads, SETTINGS["payloads"])
    return link


@pytest.fixture
def payloads(link: Link) -> Iterator[PayloadTopic]:
    both_ends = PayloadTopic(link)
    yield both_ends
    both_ends.close()


def read(payloads: PayloadTopic, from_offset: int = 0) -> tuple[Found, int]:
    found: Found = []
    following = payloads.read_on(from_offset, lambda key, value, offset: found.append((key, value, offset)))
    return found, following


def test_pieces_come_back_in_order_and_later_only_the_new_ones(payloads: PayloadTopic) -> None:
    assert read(payloads) == ([], 0)
    pieces = [(os.urandom(16) + index.to_bytes(4, "big"), os.urandom(1000 * index)) for index in range(40)]
    payloads.put(pieces)
    payloads.wait()
    found, following = read(payloads)
    assert found == [(key, value, at) for at, (key, value) in enumerate(pieces)] and following == 40
    assert read(payloads, following) == ([], 40)
    payloads.put([(b"k" * 16, b"one more")])
    payloads.wait()
    assert read(payloads, following) == ([(b"k" * 16, b"one more", 40)], 41)
    assert read(payloads, 39)[1] == 41 and len(read(payloads, 38)[0]) == 3


def test_several_threads_may_put_and_each_waits_for_its_own(payloads: PayloadTopic, link: Link) -> None:
    def put(thread: int) -> None:
        for index in range(20):
            payloads.put([(bytes([thread]) * 16 + index.to_bytes(4, "big"), bytes(1000))])
        payloads.wait()
        other = PayloadTopic(link)
        mine = [key for key, _value, _offset in read(other)[0] if key[0] == thread]
        other.close()
        if mine == [bytes([thread]) * 16 + index.to_bytes(4, "big") for index in range(20)]:
            done.append(thread)

    done: list[int] = []
    threads = [threading.Thread(target=put, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == [0, 1, 2, 3]
    payloads.close()
    with pytest.raises(Ended, match="was closed"):
        payloads.put([(b"k", b"v")])


def test_a_removed_piece_is_told_as_removed(payloads: PayloadTopic) -> None:
    payloads.put([(b"a" * 16, b"a"), (b"b" * 16, b"b")])
    payloads.tombstone([b"a" * 16])
    assert read(payloads, 2) == ([(b"a" * 16, None, 2)], 3)


def test_who_breaks_off_gets_the_same_piece_again(payloads: PayloadTopic) -> None:
    payloads.put([(bytes([at]) * 16, b"x") for at in range(50)])
    payloads.wait()
    seen: list[int] = []

    def sink(_key: bytes, _value: bytes | None, offset: int) -> None:
        if offset == 20:
            raise RuntimeError("the store refused")
        seen.append(offset)

    with pytest.raises(RuntimeError, match="refused"):
        payloads.read_on(0, sink)
    assert seen == list(range(20))
    assert [offset for _key, _value, offset in read(payloads, 20)[0]] == list(range(20, 50))


def peak_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def test_a_large_payload_flows_with_bounded_memory(payloads: PayloadTopic) -> None:
    """128 MiB there and back; what is under way, and what a client holds, is counted in tens of MiB."""
    count = 128 * limits.MIB // PIECE
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    payloads.put((index.to_bytes(20, "big"), bytes([index % 256]) * PIECE) for index in range(count))
    payloads.wait()
    counted = 0

    def sink(key: bytes, value: bytes | None, _offset: int) -> None:
        nonlocal counted
        assert value is not None and len(value) == PIECE and value[0] == int.from_bytes(key, "big") % 256
        counted += 1

    assert payloads.read_on(0, sink) == count == counted
    assert peak_bytes() - before < 100 * limits.MIB


def test_a_foreign_transaction_neither_holds_nor_ends_a_read(payloads: PayloadTopic, link: Link) -> None:
    from confluent_kafka import Producer

    payloads.put([(b"a" * 16, b"a")])
    payloads.wait()
    foreign = Producer({"bootstrap.servers": link.brokers, "transactional.id": link.topic})
    foreign.init_transactions(30)
    foreign.begin_transaction()
    foreign.produce(link.payloads, b"open", b"o" * 16)
    foreign.flush(30)
    found, following = read(payloads)
    assert [value for _key, value, _at in found] == [b"a", b"open"] and following == 2
    foreign.abort_transaction(30)
    # Its marker takes an offset and holds no message.
    until = time.monotonic() + 10
    while (after := read(payloads, following)) == ([], 2) and time.monotonic() < until:
        time.sleep(0.05)
    assert after == ([], 3)


def test_a_topic_that_is_not_there_or_lost_its_end_is_told(
    kafka: str, payloads: PayloadTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "BEHIND_SECONDS", 0.3)
    payloads.put([(b"a" * 16, b"a")])
    payloads.wait()
    with pytest.raises(Ended, match="lost messages, or was made anew"):
        read(payloads, 2)
    nowhere = PayloadTopic(Link.parse(f"kafka://{kafka}/memos-nowhere"))
    with pytest.raises(NoTopic, match="has no topic memos-nowhere"):
        read(nowhere)
    nowhere.close()


def test_a_topic_whose_beginning_was_deleted_is_told(kafka: str, topic: str) -> None:
    from confluent_kafka import TopicPartition

    link = Link.parse(f"kafka://{kafka}/{topic}")
    create_topic(kafka, link.payloads, {"cleanup.policy": "delete", "retention.ms": "-1"})
    payloads = PayloadTopic(link)
    payloads.put([(bytes([at]) * 16, b"x") for at in range(10)])
    payloads.wait()
    admin: Any = link.admin()
    for gone in admin.delete_records([TopicPartition(link.payloads, 0, 5)]).values():
        gone.result(30)
    with pytest.raises(Ended, match="holds offsets 5 to 10, but was read up to 3"):
        read(payloads, 3)
    assert [offset for _key, _value, offset in read(payloads)[0]] == [5, 6, 7, 8, 9]
    payloads.close()


# -- a broker that is away -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hurt(clusters: StartCluster) -> Cluster:
    return clusters(proxied=True)


def test_what_is_put_waits_for_the_broker_in_bounded_memory_and_ends_with_close(hurt: Cluster) -> None:
    link = Link.parse(f"kafka://{hurt.through}/bounded")
    create_topic(hurt.bootstrap, link.payloads, SETTINGS["payloads"])
    payloads = PayloadTopic(link)
    payloads.put([(b"a" * 16, b"a")])
    payloads.wait()
    hurt.proxies[1].stall()
    handed: list[int] = []
    raised: list[BaseException] = []

    def pieces() -> Iterator[tuple[bytes, bytes]]:
        for index in range(100):
            handed.append(index)
            yield index.to_bytes(20, "big"), bytes(PIECE)

    def put() -> None:
        try:
            payloads.put(pieces())
        except Ended as error:
            raised.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    thread.join(1)
    assert thread.is_alive() and len(handed) == UNCONFIRMED_BYTES_MAX // PIECE + 1
    hurt.proxies[1].heal()
    thread.join(30)
    assert not thread.is_alive() and not raised
    payloads.wait()
    assert len(read(payloads)[0]) == 101
    hurt.proxies[1].cut()
    thread = threading.Thread(target=put)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    began = time.monotonic()
    payloads.close()
    thread.join(5)
    assert not thread.is_alive() and raised and time.monotonic() - began < 3
    hurt.proxies[1].heal()


def test_reading_gives_up_when_no_broker_answers(hurt: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "SILENCE_SECONDS", 1.0)
    link = Link.parse(f"kafka://{hurt.through}/silent")
    create_topic(hurt.bootstrap, link.payloads, SETTINGS["payloads"])
    payloads = PayloadTopic(link)
    payloads.put([(b"a" * 16, b"a")])
    payloads.wait()
    assert read(payloads)[1] == 1
    hurt.proxies[1].stall()
    with pytest.raises(OutOfReach, match="does not answer"):
        read(payloads, 1)
    hurt.proxies[1].heal()
    assert read(payloads, 0)[1] == 1
    payloads.close()
