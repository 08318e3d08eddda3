"""The key store in a topic: keys live and die, old kernels and strangers change nothing, and a shredded key leaves the disk."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.kafka import StartCluster, create_topic

from memos_drivers.stores.base import PAYLOAD
from memos_drivers.stores.memory import MemoryStore
from memos_kernel import crypto, topickeys
from memos_kernel.eventlog.base import Ended
from memos_kernel.eventlog.link import Link
from memos_kernel.eventlog.partition import Appender, Reader, Receipt
from memos_kernel.eventlog.topics import SETTINGS, Erasure
from memos_kernel.events import Checkpoint, Damaged, Slot, pack
from memos_kernel.keystore import Keys, WrongKey
from memos_kernel.topickeys import HEADER_KEY, SLOT_KEY, SLOT_VALUE, ManyRoots, NoRoot, TopicKeys
from memos_kernel.vault import Vault
from memos_syscalls import limits

MASTER, OTHER = b"m" * 32, b"o" * 32
PER_BLOCK = limits.KEY_SLOTS_PER_BLOCK


@pytest.fixture
def link(kafka: str, topic: str) -> Link:
    link = Link.parse(f"kafka://{kafka}/{topic}")
    create_topic(kafka, link.keys, SETTINGS["keys"])
    return link


Opening = Callable[..., TopicKeys]


@pytest.fixture
def opened(link: Link) -> Iterator[Opening]:
    """Opens the key store, as often as asked; the first one makes its root."""
    all_of_them: list[TopicKeys] = []

    def again(*, read_only: bool = False) -> TopicKeys:
        if not all_of_them:
            TopicKeys.create(link, MASTER)
        all_of_them.append(TopicKeys(link, MASTER, read_only=read_only))
        return all_of_them[-1]

    yield again
    for one in all_of_them:
        one.close()


def write(link: Link, *messages: tuple[bytes, bytes | None]) -> None:
    """Put messages into the topic that no key store wrote."""
    appender, receipt = Appender(link, link.keys), Receipt()
    for key, value in messages:
        appender.send(key, value, receipt)
    appender.wait(receipt)
    appender.close()


def everything(link: Link) -> list[tuple[bytes, bytes | None]]:
    reader = Reader(link, link.keys, batch=1000)
    found = [(message.key() or b"", message.value()) for message in reader.to_end()]
    reader.close()
    return found


def value_of(link: Link, slot: Slot) -> bytes:
    return next(value for key, value in everything(link) if key == SLOT_KEY.pack(b"s", *slot) and value is not None)


def signed(keys: TopicKeys, head_seq: int) -> Checkpoint:
    log_id, (seed, _secret) = keys.header.log_id, keys.secrets()
    unsigned = Checkpoint(head_seq, b"h" * 32, b"m" * 32, b"p" * 32, b"d" * 32, 1, b"")
    return unsigned._replace(signature=crypto.Signer(seed).sign(unsigned.signed_bytes(log_id)))


# -- what it keeps -------------------------------------------------------------------------------------------------------


def test_secrets_keys_and_header_come_back(opened: Opening) -> None:
    keys = opened()
    made = dict(keys.prepare(1, 0))
    assert len(made) == len(set(made.values())) == PER_BLOCK
    keys.update(epoch=1)
    keys.update(shred_seq=4, checkpoint=signed(keys, 9))
    keys.destroy([Slot(1, 7)])
    again = opened()
    assert again.secrets() == keys.secrets() and again.header.log_id == keys.header.log_id
    assert all(again.key(slot) == (None if slot.n == 7 else key) for slot, key in made.items())
    assert again.key(Slot(1, PER_BLOCK)) is None and again.key(Slot(2, 0)) is None
    assert (again.header.shred_seq, again.header.epoch) == (4, 1) and again.newest_checkpoint == signed(keys, 9)
    assert again.epochs == [1] and again.highest_epoch == 1 and len(again) == PER_BLOCK - 1
    assert not again.present(Slot(1, 7)) and again.present(Slot(1, 8))
    assert list(again.all_live_slots()) == list(again.live_slots(1)) == [slot for slot in made if slot.n != 7]
    assert again.strangers == 0 and not again.revived


def test_a_vault_works_on_it(opened: Opening) -> None:
    topic_keys = opened()
    keys: Keys = topic_keys
    vault = Vault(keys, 1, keys.header.log_id, MemoryStore().live(PAYLOAD))
    vault.prepare()
    slot = vault.reserve_slot()
    sealed = vault.seal_vector(slot, b"part", b"raw")
    assert sealed is not None
    later = Vault(opened(), 2, keys.header.log_id, MemoryStore().live(PAYLOAD))
    assert later.open_vector(slot, b"part", sealed) == b"raw"
    vault.destroy([slot])
    assert Vault(opened(), 2, keys.header.log_id, MemoryStore().live(PAYLOAD)).open_vector(slot, b"part", sealed) is None


def test_destroying_twice_or_what_never_was_is_nothing(opened: Opening, link: Link) -> None:
    keys = opened()
    keys.prepare(1, 0)
    keys.destroy([Slot(1, 0), Slot(9, 9)])
    before = len(everything(link))
    keys.destroy([Slot(1, 0), Slot(9, 9)])
    keys.destroy([])
    assert len(everything(link)) == before


def test_a_standby_reads_on(opened: Opening) -> None:
    keys = opened()
    standby = opened(read_only=True)
    made = dict(keys.prepare(1, 0))
    keys.update(epoch=1, shred_seq=3)
    assert standby.key(Slot(1, 0)) is None
    standby.refresh()
    assert standby.key(Slot(1, 0)) == made[Slot(1, 0)] and standby.header.shred_seq == 3
    keys.destroy([Slot(1, 0)])
    standby.refresh()
    assert standby.key(Slot(1, 0)) is None
    with pytest.raises(AssertionError):
        standby.destroy([Slot(1, 1)])


def test_a_standby_that_slept_too_long_reads_all_again(opened: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tombstone may have come and been compacted away while it slept."""
    keys = opened()
    made = dict(keys.prepare(1, 0))
    standby = opened(read_only=True)
    standby._table.put(Slot(1, PER_BLOCK), bytes(60))  # pyright: ignore[reportPrivateUsage]
    standby.refresh()
    assert standby.present(Slot(1, PER_BLOCK))
    monkeypatch.setattr(standby, "_read_at", 0.0)
    standby.refresh()
    assert not standby.present(Slot(1, PER_BLOCK)) and standby.key(Slot(1, 5)) == made[Slot(1, 5)]


# -- what it refuses -----------------------------------------------------------------------------------------------------


def test_a_topic_without_a_root_and_no_topic_are_told(link: Link, kafka: str) -> None:
    with pytest.raises(NoRoot, match="holds no keys of a log"):
        TopicKeys(link, MASTER)
    with pytest.raises(NoRoot, match="has no topic"):
        TopicKeys(Link.parse(f"kafka://{kafka}/memos-nowhere"), MASTER, read_only=True)


def test_another_master_key_opens_nothing(link: Link) -> None:
    log_id = TopicKeys.create(link, MASTER)
    for named in (None, log_id):
        with pytest.raises(WrongKey, match="does not open"):
            TopicKeys(link, OTHER, log_id=named)


def test_of_several_roots_the_caller_names_one(link: Link) -> None:
    first, second = TopicKeys.create(link, MASTER), TopicKeys.create(link, MASTER)
    with pytest.raises(ManyRoots) as caught:
        TopicKeys(link, MASTER)
    assert caught.value.log_ids == sorted([first, second])
    one, other = TopicKeys(link, MASTER, log_id=first), TopicKeys(link, MASTER, log_id=second)
    assert one.header.log_id == first and one.secrets() != other.secrets()
    # The loser of the race may write before it knows: its header is not the winner's.
    one.update(epoch=1, shred_seq=5)
    other.update(epoch=1, shred_seq=99)
    again = TopicKeys(link, MASTER, log_id=first)
    assert again.header.shred_seq == 5
    for opened in (one, other, again):
        opened.close()
    with pytest.raises(NoRoot, match="holds no keys of log"):
        TopicKeys(link, MASTER, log_id=b"n" * 16)


def test_a_log_that_is_copied_keeps_its_secrets_and_keys(link: Link) -> None:
    TopicKeys.create(link, MASTER, (b"l" * 16, b"s" * 32, b"x" * 32))
    keys = TopicKeys(link, MASTER)
    keys.adopt([(Slot(3, 4), b"k" * 32)])
    again = TopicKeys(link, MASTER)
    assert again.header.log_id == b"l" * 16 and again.secrets() == (b"s" * 32, b"x" * 32)
    assert again.key(Slot(3, 4)) == b"k" * 32
    keys.close()
    again.close()


# -- who else writes -----------------------------------------------------------------------------------------------------


def test_a_paused_kernel_that_wakes_up_winds_nothing_back(opened: Opening) -> None:
    old = opened()
    old.update(epoch=1, shred_seq=1)
    new = opened()
    new.update(epoch=2)
    new.update(shred_seq=10, checkpoint=signed(new, 20))
    old.update(shred_seq=3, checkpoint=signed(old, 7))
    again = opened()
    assert (again.header.epoch, again.header.shred_seq) == (2, 10)
    assert again.newest_checkpoint == signed(new, 20)


def test_a_new_epoch_removes_the_headers_of_older_ones(opened: Opening, link: Link) -> None:
    for epoch in (1, 2, 3):
        opened().update(epoch=epoch, shred_seq=epoch)
    last = {key: value for key, value in everything(link) if key[:1] == b"h"}
    assert [HEADER_KEY.unpack(key)[2] for key, value in last.items() if value is not None] == [3]
    assert len(last) == 3 and opened().header.shred_seq == 3


def test_a_checkpoint_with_another_signature_is_not_remembered(opened: Opening) -> None:
    keys = opened()
    keys.update(epoch=1, checkpoint=signed(keys, 3))
    keys.update(checkpoint=signed(keys, 8)._replace(head_seq=9))
    assert keys.newest_checkpoint == opened().newest_checkpoint == signed(keys, 3)


def test_a_key_after_its_tombstone_is_dead_and_named(opened: Opening, link: Link) -> None:
    keys = opened()
    keys.prepare(1, 0)
    keys.destroy([Slot(1, 0)])
    assert not opened().revived
    write(link, (SLOT_KEY.pack(b"s", 1, 0), value_of(link, Slot(1, 0))))
    again = opened()
    assert again.key(Slot(1, 0)) is None and again.revived == {Slot(1, 0)}
    again.destroy(list(again.revived))
    assert not again.revived and not opened().revived


def test_messages_of_strangers_change_nothing(opened: Opening, link: Link) -> None:
    keys = opened()
    made = dict(keys.prepare(1, 0))
    keys.update(epoch=1, shred_seq=2)
    header = next(value for key, value in everything(link) if key[:1] == b"h" and value is not None)
    log_id, slot = keys.header.log_id, SLOT_KEY.pack(b"s", 1, 1)
    forged = bytearray(header)
    forged[20] ^= 1
    write(
        link,
        (b"", b"no key"), (b"x", b"unknown"), (b"s" + bytes(3), b"short"), (b"r" + bytes(16), b"\xc1"),
        (b"r" + b"q" * 16, b"not a root"), (HEADER_KEY.pack(b"h", log_id, 1), bytes(forged)),
        (HEADER_KEY.pack(b"h", log_id, 2), header), (HEADER_KEY.pack(b"h", log_id, 3), b""),
        (slot, b"short"), (slot, SLOT_VALUE.pack(1, bytes(8), bytes(60))), (slot, value_of(link, Slot(1, 2))),
        (SLOT_KEY.pack(b"s", 2**62, 0), SLOT_VALUE.pack(1, bytes(8), bytes(60))),
        (SLOT_KEY.pack(b"s", 2**64 - 1, 0), SLOT_VALUE.pack(1, bytes(8), bytes(60))),
    )  # fmt: skip
    again = opened()
    assert again.strangers == 13
    assert all(again.key(slot) == key for slot, key in made.items()) and len(again) == PER_BLOCK
    assert again.header._replace(wrapping_key_id=b"") == keys.header._replace(wrapping_key_id=b"")
    assert again.epochs == [1] and again.highest_epoch == 1


def test_a_slot_that_only_a_stranger_wrote_is_damaged(opened: Opening, link: Link) -> None:
    keys = opened()
    keys.prepare(1, 0)
    write(link, (SLOT_KEY.pack(b"s", 1, 0), None), (SLOT_KEY.pack(b"s", 1, PER_BLOCK), b""))
    keys.adopt([(Slot(1, PER_BLOCK), b"k" * 32)])
    write(link, (SLOT_KEY.pack(b"s", 1, PER_BLOCK + 1), SLOT_VALUE.pack(1, bytes(8), bytes(60))))
    again = opened()
    assert again.key(Slot(1, PER_BLOCK)) == b"k" * 32
    with pytest.raises(Damaged, match="somebody else wrote it"):
        again.key(Slot(1, PER_BLOCK + 1))


def test_a_root_that_comes_last_is_found(opened: Opening, link: Link) -> None:
    """As after compaction, when it was wrapped anew: headers and slots wait for it."""
    keys = opened()
    made = dict(keys.prepare(1, 0))
    keys.update(epoch=1, shred_seq=2)
    messages = everything(link)
    roots = [(key, value) for key, value in messages if key[:1] == b"r"]
    other = Link.parse(f"kafka://{link.brokers}/{link.topic}-2")
    create_topic(link.brokers, other.keys, SETTINGS["keys"])
    twice = (SLOT_KEY.pack(b"s", 1, 0), SLOT_VALUE.pack(1, bytes(8), bytes(60)))
    write(other, *[message for message in messages if message not in roots], twice, *roots, *roots)
    moved = TopicKeys(other, MASTER, read_only=True)
    assert moved.header.shred_seq == 2 and all(moved.key(slot) == key for slot, key in made.items())
    assert moved.strangers == 1
    moved.close()


# -- a broker that is away -----------------------------------------------------------------------------------------------


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def test_destroying_waits_for_the_broker_and_ends_with_close(cluster: StartCluster) -> None:
    brokers = cluster(proxied=True)
    link = Link.parse(f"kafka://{brokers.through}/away")
    create_topic(brokers.bootstrap, link.keys, SETTINGS["keys"])
    TopicKeys.create(link, MASTER)
    keys = TopicKeys(link, MASTER)
    keys.prepare(1, 0)
    brokers.proxies[1].stall()
    thread, raised = in_thread(lambda: keys.destroy([Slot(1, 0)]))
    thread.join(0.5)
    assert thread.is_alive()
    assert keys.key(Slot(1, 0)) is None and keys.key(Slot(1, 1)) is not None, "reading goes on, and what is going is gone"
    brokers.proxies[1].heal()
    thread.join(20)
    assert not thread.is_alive() and not raised
    brokers.proxies[1].cut()
    thread, raised = in_thread(lambda: keys.destroy([Slot(1, 1)]))
    thread.join(0.5)
    assert thread.is_alive()
    began = time.monotonic()
    keys.close()
    thread.join(5)
    assert not thread.is_alive() and isinstance(raised[0], Ended)
    assert time.monotonic() - began < 3


# -- until it is gone ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_after_the_deadline_no_file_of_the_broker_holds_a_shredded_key(cluster: StartCluster) -> None:
    brokers = cluster()
    link = Link.parse(f"kafka://{brokers.bootstrap}/erasure")
    erasure = Erasure(2_000, 2_000, 600_000, 1_000, 1_000)
    settings = {**SETTINGS["keys"], "segment.ms": "2000", "max.compaction.lag.ms": "2000"}
    create_topic(brokers.bootstrap, link.keys, settings)
    TopicKeys.create(link, MASTER)
    keys = TopicKeys(link, MASTER, erasure=erasure)
    keys.prepare(1, 0)
    keys.update(epoch=1)
    shredded, kept = [Slot(1, n) for n in range(0, 100, 3)], Slot(1, 1)
    wrapped = {slot: value_of(link, slot)[-60:] for slot in (*shredded, kept)}
    assert not keys.nudge(), "nothing is to be removed yet"
    keys.destroy(shredded)
    assert {found.slot for found in keys.remains(shredded)} == set(shredded)
    assert on_disk(brokers.directory, wrapped) == set(wrapped)
    assert keys.tombstoned_at is not None and abs(keys.tombstoned_at - time.time_ns()) < 5e9
    deadline = keys.gone_by(keys.tombstoned_at)
    nudges = 0
    while time.time_ns() < deadline:
        time.sleep(0.25)
        nudges += keys.nudge()
    assert nudges == 1
    assert keys.remains([*shredded, kept])[0].slot == kept
    assert on_disk(brokers.directory, wrapped) == {kept}
    keys.close()
    again = TopicKeys(link, MASTER)
    assert len(again) == PER_BLOCK - len(shredded) and again.header.epoch == 1
    again.close()


def test_tombstones_that_keep_coming_do_not_put_off_the_nudge(link: Link) -> None:
    TopicKeys.create(link, MASTER)
    keys = TopicKeys(link, MASTER, erasure=Erasure(1_000, 1_000, 600_000, 1_000, 1_000))
    keys.prepare(1, 0)
    nudged: list[float] = []
    began = time.monotonic()
    for n in range(25):
        if n < 15:
            keys.destroy([Slot(1, n)])
        if keys.nudge():
            nudged.append(time.monotonic() - began)
        time.sleep(0.2)
    assert nudged[0] < 2.5, "a second after the first tombstone, though there are new ones"
    assert len(nudged) >= 2 and nudged[-1] > 3.8, "and a second after the last"
    assert not keys.nudge()
    keys.close()


def on_disk(directory: Path, wrapped: dict[Slot, bytes]) -> set[Slot]:
    """Which of these bytes lie in any file of the brokers."""
    found: set[Slot] = set()
    for folder, _folders, names in os.walk(directory):
        for name in names:
            try:
                with open(os.path.join(folder, name), "rb") as file:
                    data = file.read()
            except FileNotFoundError:
                continue
            found |= {slot for slot, one in wrapped.items() if one in data}
    return found


def test_the_format_of_a_slot_is_what_the_documentation_says() -> None:
    assert SLOT_KEY.size == 17 and SLOT_VALUE.size == 1 + 8 + 60 and HEADER_KEY.size == 25
    assert topickeys.BATCH_MESSAGES >= PER_BLOCK


def test_the_home_is_what_the_newest_epoch_s_header_says(link: Link, opened: Opening) -> None:
    first = opened()
    assert first.header.home_id is None
    first.update(epoch=3, home_id=b"a" * 16)
    stale = opened()
    first.update(epoch=4, home_id=b"b" * 16)
    # A kernel of an older epoch that wakes up knows an older home, however often it says so.
    for seq in range(5):
        stale.update(shred_seq=seq)
    assert opened(read_only=True).header.home_id == b"b" * 16
    first.update(shred_seq=7)
    found = opened(read_only=True).header
    assert (found.epoch, found.shred_seq, found.home_id) == (4, 7, b"b" * 16)


def test_a_header_from_before_logs_could_move_is_read(link: Link, opened: Opening) -> None:
    keys = opened()
    _seed, secret = keys.secrets()
    body: bytes = pack((1, 5, keys.header.log_id, 12, None, 2))
    mac = crypto.mac(crypto.subkey(secret, b"memos key store header"), body)
    write(link, (HEADER_KEY.pack(b"h", keys.header.log_id, 2), body + mac))
    found = opened(read_only=True)
    assert (found.header.epoch, found.header.shred_seq, found.header.home_id, found.strangers) == (2, 12, None, 0)
