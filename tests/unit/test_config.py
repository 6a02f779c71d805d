"""Settings from four sources, the machine's limits, the token, and finding nodes."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from noded import config as settings
from noded.config import OPTIONS, Config, ConfigError, NodeInfo, find_nodes, load_or_create_token, read_token
from noded.config.machine import cpu_count, total_memory

ROOT = Path(__file__).resolve().parents[2]
GB = 10**9


@pytest.fixture
def env(tmp_path: Path) -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="nd-", dir="/tmp") as short:  # a socket's path must fit
        yield {"NODED_HOME": str(tmp_path / "home"), "NODED_RUN_DIR": f"{short}/run"}


@pytest.fixture
def toml(env: dict[str, str]) -> Path:
    home = Path(env["NODED_HOME"])
    home.mkdir()
    return home / "noded.toml"


def test_defaults(env: dict[str, str]) -> None:
    config = Config.load({}, env)
    assert (config.head, config.cluster, config.node_name, config.host) == (False, "default", "node-1", "127.0.0.1")
    assert (config.address, config.advertise, config.node_ip_address) == (None, None, None)
    assert config.num_cpus >= 1 and config.num_gpus is None
    assert config.resources == {} and config.labels == {}
    assert config.object_store_memory + config.memory <= total_memory()
    assert settings.node_dir(config) == Path(env["NODED_RUN_DIR"], "default", "node-1")
    assert settings.log_dir(config) == Path(env["NODED_HOME"], "clusters", "default", "nodes", "node-1", "logs")
    head = Config.load({"head": True}, env)
    assert head.node_name == "head" and settings.node_dir(head) == Path(env["NODED_RUN_DIR"], "default", "head")
    assert settings.log_dir(head) == Path(env["NODED_HOME"], "clusters", "default", "logs")
    assert settings.log_dir(replace(config, private=True)) == settings.node_dir(config) / "logs"
    with pytest.raises(FrozenInstanceError):
        config.port = 1  # type: ignore[misc]


def test_port_is_fixed_only_for_an_ordinary_head(env: dict[str, str]) -> None:
    assert Config.load({"head": True}, env).port == 8265
    assert Config.load({}, env).port == 0
    assert Config.load({"head": True, "private": True}, env).port == 0
    assert Config.load({"head": True, "port": "1"}, env).port == 1


def test_a_head_joins_nobody(env: dict[str, str]) -> None:
    env["NODED_ADDRESS"] = "10.0.0.1:6379"
    assert Config.load({}, env).address == "10.0.0.1:6379"
    assert Config.load({"head": True}, env).address is None


def test_a_node_without_name_takes_the_first_that_does_not_run_here(env: dict[str, str]) -> None:
    run = Path(env["NODED_RUN_DIR"])
    state = settings.process_state(os.getpid())
    assert state is not None
    for number, started in ((1, state[1]), (2, state[1] - 1), (3, state[1])):
        _node(run / "default" / f"node-{number}", node=f"node-{number}", started=started)
    assert Config.load({}, env).node_name == "node-2", "its daemon has ended: it is started again"
    assert Config.load({"cluster": "other"}, env).node_name == "node-1"
    assert Config.load({"node_name": "node-1"}, env).node_name == "node-1"


def test_flags_win_over_environment_over_file_over_defaults(env: dict[str, str], toml: Path) -> None:
    toml.write_text('port = 1\nhost = "file"\ncluster = "file"\nlog-level = "debug"')
    env |= {"NODED_PORT": "2", "NODED_HOST": "env", "NODED_CLUSTER": ""}
    config = Config.load({"port": "3", "storage": None, "head": False, "allowed_host": ()}, env)
    assert (config.port, config.host, config.cluster, config.log_level) == (3, "env", "file", "debug")
    assert config.storage == "sqlite"
    assert settings.chosen_cluster({}, env) == "file"


def test_a_named_file_replaces_the_one_at_home(env: dict[str, str], toml: Path, tmp_path: Path) -> None:
    toml.write_text("port = 1")
    (tmp_path / "a.toml").write_text("port = 2")
    (tmp_path / "b.toml").write_text("port = 3")
    env["NODED_CONFIG"] = str(tmp_path / "a.toml")
    assert Config.load({}, env).port == 2
    assert Config.load({"config": str(tmp_path / "b.toml")}, env).port == 3
    with pytest.raises(ConfigError, match=r"c\.toml, given with --config or NODED_CONFIG, does not exist"):
        Config.load({"config": str(tmp_path / "c.toml")}, env)


def test_every_option_by_flag_variable_and_file(env: dict[str, str], toml: Path) -> None:
    examples: dict[str, tuple[str, object]] = {
        "head": ("true", True),
        "address": ("noded://head.example:6379", "head.example:6379"),
        "cluster": ("a-1", "a-1"),
        "node_name": ("n_1", "n_1"),
        "host": ("::", "::"),
        "port": ("7", 7),
        "node_ip_address": ("10.0.0.7", "10.0.0.7"),
        "advertise": ("gate.example:70", "gate.example:70"),
        "num_cpus": ("1.5", 1.5),
        "num_gpus": ("2", 2.0),
        "memory": ("2GB", 2 * GB),
        "memory_threshold": ("0.8", 0.8),
        "object_store_memory": ("512MiB", 512 << 20),
        "object_spilling_directory": ("/a, /b/c", (Path("/a"), Path("/b/c"))),
        "object_spilling_limit": ("1GB", GB),
        "object_spilling_threads": ("2", 2),
        "resources": ('{"disk": 2}', {"disk": 2.0}),
        "labels": ("zone=a, kind=", {"zone": "a", "kind": ""}),
        "storage": ("memory", "memory"),
        "redis": ("r.example/2", settings.redis_url.RedisUrl((("r.example", 6379),), db=2)),
        "redis_password_file": ("/redis/password", Path("/redis/password")),
        "redis_ca": ("/redis/ca.pem", Path("/redis/ca.pem")),
        "redis_cert": ("/redis/node.pem", Path("/redis/node.pem")),
        "redis_key": ("/redis/node.key", Path("/redis/node.key")),
        "storage_namespace": ("one.two", "one.two"),
        "daemon_grace": ("5", 5.0),
        "head_grace": ("7.5", 7.5),
        "tls_cert": ("/tls/node.pem", Path("/tls/node.pem")),
        "tls_key": ("/tls/node.key", Path("/tls/node.key")),
        "tls_ca": ("~/ca.pem", Path.home() / "ca.pem"),
        "allowed_host": ("A.example, b.example", ("a.example", "b.example")),
        "sd_file": ("/var/lib/noded/nodes.json", Path("/var/lib/noded/nodes.json")),
        "supervise": ("true", True),
        "given_spawner": ("true", True),
        "log_level": ("debug", "debug"),
        "log_worker_max_bytes": ("20MB", 20_000_000),
        "log_node_max_bytes": ("1GiB", 1 << 30),
        "log_retention_days": ("0.5", 0.5),
        "log_format": ("json", "json"),
        "no_telemetry": ("1", True),
    }
    assert set(examples) == {option.name for option in OPTIONS if not option.hidden}
    for option in OPTIONS:
        if option.hidden:
            continue
        text, value = examples[option.name]
        # These come together only.
        others = {name: examples[name][0] for name in examples if name.startswith("tls_") and name != option.name}
        flags = others if option.name.startswith("tls_") else {}
        assert getattr(Config.load(flags | {option.name: text}, env), option.name) == value
        assert getattr(Config.load(flags, env | {option.variable: text}), option.name) == value
        quoted = text.replace('"', '\\"')
        toml.write_text(f'{option.name} = "{quoted}"')
        assert getattr(Config.load(flags, env), option.name) == value
        toml.unlink()


def test_file_values_may_have_their_own_types(env: dict[str, str], toml: Path) -> None:
    toml.write_text(
        'head = true\nnum_cpus = 3\nmemory = 1000\nallowed_host = ["a", "b"]\n[resources]\ndisk = 2\nlicence = 0.5'
    )
    config = Config.load({}, env)
    assert (config.head, config.num_cpus, config.memory, config.allowed_host) == (True, 3.0, 1000, ("a", "b"))
    assert config.resources == {"disk": 2.0, "licence": 0.5}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("17", 17),
        ("2GB", 2 * GB),
        ("2 gb", 2 * GB),
        ("2G", 2 * GB),
        ("512MiB", 512 << 20),
        ("1e9", GB),
    ]
    + [("1.5k", 1500), ("9007199254740993", 2**53 + 1), ("3TiB", 3 << 40)],
)
def test_sizes(env: dict[str, str], text: str, size: int) -> None:
    assert Config.load({"memory": text}, env).memory == size


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", "65536"), ("port", "-1"), ("port", "x"), ("port", 1.5), ("port", True)]
    + [("memory", "2XB"), ("memory", "-1"), ("memory", "1e30"), ("memory", "1e99"), ("memory", True)]
    + [("num_cpus", "inf"), ("num_cpus", "nan"), ("num_cpus", "-1"), ("num_cpus", [1])]
    + [("cluster", "A"), ("cluster", "a/b"), ("cluster", "x" * 41), ("cluster", 3), ("node_name", "..")]
    + [("resources", "["), ("resources", "[1]"), ("resources", '{"CPU": 1}'), ("resources", '{"a": "b"}')]
    + [("labels", text) for text in ("zone", "=a", "a=b,a=c", '{"a": 1}', "noded.io/x=y", "ray.io/node-id=z", "{")]
    + [("resources", '{"": 1}'), ("storage", "redis"), ("allowed_host", "a,,b"), ("allowed_host", "http://a")]
    + [("address", "head"), ("address", "head:x"), ("address", "http://a:1"), ("head_grace", "-1")]
    + [("tls_cert", "node.pem"), ("tls_key", 3), ("tls_ca", "")]
    + [("head", "maybe"), ("log_level", "loud"), ("daemon_grace", "soon"), ("host", "a b")],
)
def test_a_wrong_value_names_source_key_and_form(env: dict[str, str], name: str, value: object) -> None:
    option = next(option for option in OPTIONS if option.name == name)
    with pytest.raises(ConfigError) as caught:
        Config.load({name: value}, env)
    assert str(caught.value) == f"command line: {option.flag} cannot be {value!r}: give {option.form}"


def test_a_wrong_value_elsewhere_names_it_there(env: dict[str, str], toml: Path) -> None:
    with pytest.raises(ConfigError, match="environment: NODED_PORT cannot be 'x': give a whole number"):
        Config.load({}, env | {"NODED_PORT": "x"})
    toml.write_text('num_cpus = "many"')
    with pytest.raises(ConfigError, match=rf"file {toml}: num_cpus cannot be 'many': give a number"):
        Config.load({}, env)


def test_tls_files_come_together(env: dict[str, str]) -> None:
    assert Config.load({}, env).tls is None
    given = {"tls_cert": "/c", "tls_key": "/k", "tls_ca": "/a"}
    assert Config.load(given, env).tls == (Path("/c"), Path("/k"), Path("/a"))
    with pytest.raises(ConfigError, match="tls_cert and tls_ca without tls_key: TLS needs all of --tls-cert"):
        Config.load({"tls_cert": "/c"}, env | {"NODED_TLS_CA": "/a"})
    with pytest.raises(ConfigError, match=r"tls_key without tls_cert and tls_ca: .*give none of them"):
        Config.load({"tls_key": "/k"}, env)


def test_unknown_keys_and_likely_slips_are_refused(env: dict[str, str], toml: Path) -> None:
    with pytest.raises(ConfigError, match="NODED_NUM_CPU is no setting, NODED_NUM_CPUS is"):
        Config.load({}, env | {"NODED_NUM_CPU": "1"})
    with pytest.raises(ConfigError, match="command line: unknown key 'num_cpu'; did you mean 'num_cpus'"):
        Config.load({"num_cpu": 1}, env)
    Config.load(
        {}, env | {"NODED_MARK": "a", "NODED_GPUS_WITHOUT_ASKING": "b", "NODED_TOKEN": "c", "NODED_MY_OWN": "d"}
    )
    toml.write_text("prot = 1")
    with pytest.raises(ConfigError, match=rf"file {toml}: unknown key 'prot'; did you mean 'port'"):
        Config.load({}, env)
    toml.write_text("ready_fd = 1")
    with pytest.raises(ConfigError, match="unknown key 'ready_fd'; known are"):
        Config.load({}, env)
    toml.write_text("port = ")
    with pytest.raises(ConfigError, match=rf"file {toml} is not TOML"):
        Config.load({}, env)


# --- the machine -----------------------------------------------------------------------------------------


def _put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_control_groups_version_2(tmp_path: Path) -> None:
    root = _put(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b",
            "sys/fs/cgroup/a/cpu.max": "50000 100000",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000",
            "sys/fs/cgroup/a/memory.max": "5000",
            "sys/fs/cgroup/a/b/memory.max": "max",
        },
    )
    assert cpu_count(root) == 1
    assert total_memory(root) == 5000


def test_control_groups_version_1_with_the_path_of_the_host(tmp_path: Path) -> None:
    root = _put(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "10000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "7000",
        },
    )
    assert cpu_count(root) == 1
    assert total_memory(root) == 7000


def test_no_limits(tmp_path: Path) -> None:
    root = _put(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu:/../..\n5:memory:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert cpu_count(root) == cpu_count(tmp_path / "none") == len(os.sched_getaffinity(0))
    assert total_memory(root) == total_memory(tmp_path / "none")


@pytest.mark.parametrize(
    ("total", "store"),
    [(10 * GB, 3 * GB), (1000 * GB, 64 * GB), (200 * 10**6, 80 * 10**6), (100 * 10**6, 50 * 10**6)],
)
def test_object_store_is_a_share_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], total: int, store: int
) -> None:
    monkeypatch.setattr("noded.config.machine.total_memory", lambda: total)
    config = Config.load({}, env)
    assert config.object_store_memory == store
    assert config.memory == (total - store) * 90 // 100
    assert Config.load({"object_store_memory": 10 * total}, env).memory == 0


# --- directories -----------------------------------------------------------------------------------------


def test_directories_follow_from_the_environment() -> None:
    short = Path(f"/tmp/noded-{os.getuid()}")
    assert settings.home({"HOME": "/h"}) == Path("/h/.noded")
    assert settings.home({"HOME": "/h", "NODED_HOME": "/n"}) == Path("/n")
    assert settings.run_base({}) == short
    assert settings.run_base({"XDG_RUNTIME_DIR": "/run/user/7"}) == Path("/run/user/7/noded")
    assert settings.run_base({"XDG_RUNTIME_DIR": "/run/user/7", "NODED_RUN_DIR": "/r"}) == Path("/r")
    flag = Config.load({"run_dir": "/x"}, {"NODED_RUN_DIR": "/r", "NODED_HOME": "/n"})
    assert flag.run_base == Path("/x")


def test_long_run_directories_are_replaced_by_short_ones_of_their_own() -> None:
    short = Path(f"/tmp/noded-{os.getuid()}")
    long = [{"NODED_RUN_DIR": "/" + letter * 50} for letter in "rs"]
    assert settings.run_base(long[0]) == Path("/" + "r" * 50)
    replaced = [settings.run_base(env, "c" * 40) for env in long]
    assert [base.parent for base in replaced] == [short, short] and replaced[0] != replaced[1]


def test_names_too_long_for_a_socket() -> None:
    with pytest.raises(ConfigError, match="together too long"):
        Config.load({"cluster": "c" * 40, "node_name": "n" * 40}, {"NODED_RUN_DIR": "/r" * 30})


def test_node_directory_is_made_private(env: dict[str, str], tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = settings.make_node_dir(Config.load({}, env))
    finally:
        os.umask(before)
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent, path.parent.parent)] == [0o700] * 3
    path.parent.chmod(0o777)
    with pytest.raises(ConfigError, match=rf"other users can write to {path.parent}: run `chmod go-w"):
        settings.make_node_dir(Config.load({}, env))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the directory"):
        settings.make_dir(tmp_path / "file" / "below")


# --- the token -------------------------------------------------------------------------------------------


def test_token_is_created_once_for_everybody(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert read_token(home, {}) is None
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(lambda _: load_or_create_token(home, {}), range(16)))
    (token,) = tokens
    assert len(token) == 64 and bytes.fromhex(token.decode())
    assert read_token(home, {}) == token
    assert [path.name for path in home.iterdir()] == ["token"]
    assert stat.S_IMODE((home / "token").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_token_from_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-the-named-file\n")
    (tmp_path / "secret").chmod(0o600)
    named = {"NODED_TOKEN_FILE": str(tmp_path / "secret")}
    assert load_or_create_token(tmp_path / "home", named) == b"from-the-named-file"
    assert load_or_create_token(tmp_path / "home", named | {"NODED_TOKEN": "from-environment"}) == b"from-environment"
    assert not (tmp_path / "home").exists()


def test_bad_tokens_are_refused_without_being_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NODED_TOKEN holds no token") as caught:
        read_token(tmp_path, {"NODED_TOKEN": "tooshort"})
    assert "tooshort" not in str(caught.value)
    with pytest.raises(ConfigError, match="missing cannot be read: No such file"):
        read_token(tmp_path, {"NODED_TOKEN_FILE": str(tmp_path / "missing")})
    token = load_or_create_token(tmp_path, {})
    (tmp_path / "token").chmod(0o640)
    with pytest.raises(ConfigError, match=rf"run `chmod 600 {tmp_path}/token`") as caught:
        load_or_create_token(tmp_path, {})
    assert token.decode() not in str(caught.value)


# --- nodes -----------------------------------------------------------------------------------------------


def _node(directory: Path, cluster: str = "default", node: str = "head", pid: int = 0, started: int = 0) -> NodeInfo:
    directory.mkdir(parents=True, exist_ok=True)
    info = NodeInfo(cluster, node, pid or os.getpid(), 8265, "127.0.0.1", "ab12", "1", False, started, dir=directory)
    info.write()
    return info


def test_nodes_are_found_by_their_file(env: dict[str, str]) -> None:
    assert find_nodes(env) == []
    run = Path(env["NODED_RUN_DIR"])
    state = settings.process_state(os.getpid())
    assert state is not None
    one = _node(run / "default" / "head", started=state[1])
    two = _node(run / "other" / "n1", "other", "n1", started=state[1])
    _node(run / "other" / "reused", "other", "reused", started=state[1] - 1)
    for name, text in (("broken", "{"), ("partial", '{"pid": 1}'), ("strange", '{"pid": "1"}')):
        (run / "bad" / name).mkdir(parents=True)
        (run / "bad" / name / "node.json").write_text(text)
    found = find_nodes(env)
    assert found[:2] == [one, two]
    assert [(node.node, node.alive) for node in found[2:]] == [("reused", False)]


def test_nodes_with_long_names_are_found_too(tmp_path: Path) -> None:
    env = {"NODED_RUN_DIR": str(tmp_path / ("r" * 60)), "NODED_HOME": str(tmp_path)}
    config = Config.load({"cluster": "c" * 20}, env)
    assert config.run_base.parent == Path(f"/tmp/noded-{os.getuid()}")
    try:
        _node(settings.make_node_dir(config), config.cluster)
        assert [node.cluster for node in find_nodes(env)] == [config.cluster]
        assert find_nodes({"NODED_RUN_DIR": str(tmp_path / ("s" * 60))}) == []
    finally:
        shutil.rmtree(config.run_base)


def test_a_node_whose_process_has_ended_is_not_alive(env: dict[str, str]) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    _node(Path(env["NODED_RUN_DIR"], "default", "head"), pid=ended.pid)
    assert [node.alive for node in find_nodes(env)] == [False]


def test_a_pid_taken_by_another_program_is_not_the_node(env: dict[str, str]) -> None:
    for number, name in enumerate(("noded", "other")):
        with subprocess.Popen([sys.executable, "-c", "input()", name], stdin=subprocess.PIPE) as child:
            _node(Path(env["NODED_RUN_DIR"], "default", "head"), pid=child.pid)
            (node,) = find_nodes(env)
            assert node.alive is node.runs() is (number == 0)
        assert not node.runs()


def test_state_of_processes() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        state = settings.process_state(child.pid)
        assert state is not None and state[0] in "RSD"
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert settings.process_state(child.pid) is None, "a zombie does not run"


# --- the command line's view -----------------------------------------------------------------------------


def _run(*arguments: str, env: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "noded", *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=30,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--head", "--port", "x"],
            "command line: --port cannot be 'x': give a whole number from 0 to 65535",
        ),
        (
            ["start", "--head", "--memory", "much"],
            "command line: --memory cannot be 'much': give a number of bytes",
        ),
        (["--hed"], "No such option"),
        (["--port", "1", "start"], "--port belongs behind the command: noded start --port"),
        ([], "say which node this is"),
    ],
)
def test_wrong_flags_are_one_line_and_status_2(env: dict[str, str], arguments: list[str], expected: str) -> None:
    status, text = _run(*arguments, env=env)
    assert status == 2 and expected in text and "Traceback" not in text


def test_help_lists_every_option_and_no_hidden_one(env: dict[str, str]) -> None:
    status, text = _run("start", "--help", env=env)
    assert status == 0
    for option in OPTIONS:
        assert (option.flag + " " in text) is not option.hidden


def test_nothing_runs(env: dict[str, str]) -> None:
    assert _run("stop", env=env) == (0, "nothing of cluster default runs here\n")
    assert _run("status", "--json", env=env) == (1, "[]\n")
