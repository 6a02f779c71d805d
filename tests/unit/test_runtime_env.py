"""Runtime environments before they travel: fields, packages, resolving; and how a worker enters one."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import stat
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest

from noded.client.environments import Environments
from noded.exceptions import RuntimeEnvSetupError
from noded.runtime_env import RuntimeEnv, RuntimeEnvConfig, archive, merge, validate
from noded.runtime_env.files import walk
from noded.runtime_env.packages import Resolver, resolve
from noded.runtime_env.prepared import Prepared, env_id, package_uris, parse, setup_hook, setup_timeout
from noded.worker.environment import expand

LATER = 10**10
"""Nanoseconds, after which nobody doubts a file's times."""


class Uploads(dict[str, bytes]):
    """Stands for the node: what was uploaded, by URI."""

    count = 0

    def __call__(self, uri: str, data: bytes) -> None:
        self.count += 1
        self[uri] = data

    def names(self, uri: str) -> list[str]:
        return [info.filename for info in self.infos(uri)]

    def infos(self, uri: str) -> list[zipfile.ZipInfo]:
        with zipfile.ZipFile(io.BytesIO(self[uri])) as found:
            return found.infolist()


def write_tree(root: Path, *files: str) -> Path:
    """Of "path" or "path=content"."""
    for each in files:
        name, _, text = each.partition("=")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def names(root: Path, excludes: list[str] | None = None) -> list[str]:
    return [file.name for file in walk(str(root), excludes or [])]


# --- fields ----------------------------------------------------------------------------------------------


def test_what_is_given_is_kept_and_nothing_is_left_out(tmp_path: Path) -> None:
    given = {"env_vars": {"A": "1"}, "working_dir": str(tmp_path), "excludes": ["*.log"], "py_modules": [json]}
    assert validate(given) == given
    assert validate(given)["env_vars"] is not given["env_vars"]
    nothing = {"env_vars": {}, "working_dir": "", "py_modules": [], "pip": None, "uv": [], "excludes": None}
    assert validate(None) == validate({}) == validate(nothing) == {}


@pytest.mark.parametrize(
    ("env", "error", "text"),
    [
        ([], TypeError, "must be a dict"),
        ({1: 2}, TypeError, "fields of runtime_env are strings"),
        ({"env_var": {}}, ValueError, "no field 'env_var'; did you mean 'env_vars'"),
        ({"bogus": 1}, ValueError, "'bogus'.*known are env_vars"),
        ({"env_vars": ["A"]}, TypeError, "'env_vars'.*not a list"),
        ({"env_vars": {"A": 1}}, TypeError, "value of A must be a string, not a int"),
        ({"env_vars": {1: "A"}}, TypeError, "name 1 must be a string"),
        ({"env_vars": {"A=B": ""}}, ValueError, "'A=B'"),
        ({"env_vars": {"A": "\0"}}, ValueError, "'A' cannot be set"),
        ({"env_vars": {"A": "\udc80"}}, ValueError, "not Unicode"),
        ({"env_vars": {"NODED_MARK": "x"}}, ValueError, "NODED_MARK"),
        ({"working_dir": 1}, TypeError, "'working_dir'.*not a int"),
        ({"working_dir": Path("/tmp")}, TypeError, "'working_dir'.*PosixPath"),
        ({"working_dir": "/no/such"}, ValueError, "'working_dir'.*no /no/such"),
        ({"working_dir": __file__}, ValueError, "must be a directory or a file .zip"),
        ({"working_dir": "https://x.org/a.zip"}, NotImplementedError, "'working_dir'.*https"),
        ({"working_dir": "bogus://x"}, ValueError, "bogus://x is no URI"),
        ({"working_dir": "pkg://../../etc.zip"}, ValueError, "is no URI"),
        ({"working_dir": "file:///no/such.zip"}, ValueError, "no /no/such.zip"),
        ({"py_modules": "/tmp"}, TypeError, "'py_modules'. must be a list"),
        ({"py_modules": [1]}, TypeError, "'py_modules'. holds 1"),
        ({"py_modules": ["s3://a/b.zip"]}, NotImplementedError, "'py_modules'.*s3"),
        ({"py_modules": [sys]}, ValueError, "module sys has no source"),
        ({"excludes": "*.log"}, TypeError, "'excludes'"),
        ({"excludes": [1]}, TypeError, "'excludes'"),
        ({"worker_process_setup_hook": 3}, TypeError, "worker_process_setup_hook"),
        ({"worker_process_setup_hook": "setup"}, ValueError, "'module.function'"),
        ({"config": 3}, TypeError, "'config'"),
        ({"config": {"bogus": 1}}, ValueError, "no setting 'bogus'"),
        ({"config": {"setup_timeout_seconds": "a"}}, TypeError, "setup_timeout_seconds"),
        ({"config": {"setup_timeout_seconds": True}}, TypeError, "setup_timeout_seconds"),
        ({"config": {"setup_timeout_seconds": 0}}, ValueError, "setup_timeout_seconds"),
        ({"config": {"eager_install": 1}}, TypeError, "eager_install"),
        ({"config": {"log_files": "a"}}, TypeError, "log_files"),
        ({"pip": ["torch"]}, NotImplementedError, "'pip'.*installing packages"),
        ({"conda": "env"}, NotImplementedError, "'conda'"),
        ({"image_uri": "x"}, NotImplementedError, "'image_uri'.*containers"),
    ],
)
def test_what_is_wrong_is_told_by_name(env: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        validate(env)


def test_merge_takes_the_childs_fields_and_both_ones_variables() -> None:
    parent = {"env_vars": {"A": "parent", "B": "parent"}, "working_dir": "pkg://" + "0" * 32 + ".zip"}
    child = {"env_vars": {"B": "child"}, "py_modules": ["x"]}
    merged = merge(parent, child)
    assert merged["env_vars"] == {"A": "parent", "B": "child"}
    assert merged["working_dir"] == parent["working_dir"] and merged["py_modules"] == ["x"]
    assert parent["env_vars"]["B"] == "parent"
    assert merge({}, {}) == {}


# --- RuntimeEnv ------------------------------------------------------------------------------------------


def test_runtime_env_is_a_checked_dict(tmp_path: Path) -> None:
    env = RuntimeEnv(env_vars={"A": "1"}, working_dir=str(tmp_path), pip=None)
    assert env == {"env_vars": {"A": "1"}, "working_dir": str(tmp_path)} == env.to_dict()
    assert env.has_working_dir() and env.working_dir() == str(tmp_path) and env.env_vars() == {"A": "1"}
    assert env.py_modules() == [] and not env.has_pip()
    env["env_vars"] = {"B": "2"}
    env.set("excludes", ["x"])
    assert env["env_vars"] == {"B": "2"} and env.get("excludes") == ["x"]
    for wrong in ({"env_vars": 3}, {"excludes": 3}):
        with pytest.raises(TypeError):
            RuntimeEnv(**wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            env.set(*next(iter(wrong.items())))
    with pytest.raises(ValueError, match="bogus"):
        RuntimeEnv(bogus=1)
    assert RuntimeEnv(bogus=1, _validate=False) == {"bogus": 1}
    assert RuntimeEnv.deserialize(env.serialize()) == env
    assert validate(env) == env


def test_runtime_env_travels_to_where_its_paths_are_unknown(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    env = RuntimeEnv(working_dir=str(gone), config={"setup_timeout_seconds": 5})
    gone.rmdir()
    copy = pickle.loads(pickle.dumps(env))
    assert type(copy) is RuntimeEnv and copy == env and type(copy["config"]) is RuntimeEnvConfig


def test_config_has_all_its_settings() -> None:
    full = {"setup_timeout_seconds": 600, "eager_install": False, "log_files": []}
    assert RuntimeEnvConfig(eager_install=False) == full
    assert RuntimeEnv(config={"eager_install": False})["config"] == full
    assert RuntimeEnv(config=RuntimeEnvConfig(eager_install=False))["config"].to_dict() == full
    assert RuntimeEnvConfig.default_config() == {**full, "eager_install": True}
    with pytest.raises(ValueError, match="more than zero"):
        RuntimeEnvConfig(setup_timeout_seconds=-2)


def test_importing_it_is_light() -> None:
    heavy = ("asyncio", "cloudpickle", "pathspec", "zipfile", "numpy")
    code = f"import sys, noded.runtime_env as r; r.RuntimeEnv(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# --- which files -----------------------------------------------------------------------------------------


def test_files_are_sorted_and_what_nobody_wants_is_left_out(tmp_path: Path) -> None:
    write_tree(tmp_path, "b.py", "a/z.py", "a/b/c.py", ".git/HEAD", "venv/bin/python", "a/__pycache__/z.pyc")
    (tmp_path / "empty").mkdir()
    assert names(tmp_path) == ["a/", "a/b/", "a/b/c.py", "a/z.py", "b.py", "empty/"]
    assert "venv/bin/python" in names(tmp_path, ["!venv"])


def test_excludes_are_gitignore_patterns(tmp_path: Path) -> None:
    write_tree(tmp_path, "data.bin", "src/data.bin", "src/main.py", "logs/a.log", "logs/keep.log")
    assert names(tmp_path, ["/data.bin"]) == [
        "logs/", "logs/a.log", "logs/keep.log", "src/", "src/data.bin", "src/main.py",
    ]  # fmt: skip
    assert names(tmp_path, ["*.bin", "logs/*", "!logs/keep.log"]) == ["logs/", "logs/keep.log", "src/", "src/main.py"]
    assert names(tmp_path, ["src/**/*.py", "logs/"]) == ["data.bin", "src/", "src/data.bin"]
    assert names(tmp_path, ["*"]) == []
    with pytest.raises(ValueError, match=r"excludes.*pattern"):
        names(tmp_path, ["!"])


def test_ignore_files_count_from_where_they_are(tmp_path: Path) -> None:
    write_tree(tmp_path, "a.log", "keep.log", "made.py", "sub/b.log", "sub/local.txt", "local.txt", "x.ign")
    (tmp_path / ".gitignore").write_text("# logs\n*.log\n!keep.log\nmade.py\n")
    (tmp_path / ".rayignore").write_text("*.ign\n")
    (tmp_path / ".nodedignore").write_text("!made.py\n")
    (tmp_path / "sub" / ".gitignore").write_text("/local.txt\n!b.log\n")
    files = [name for name in names(tmp_path) if "ignore" not in name]
    assert files == ["keep.log", "local.txt", "made.py", "sub/", "sub/b.log"]
    assert "keep.log" not in names(tmp_path, ["*.log"])
    assert "a.log" in names(tmp_path, ["!a.log"])


def test_links_are_followed_and_never_in_circles(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", "data/a.txt=here")
    outside = write_tree(tmp_path / "outside", "b.txt=there")
    (root / "link.txt").symlink_to("data/a.txt")
    (root / "beyond").symlink_to(outside)
    (root / "data" / "up").symlink_to("..")
    (root / "broken").symlink_to("/no/such")
    (root / "self").symlink_to("self")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "socket"))
        assert names(root) == ["beyond/", "beyond/b.txt", "data/", "data/a.txt", "link.txt"]
    uploads = Uploads()
    uri = package_uris(parse(resolve({"working_dir": str(root)}, uploads)))[0]
    assert all(not stat.S_ISLNK(info.external_attr >> 16) for info in uploads.infos(uri))
    with zipfile.ZipFile(io.BytesIO(uploads[uri])) as found:
        assert found.read("link.txt") == b"here" and found.read("beyond/b.txt") == b"there"


# --- packages --------------------------------------------------------------------------------------------


def test_equal_trees_make_equal_packages(tmp_path: Path) -> None:
    uploads = Uploads()
    uris = []
    for name in ("one", "two"):
        root = write_tree(tmp_path / name, "a/b.py=x = 1", "run.sh=#!/bin/sh")
        (root / "run.sh").chmod(0o755)
        os.utime(root / "a" / "b.py", (len(uris) * 1e6, len(uris) * 1e6))
        uris += package_uris(parse(resolve({"working_dir": str(root)}, uploads)))
    assert uris[0] == uris[1] and len(uploads) == 1
    modes = {info.filename: info.external_attr >> 16 & 0o777 for info in uploads.infos(uris[0])}
    assert modes["run.sh"] == 0o755 and not modes["a/b.py"] & 0o111
    (tmp_path / "two" / "run.sh").chmod(0o644)
    assert package_uris(parse(resolve({"working_dir": str(tmp_path / "two")}, uploads))) != uris[:1]


def test_a_module_is_packed_under_its_name_and_a_working_dir_is_not(tmp_path: Path) -> None:
    write_tree(tmp_path, "pack/__init__.py", "pack/sub/x.py", "single.py=s = 1")
    module = ModuleType("pack")
    module.__path__ = [str(tmp_path / "pack")]
    single = ModuleType("single")
    single.__file__ = str(tmp_path / "single.py")
    uploads = Uploads()
    modules = [str(tmp_path / "pack"), module, str(tmp_path / "single.py"), single]
    env = validate({"working_dir": str(tmp_path / "pack"), "py_modules": modules, "excludes": ["x.py"]})
    first, same, third, fourth, directory = package_uris(parse(resolve(env, uploads)))
    assert first == same and third == fourth
    assert "pack/__init__.py" in uploads.names(first) and "pack/sub/" in uploads.names(first)
    assert uploads.names(third) == ["single.py"]
    assert "__init__.py" in uploads.names(directory) and "sub/x.py" not in uploads.names(directory)


def make_zip(path: Path, *entries: str | zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for entry in entries:
            out.writestr(entry, "content")
    return path


def test_zips_travel_as_they_are_and_served_ones_without_their_top(tmp_path: Path) -> None:
    uploads = Uploads()
    plain = make_zip(tmp_path / "plain.zip", "top/a.py", "top/sub/b.py")
    package = make_zip(tmp_path / "package.zip", "pack/__init__.py", "pack/a.py")

    def packed(env: dict[str, Any]) -> list[str]:
        return uploads.names(package_uris(parse(resolve(validate(env), uploads)))[0])

    assert packed({"working_dir": str(plain)}) == ["top/a.py", "top/sub/b.py"]
    assert packed({"py_modules": [str(plain)]}) == ["top/a.py", "top/sub/b.py"]
    assert packed({"working_dir": f"file://{plain}"}) == ["a.py", "sub/b.py"]
    assert packed({"py_modules": [f"file://{plain}"]}) == ["a.py", "sub/b.py"]
    assert packed({"working_dir": f"file://{package}"}) == ["__init__.py", "a.py"]
    assert packed({"py_modules": [f"file://{package}"]}) == ["pack/__init__.py", "pack/a.py"]
    two = make_zip(tmp_path / "two.zip", "x/a.py", "y/b.py")
    assert packed({"working_dir": f"file://{two}"}) == ["x/a.py", "y/b.py"]


def test_wheels_are_unpacked_as_installed_or_refused_for_another_python(tmp_path: Path) -> None:
    uploads = Uploads()
    inside = ("thing/__init__.py", "thing-1.0.data/purelib/extra.py", "thing-1.0.data/scripts/run")
    wheel = make_zip(tmp_path / "thing-1.0-py3-none-any.whl", *inside)
    uri = package_uris(parse(resolve(validate({"py_modules": [str(wheel)]}), uploads)))[0]
    assert sorted(uploads.names(uri)) == ["extra.py", "thing/__init__.py"]
    for name, text in (("thing-1.0-cp27-cp27m-win32.whl", "wheel is for cp27-cp27m-win32"), ("x.whl", "Invalid")):
        other = make_zip(tmp_path / name, "thing/__init__.py")
        with pytest.raises(RuntimeEnvSetupError, match=text):
            resolve(validate({"py_modules": [str(other)]}), uploads)


def link_entry() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("entry", "text"),
    [("../evil", "leads out"), ("/etc/evil", "leads out"), ("a/../../b", "leads out"), (link_entry(), "symbolic link")],
)
def test_archives_that_reach_out_are_refused_before_they_travel(tmp_path: Path, entry: Any, text: str) -> None:
    uploads = Uploads()
    evil = make_zip(tmp_path / "evil.zip", "good.py", entry)
    with pytest.raises(RuntimeEnvSetupError, match=text):
        resolve({"working_dir": str(evil)}, uploads)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"no zip at all")
    with pytest.raises(RuntimeEnvSetupError, match=r"broken.zip.*cannot be read as a zip"):
        resolve({"working_dir": str(broken)}, uploads)
    assert not uploads


def test_what_is_too_big_is_told_with_the_biggest_files(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", "small.txt=x")
    (root / "big.bin").write_bytes(os.urandom(300_000))
    (root / "ignored.bin").write_bytes(os.urandom(900_000))
    uploads = Uploads()
    resolver = Resolver(uploads, limit=200_000)
    env = {"working_dir": str(root), "excludes": ["ignored.bin"]}
    with pytest.raises(RuntimeEnvSetupError, match=r"more than 0.2 MB.*files are big.bin \(0.3 MB\), small.*excludes"):
        resolver.resolve(env)
    assert resolver.resolve({**env, "excludes": ["*.bin"]})
    (tmp_path / "big.zip").write_bytes(bytes(300_000))
    with pytest.raises(RuntimeEnvSetupError, match=r"big\.zip makes a package of more than"):
        resolver.resolve({"working_dir": str(tmp_path / "big.zip")})
    assert uploads.count == 1


def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad-\xff")).write_text("")
    with pytest.raises(RuntimeEnvSetupError, match="not UTF-8"):
        resolve({"working_dir": str(tmp_path)}, Uploads())


# --- resolving -------------------------------------------------------------------------------------------


def test_a_directory_is_packed_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs: list[str] = []
    pack = archive.pack
    monkeypatch.setattr(archive, "pack", lambda *args: packs.append("") or pack(*args))
    root = write_tree(tmp_path, "a.py=a = 1", "b.py=b = 1")
    uploads = Uploads()
    clock = SimpleNamespace(late=LATER)
    resolver = Resolver(uploads, now=lambda: max(os.stat(p).st_ctime_ns for p in root.iterdir()) + clock.late)
    env = {"working_dir": str(root)}
    first = resolver.resolve(env)
    assert {resolver.resolve(env) for _ in range(1000)} == {first}
    assert resolver.resolve({**env, "env_vars": {"A": "1"}}) != first
    assert len(packs) == uploads.count == 1
    (root / "a.py").write_text("a = 2")
    changed = resolver.resolve(env)
    assert changed != first and len(packs) == uploads.count == 2
    (root / "b.py").rename(root / "c.py")
    assert resolver.resolve(env) not in (first, changed) and len(packs) == 3
    # What has just been written may change again within the same tick of the clock.
    clock.late = 0
    (root / "a.py").write_text("a = 3")
    resolver.resolve(env)
    resolver.resolve(env)
    assert len(packs) == 5 and uploads.count == 4


def test_an_upload_that_fails_is_tried_again(tmp_path: Path) -> None:
    uploads = Uploads()
    failures = [ConnectionError("the daemon is away")]

    def upload(uri: str, data: bytes) -> None:
        if failures:
            raise failures.pop()
        uploads(uri, data)

    resolver = Resolver(upload)
    env = {"working_dir": str(write_tree(tmp_path, "a.py"))}
    with pytest.raises(ConnectionError):
        resolver.resolve(env)
    assert package_uris(parse(resolver.resolve(env))) == list(uploads)


def test_resolved_environments_are_equal_text_with_equal_ids(tmp_path: Path) -> None:
    uploads = Uploads()
    root = str(write_tree(tmp_path, "a.py"))
    one = resolve(validate({"env_vars": {"A": "1", "B": "2"}, "working_dir": root, "excludes": ["x"]}), uploads)
    two = resolve(validate({"working_dir": root, "env_vars": {"B": "2", "A": "1"}, "config": {}}), uploads)
    assert one == two and env_id(one) == env_id(two) and len(env_id(one)) == 16
    assert env_id(one) != env_id(resolve({"env_vars": {"A": "1"}}, uploads))
    assert resolve({}, uploads) == resolve(validate({"config": {"setup_timeout_seconds": 3}}), uploads) == ""
    assert env_id("") == ""
    # What comes from a parent is resolved already, and passes.
    again = resolve(validate(merge(parse(one), {"env_vars": {"C": "3"}})), uploads)
    assert package_uris(parse(again)) == package_uris(parse(one))
    assert parse(again)["env_vars"] == {"A": "1", "B": "2", "C": "3"}
    timed = parse(resolve(validate({"env_vars": {"A": "1"}, "config": {"setup_timeout_seconds": -1}}), uploads))
    assert setup_timeout(timed) is None and setup_timeout(parse(one)) == 600


def test_setup_hooks_travel_by_name_or_by_value() -> None:
    seen: list[int] = []
    number = 41
    by_value = resolve(
        validate({"worker_process_setup_hook": lambda: seen.append(number + 1) or number + 1}), Uploads()
    )
    name, pickled = setup_hook(parse(by_value))
    assert name == "" and pickle.loads(pickled)() == 42
    assert resolve(validate(parse(by_value)), Uploads()) == by_value
    by_name = resolve(validate({"worker_process_setup_hook": "package.module.function"}), Uploads())
    assert setup_hook(parse(by_name)) == ("package.module.function", b"")
    with pytest.raises(RuntimeEnvSetupError, match="cannot be pickled"), socket.socket() as sock:
        resolve({"worker_process_setup_hook": lambda: sock.close()}, Uploads())


class Hook:
    """Two of them look the same and do different things."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self) -> int:
        return self.number

    def __repr__(self) -> str:
        return "Hook()"


def test_what_a_process_submits_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = Uploads()
    environments = Environments(uploads)
    assert environments.resolve(None) == ""
    for place in ("one", "two"):
        write_tree(tmp_path / place / "work", f"where.txt={place}")
    monkeypatch.chdir(tmp_path / "one")
    found = [environments.resolve({"working_dir": "work"}) for _ in range(100)]
    write_tree(tmp_path / "one" / "work", "result.txt")  # as tasks of a program may
    assert {*found, environments.resolve({"working_dir": "work"})} == {found[0]} and uploads.count == 1
    monkeypatch.chdir(tmp_path / "two")
    assert environments.resolve({"working_dir": "work"}) != found[0] and uploads.count == 2
    environments.now = found[0]
    merged = parse(environments.resolve({"env_vars": {"A": "1"}}))
    assert merged == {**parse(found[0]), "env_vars": {"A": "1"}}
    assert environments.resolve(None) == found[0]


def test_hooks_that_look_the_same_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noded.client.environments._REMEMBERED", 10)
    environments = Environments(Uploads())
    for number in range(100):
        resolved = environments.resolve({"worker_process_setup_hook": Hook(number)})
        assert pickle.loads(setup_hook(parse(resolved))[1]).number == number


# --- entering --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expanded"),
    [
        ("${A}/bin:$A", "one/bin:one"),
        ("${NOPE}|$NOPE", "|$NOPE"),
        ("$$ $ ${ {x} ${A", "$$ $ ${ {x} ${A"),
        ("plain", "plain"),
    ],
)
def test_variables_in_values_are_expanded_as_in_ray(value: str, expanded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "one")
    monkeypatch.delenv("NOPE", raising=False)
    assert expand(value) == expanded


def enter_in_new_process(prepared: Prepared, code: str, **env: str) -> dict[str, Any]:
    """What `code` leaves in `seen` after the environment was entered; `error`: what `enter` raised."""
    program = """
        import json, os, subprocess, sys, msgspec
        from noded.exceptions import RuntimeEnvSetupError
        from noded.runtime_env.prepared import Prepared
        from noded.worker.environment import enter
        seen = {"error": ""}
        try:
            enter(msgspec.msgpack.decode(bytes.fromhex(sys.argv[1]), type=Prepared))
            exec(sys.argv[2])
        except RuntimeEnvSetupError as error:
            seen["error"] = str(error)
        print(json.dumps(seen))
    """
    argv = [sys.executable, "-c", textwrap.dedent(program), msgspec.msgpack.encode(prepared).hex(), code]
    path = os.pathsep.join([os.getcwd(), *([env["PYTHONPATH"]] if "PYTHONPATH" in env else [])])
    done = subprocess.run(
        argv, env={**os.environ, **env, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_worker_finds_directory_modules_and_variables(tmp_path: Path) -> None:
    work = write_tree(tmp_path / "work", "helper.py=where = 'work'", "data.txt=42")
    module = write_tree(tmp_path / "module", "helper.py=where = 'module'", "other.py")
    extra = write_tree(tmp_path / "extra", "late.py")
    prepared = Prepared(
        {"B": "${A}-$BASE", "A": "1", "TZ": "UTC+3", "PYTHONPATH": f"{extra}:${{PYTHONPATH}}"},
        str(work),
        [str(module), str(work)],
    )
    code = """
import helper, late, time
child = "import helper, late, os; print(helper.where, os.environ['B'])"
seen.update(cwd=os.getcwd(), data=open("data.txt").read(), helper=helper.where, first=sys.path[:3], b=os.environ["B"],
    zone=time.timezone, child=subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout)
"""
    seen = enter_in_new_process(prepared, code, BASE="base")
    assert seen["error"] == ""
    assert seen["cwd"] == str(work) and seen["data"] == "42"
    assert seen["first"] == [str(module), str(work), str(extra)] and seen["helper"] == "module"
    assert seen["b"] == "1-base" and seen["zone"] == 3 * 3600
    assert seen["child"] == "work 1-base\n" or seen["child"] == "module 1-base\n"


def test_a_setup_hook_runs_in_the_environment(tmp_path: Path) -> None:
    work = write_tree(tmp_path, "hooks.py=import os\ndef setup(): os.environ['HOOKED'] = os.getcwd() + os.environ['A']")
    prepared = Prepared({"A": "1"}, str(work), [str(work)], "hooks.setup")
    seen = enter_in_new_process(prepared, "seen['hooked'] = os.environ['HOOKED']")
    assert seen == {"error": "", "hooked": f"{work}1"}


def test_what_fails_when_it_is_entered_is_told(tmp_path: Path) -> None:
    import cloudpickle

    def fails() -> None:
        raise LookupError("no licence")

    for prepared, *texts in (
        (Prepared(pickled_hook=cloudpickle.dumps(fails)), "setup_hook", "fails", "LookupError: no licence"),
        (Prepared(pickled_hook=cloudpickle.dumps(sys.exit)), "exit failed", "SystemExit"),
        (Prepared(setup_hook="no.such"), "setup_hook no.such failed", "No module named 'no'"),
        (Prepared(setup_hook="os.no_such"), "has no attribute 'no_such'"),
        (Prepared(pickled_hook=b"rubbish"), "(not loaded)", "UnpicklingError"),
        (Prepared(working_dir=str(tmp_path / "gone")), "gone cannot be entered", "submit again"),
    ):
        error = enter_in_new_process(prepared, "")["error"]
        assert all(text in error for text in texts), error
