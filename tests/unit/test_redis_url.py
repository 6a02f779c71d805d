"""What --redis may say, where its password comes from, and which namespace follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from noded.config import Config, ConfigError, RedisUrl, read_password, storage_namespace, without_secrets
from noded.config.redis_url import parse


@pytest.mark.parametrize(
    ("text", "url", "shown"),
    [
        ("h", RedisUrl((("h", 6379),)), "redis://h:6379"),
        ("h:1", RedisUrl((("h", 1),)), "redis://h:1"),
        ("redis://me@h:1/3", RedisUrl((("h", 1),), "me", 3), "redis://me@h:1/3"),
        ("rediss://[::1]:7/", RedisUrl((("::1", 7),), tls=True), "rediss://[::1]:7"),
        (
            "redis+sentinel://a:1,b/main",
            RedisUrl((("a", 1), ("b", 26379)), service="main"),
            "redis+sentinel://a:1,b:26379/main",
        ),
        (
            "rediss+sentinel://me@a/main/2",
            RedisUrl((("a", 26379),), "me", 2, True, "main"),
            "rediss+sentinel://me@a:26379/main/2",
        ),
    ],
)
def test_forms(text: str, url: RedisUrl, shown: str) -> None:
    assert parse(text) == url == parse(shown) == parse(url)
    assert str(url) == shown


@pytest.mark.parametrize(
    "text",
    ["", "http://h", "redis://", "redis://a,b", "redis://h/x", "redis://h:70000", "redis+sentinel://a", "h/1/2", "a b"]
    + ["redis://h?db=1", "redis+sentinel://a//", "redis://a@b@c", "unix:///tmp/x"],
)
def test_what_is_refused_says_what_to_give(text: str, tmp_path: Path) -> None:
    env = {"NODED_HOME": str(tmp_path), "NODED_REDIS": "h"}
    with pytest.raises(ConfigError, match=r"--redis cannot be .*give redis://\[user@\]host"):
        Config.load({"redis": text or " "}, env)


@pytest.mark.parametrize(
    "text", ["redis://:geheim@h", "redis://me:geheim@h", "me:geheim@h:1", "redis://h?password=geheim"]
)
def test_a_password_is_refused_and_not_shown(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a password.*NODED_REDIS_PASSWORD") as caught:
        Config.load({"redis": text}, {"NODED_HOME": str(tmp_path)})
    assert "geheim" not in str(caught.value)


def test_redis_is_the_storage_but_of_private_clusters(tmp_path: Path) -> None:
    env = {"NODED_HOME": str(tmp_path), "NODED_REDIS": "h"}
    assert Config.load({"storage": "memory"}, env).storage == "redis"
    private = Config.load({"private": True}, env)
    assert (private.storage, private.redis) == ("sqlite", None)
    for flags, why in (
        ({"redis_ca": "/ca"}, "rediss://"),
        ({"redis": "rediss://h", "redis_cert": "/c"}, "belong together"),
    ):
        with pytest.raises(ConfigError, match=why):
            Config.load(flags, env)


def test_namespaces(tmp_path: Path) -> None:
    env = {"NODED_HOME": str(tmp_path)}
    assert storage_namespace(Config.load({"cluster": "c"}, env), b"token") == "c"
    env["NODED_REDIS"] = "h"
    one, two = (storage_namespace(Config.load({"cluster": "c"}, env), token) for token in (b"one", b"two"))
    assert one != two and one.startswith("c-") and len(one) == len("c-") + 12
    assert storage_namespace(Config.load({"cluster": "c"}, env), b"one") == one
    assert storage_namespace(Config.load({"storage_namespace": "mine"}, env), b"one") == "mine"


def test_the_password_comes_from_the_file_or_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "password"
    env = {"NODED_REDIS_PASSWORD": "variable"}
    assert read_password(env, None) == "variable"
    assert read_password({}, None) == ""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_password(env, file)
    file.write_text("with space \n")
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_password(env, file)
    file.chmod(0o600)
    assert read_password(env, file) == "with space "
    file.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        read_password(env, file)


def test_others_inherit_no_secrets() -> None:
    env = {"NODED_TOKEN": "t", "NODED_REDIS_PASSWORD": "p", "NODED_REDIS_SENTINEL_PASSWORD": "p", "NODED_HOME": "h"}
    assert without_secrets(env) == {"NODED_HOME": "h"}
