"""The TCP handshake: any chunking, no garbage, no flipped bit, no replay."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noded.wire.handshake import ClientHandshake, HandshakeError, ServerHandshake

TOKEN = b"0123456789abcdef" * 4
TARGET = "worker/00ff"


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    """Split `data` at every place in `cuts` (taken modulo its length)."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def feed_all(side: ClientHandshake | ServerHandshake, data: bytes, cuts: list[int]) -> bytes:
    return b"".join(side.feed(chunk) for chunk in chunks(data, cuts))


@given(
    target=st.sampled_from(["node", "peer", "head", "transfer", "node/00", "worker/" + "ab" * 60]),
    cuts=st.lists(st.integers(0, 1000), max_size=200),
    after_client=st.binary(max_size=9000),
    after_server=st.binary(max_size=9000),
)
def test_any_chunking_completes(target: str, cuts: list[int], after_client: bytes, after_server: bytes) -> None:
    client, server = ClientHandshake(TOKEN, target), ServerHandshake(TOKEN)
    assert server.start() == b""
    hello = feed_all(server, client.start(), cuts)
    proof = feed_all(client, hello, cuts)
    assert (client.done, server.done) == (False, False)
    accepted = feed_all(server, proof + after_client, cuts)
    assert accepted == b"\x01"
    assert feed_all(client, accepted + after_server, cuts) == b""
    assert (client.done, server.done) == (True, True)
    assert server.target == target
    assert server.leftover == after_client
    assert client.leftover == after_server


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=20))
def test_garbage_never_completes_the_server(data: bytes, cuts: list[int]) -> None:
    server = ServerHandshake(TOKEN)
    try:
        feed_all(server, data, cuts)
    except HandshakeError:
        with pytest.raises(HandshakeError):  # and a failure is final
            server.feed(b"noded/1 node\n")
    assert not server.done and server.target == ""


@given(data=st.binary(min_size=1, max_size=300))
def test_garbage_after_a_good_preamble_never_completes(data: bytes) -> None:
    server = ServerHandshake(TOKEN)
    server.feed(ClientHandshake(TOKEN, TARGET).start())
    with contextlib.suppress(HandshakeError):
        server.feed(data)
    assert not server.done


@given(data=st.binary(max_size=300))
def test_garbage_never_completes_the_client(data: bytes) -> None:
    client = ClientHandshake(TOKEN, TARGET)
    with contextlib.suppress(HandshakeError):
        assert client.feed(data) == b""
    assert not client.done


@given(message=st.integers(0, 3), bit=st.integers(min_value=0))
def test_a_flipped_bit_never_completes_both(message: int, bit: int) -> None:
    client, server = ClientHandshake(TOKEN, TARGET), ServerHandshake(TOKEN)

    def pass_on(number: int, data: bytes) -> bytes:
        if number != message or not data:
            return data
        place = bit % (len(data) * 8)
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        return bytes(flipped)

    try:
        answer = server.feed(pass_on(0, client.start()))
        answer = client.feed(pass_on(1, answer))
        answer = server.feed(pass_on(2, answer))
        client.feed(pass_on(3, answer))
    except HandshakeError:
        pass
    assert not client.done
    assert not server.done or message == 3


def test_replayed_client_transcript_is_refused() -> None:
    client, server = ClientHandshake(TOKEN, TARGET), ServerHandshake(TOKEN)
    proof = client.feed(server.feed(client.start()))
    assert server.feed(proof) == b"\x01"
    again = ServerHandshake(TOKEN)
    with pytest.raises(HandshakeError) as caught:
        again.feed(client.start() + proof)
    assert caught.value.reason == "bad_token" and not again.done


def test_replayed_server_transcript_is_refused() -> None:
    client, server = ClientHandshake(TOKEN, TARGET), ServerHandshake(TOKEN)
    hello = server.feed(client.start())
    accepted = server.feed(client.feed(hello))
    again = ClientHandshake(TOKEN, TARGET)
    with pytest.raises(HandshakeError) as caught:
        again.feed(hello + accepted)
    assert caught.value.reason == "bad_token" and not again.done


def test_a_proof_for_one_target_is_none_for_another() -> None:
    client, server = ClientHandshake(TOKEN, "transfer"), ServerHandshake(TOKEN)
    hello = server.feed(client.start().replace(b"transfer", b"head", 1))
    with pytest.raises(HandshakeError) as caught:
        client.feed(hello)
    assert caught.value.reason == "bad_token" and not server.done


def test_a_proof_reflected_to_its_maker_is_refused() -> None:
    client, server = ClientHandshake(TOKEN, TARGET), ServerHandshake(TOKEN)
    answer = server.feed(client.start())
    with pytest.raises(HandshakeError):
        server.feed(answer[32:])


def test_wrong_tokens() -> None:
    client, server = ClientHandshake(b"other", TARGET), ServerHandshake(TOKEN)
    with pytest.raises(HandshakeError, match="NODED_TOKEN") as caught:
        client.feed(server.feed(client.start()))
    assert caught.value.reason == "bad_token"
    with pytest.raises(ValueError, match="empty"):
        ServerHandshake(b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "bad_preamble"),
        (b"x", "bad_preamble"),
        (b"noded/x node\n", "bad_preamble"),
        (b"noded/ node\n", "bad_preamble"),
        (b"noded/" + b"1" * 40, "bad_preamble"),
        (b"noded/1 daemon\n", "bad_preamble"),
        (b"noded/1 node/\n", "bad_preamble"),
        (b"noded/1 worker\n", "bad_preamble"),
        (b"noded/1 peer/00\n", "bad_preamble"),
        (b"noded/1 head/00\n", "bad_preamble"),
        (b"noded/1 transfers\n", "bad_preamble"),
        (b"noded/1 node/XYZ\n", "bad_preamble"),
        (b"noded/1 node\r\n", "bad_preamble"),
        (b"noded/2 node\n", "version"),
        (b"noded/01 node\n", "version"),
        (b"noded/1 node/" + b"a" * 124 + b"\n", "oversize"),
        (b"noded/1 node/" + b"a" * 5000, "oversize"),
    ],
)
def test_bad_preambles(data: bytes, reason: str) -> None:
    server = ServerHandshake(TOKEN)
    with pytest.raises(HandshakeError) as caught:
        server.feed(data)
    assert caught.value.reason == reason
    slow = ServerHandshake(TOKEN)
    with pytest.raises(HandshakeError) as caught:
        feed_all(slow, data, list(range(len(data))))
    assert caught.value.reason == reason


def test_longest_target_passes_and_a_longer_one_is_refused_at_home() -> None:
    longest = "node/" + "a" * 123
    client, server = ClientHandshake(TOKEN, longest), ServerHandshake(TOKEN)
    server.feed(client.feed(server.feed(client.start())))
    assert server.target == longest
    for bad in (longest + "a", "node/", "worker", "other", "node/g", "node\n", "peer/00", "heads"):
        with pytest.raises(ValueError, match="target"):
            ClientHandshake(TOKEN, bad)
