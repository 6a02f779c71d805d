"""The one frozen `Config`, filled once.

Every option is declared once, as a field of `Config`: its flag, its NODED_ variable and its TOML key follow
from the field's name, and the command line is made from `OPTIONS`. `Config.load` takes flags before the
environment, that before the file, that before the defaults, and finds out from the machine what has no fixed
default. Hidden options are for our own programs and exist as flags only. The file is that of --config, else
of NODED_CONFIG, else $NODED_HOME/noded.toml where there is one.
"""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec

from noded.config import machine, redis_url, values
from noded.config.errors import ConfigError
from noded.config.nodes import node_in
from noded.config.places import has_room, home, make_dir, run_base

DEFAULT_PORT = 8265
LEAST_STORE = 80 * 10**6
LARGEST_STORE = 64 * 10**9

_A_PATH = "an absolute path, such as /etc/noded/node.pem"
_A_SIZE = "a number of bytes, such as 2GB, 512MiB or 1e9"
# Variables with our prefix that are no options.
_OTHER_VARIABLES = frozenset(
    "NODED_" + name
    for name in (
        "CONFIG DEDUP_LOGS GPUS_WITHOUT_ASKING HOME MARK REDIS_PASSWORD REDIS_SENTINEL_PASSWORD RUN_DIR TOKEN "
        "TOKEN_FILE"
    ).split()
)


class Found(msgspec.Struct, frozen=True):
    """A default that is not fixed, in words."""

    words: str


def _option(parse: values.Parser, form: str, help: str, default: object, *, hidden: bool = False) -> Any:
    told = {"parse": parse, "form": form, "help": help, "default": default, "hidden": hidden}
    return field(default=MISSING if isinstance(default, Found) else default, metadata=told)


def _path(value: Any) -> Path:
    """Absolute, as a daemon does not run where it was started, and may be started again."""
    path = Path(os.path.expanduser(value))
    if not path.is_absolute():
        raise ValueError
    return path


def _paths(value: Any) -> tuple[Path, ...]:
    if isinstance(value, str):
        value = () if value.strip() == "none" else value.split(",")
    return tuple(_path(each.strip()) for each in value)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings."""  # without a text, dataclass() would make one of the signature, which takes long

    head: bool = _option(values.flag, "true or false", "Be the head of the cluster.", False)
    address: str | None = _option(
        values.matching(r"(?:noded://)?[^\s/]+:[0-9]{1,5}"),
        "the head's address as HOST:PORT",
        "Join the cluster whose head listens here (HOST:PORT); --head makes it of no account.",
        Found("none"),
    )
    cluster: str = _option(
        values.matching("[a-z0-9-]{1,40}"), "1 to 40 of a-z, 0-9 and -", "Name of the cluster.", "default"
    )
    node_name: str = _option(
        values.matching("[A-Za-z0-9][A-Za-z0-9_-]{0,39}"),
        "1 to 40 letters, digits, - and _, not - or _ first",
        "Name of this node in the cluster.",
        Found("head on the head, else the first of node-1, node-2, … that does not run here"),
    )
    host: str = _option(values.matching(r"[^\s/]+"), "an address or a host name", "Address to listen on.", "127.0.0.1")
    port: int = _option(
        values.integer(0, 65535),
        "a whole number from 0 to 65535",
        "TCP port to listen on; 0: any free one.",
        Found(f"{DEFAULT_PORT} on the head, else any free one"),
    )
    node_ip_address: str | None = _option(
        values.matching(r"[^\s/]+"),
        "an address",
        "Address by which other nodes reach this one.",
        Found("that of --host, or the one it would use to reach the head"),
    )
    advertise: str | None = _option(
        values.matching(r"[^\s/]+"),
        "an address, or HOST:PORT",
        "Address and port by which other nodes reach this one, where they are not those that it listens on.",
        Found("none"),
    )
    num_cpus: float = _option(
        values.number,
        "a number, zero or more",
        "CPUs that tasks may use.",
        Found("those this process may run on"),
    )
    num_gpus: float | None = _option(
        values.number, "a number, zero or more", "GPUs that tasks may use.", Found("those that NVML finds")
    )
    memory: int = _option(
        values.size, _A_SIZE, "Memory that tasks may ask for.", Found("90 % of what the object store leaves")
    )
    memory_threshold: float = _option(
        values.part,
        "a number above 0, up to 1",
        "Part of the node's memory that may be in use before its newest tasks are ended to make room; 1: never.",
        0.95,
    )
    object_store_memory: int = _option(
        values.store_size,
        f"{_A_SIZE}, and 1MiB at least",
        "Size of the shared-memory object store.",
        Found("30 % of the memory, 80 MB to 64 GB"),
    )
    object_spilling_directory: tuple[Path, ...] = _option(
        _paths,
        "one or more absolute paths with commas between, or none",
        "Where objects go that the object store has no room for; several take turns. none: nowhere.",
        Found("$NODED_HOME/spill"),
    )
    object_spilling_limit: int | None = _option(
        values.size,
        _A_SIZE,
        "Most that lies in one of these directories.",
        Found("all but a twentieth of its file system, or 1 GiB"),
    )
    object_spilling_threads: int = _option(
        values.integer(1, 64), "a whole number from 1 to 64", "Threads that write and read there.", 4
    )
    no_telemetry: bool = _option(
        values.flag, "true or false", "Keep no account of single tasks: nothing lists, counts or times them.", False
    )
    resources: Mapping[str, float] = _option(
        values.resources,
        """a JSON object such as {"disk": 2}, without CPU, GPU and memory: they have options of their own""",
        "More resources, as a JSON object.",
        Found("none"),
    )
    labels: Mapping[str, str] = _option(
        values.labels,
        "labels such as zone=a,kind=big, or a JSON object; noded.io/… and ray.io/node-id are noded's own",
        "Labels of this node, for what wants to run on nodes with certain labels.",
        Found("none"),
    )
    storage: str = _option(
        values.matching("sqlite|memory"),
        "sqlite or memory, or --redis",
        "Where the head keeps its state: sqlite or memory; --redis: there.",
        "sqlite",
    )
    redis: redis_url.RedisUrl | None = _option(  # noqa: RUF009 - it is a field()
        redis_url.parse,
        redis_url.FORM,
        "Keep the head's state in this Redis: redis[s]://[user@]host[:port][/db], or "
        "redis[s]+sentinel://[user@]host:port,…/service[/db]. The password is in NODED_REDIS_PASSWORD, that of "
        "sentinels in NODED_REDIS_SENTINEL_PASSWORD.",
        Found("none"),
    )
    redis_password_file: Path | None = _option(  # noqa: RUF009 - it is a field()
        _path, _A_PATH, "File with Redis's password, in place of NODED_REDIS_PASSWORD.", Found("none")
    )
    redis_ca: Path | None = _option(  # noqa: RUF009 - it is a field()
        _path, _A_PATH, "CA that has signed Redis's certificate.", Found("those of the system")
    )
    redis_cert: Path | None = _option(  # noqa: RUF009 - it is a field()
        _path, _A_PATH, "Certificate to show to Redis.", Found("none")
    )
    redis_key: Path | None = _option(  # noqa: RUF009 - it is a field()
        _path, _A_PATH, "Key of --redis-cert.", Found("none")
    )
    storage_namespace: str | None = _option(
        values.matching("[A-Za-z0-9._-]{1,100}"),
        "1 to 100 letters, digits, ., _ and -",
        "Name of this cluster's state in the storage, which several may share.",
        Found("the cluster's name; in Redis with a dash and 12 digits that follow from the token"),
    )
    daemon_grace: float = _option(
        values.number,
        "a number of seconds, zero or more",
        "Seconds that workers wait for a daemon that went away.",
        60.0,
    )
    head_grace: float = _option(
        values.number,
        "a number of seconds, zero or more",
        "Seconds that a node works on without its head before it ends.",
        600.0,
    )
    allowed_host: tuple[str, ...] = _option(
        values.hosts, "a host name", "Further Host name that HTTP requests may carry.", ()
    )
    sd_file: Path | None = _option(  # noqa: RUF009 - it is a field()
        _path,
        "an absolute path, such as /var/lib/noded/nodes.json",
        "File that this node keeps up to date with the addresses of all nodes, for Prometheus (file_sd_configs).",
        Found("none; /sd tells the same"),
    )
    tls_cert: Path | None = _option(  # noqa: RUF009 - it is a field()
        _path, _A_PATH, "TLS: this node's certificate, a PEM file; it serves as a client's, too.", Found("none: no TLS")
    )
    tls_key: Path | None = _option(  # noqa: RUF009 - it is a field()
        _path, _A_PATH, "TLS: the key of --tls-cert.", Found("none: no TLS")
    )
    tls_ca: Path | None = _option(  # noqa: RUF009 - it is a field()
        _path,
        _A_PATH,
        "TLS: certificate of the cluster's own CA; what it has signed is trusted as a node.",
        Found("none: no TLS"),
    )
    supervise: bool = _option(
        values.flag,
        "true or false",
        "Keep a daemon running: start it again when it ends, pass SIGTERM on, reap what is left behind. For where no "
        "service manager is; the first process of a container does it by itself.",
        False,
    )
    given_spawner: bool = _option(
        values.flag,
        "true or false",
        "The parent of the workers is a service of its own: wait for it instead of starting one. Then SIGTERM ends the "
        "daemon alone.",
        False,
    )
    log_level: str = _option(
        values.matching("debug|info|warning|error"),
        "debug, info, warning or error",
        "Least level that is logged: debug, info, warning or error.",
        "info",
    )
    log_format: str = _option(values.matching("text|json"), "text or json", "Form of the log: text or json.", "text")
    log_worker_max_bytes: int = _option(
        values.log_size,
        "a number of bytes, at least 64 KiB, such as 100MB",
        "Most that a worker's stdout, and its stderr, may take on disk; the newest lines are kept.",
        100_000_000,
    )
    log_node_max_bytes: int = _option(
        values.log_size,
        "a number of bytes, at least 64 KiB, such as 2GB",
        "Most that they may take for all workers of this node together, also ended ones.",
        2_000_000_000,
    )
    log_retention_days: float = _option(
        values.number,
        "a number of days, zero or more",
        "Days for which the output of workers that have ended is kept.",
        7.0,
    )
    supervised: bool = _option(
        values.flag, "true or false", "Started by the process of --supervise.", False, hidden=True
    )
    private: bool = _option(values.flag, "true or false", "Be the cluster of one program.", False, hidden=True)
    owner_pid: int | None = _option(
        values.integer(1, 2**31), "a process id", "End with this process.", None, hidden=True
    )
    run_dir: str | None = _option(values.matching(".+"), "a directory", "In place of NODED_RUN_DIR.", None, hidden=True)
    ready_fd: int | None = _option(
        values.integer(0, 2**20), "a descriptor", "Where to say that it is ready.", None, hidden=True
    )
    # Not options: they follow from the environment and run_dir.
    home: Path
    run_base: Path

    @classmethod
    def load(cls, flags: Mapping[str, object], env: Mapping[str, str]) -> Config:
        """`flags`: by option name, and "config" for the file. None, False and () mean not given."""
        layers = _layers(flags, env)
        chosen = {option.name: _pick(option, layers) for option in OPTIONS if option.name != "address"}
        chosen["address"] = None if chosen["head"] else _pick(_by_name("address"), layers)
        if chosen["address"] is not None:
            chosen["address"] = chosen["address"].removeprefix("noded://")
        _all_or_none(chosen)
        _choose_redis(chosen)
        if chosen["run_dir"] is not None:
            env = {**env, "NODED_RUN_DIR": chosen["run_dir"]}
        if chosen["node_name"] is None:
            chosen["node_name"] = "head" if chosen["head"] else free_node_name(env, chosen["cluster"])
        base = run_base(env, chosen["cluster"], chosen["node_name"])
        if not has_room(base / chosen["cluster"] / chosen["node_name"]):
            raise ConfigError(
                f"cluster {chosen['cluster']!r} and node_name {chosen['node_name']!r} are together too long "
                f"for a socket below {base}: give shorter ones"
            )
        if chosen["object_spilling_directory"] is None:
            chosen["object_spilling_directory"] = (home(env) / "spill",)
        return cls(**_found_out(chosen), home=home(env), run_base=base)

    @property
    def tls(self) -> tuple[Path, Path, Path] | None:
        """Certificate, key and CA."""
        if self.tls_cert is None or self.tls_key is None or self.tls_ca is None:
            return None
        return self.tls_cert, self.tls_key, self.tls_ca


class Option(msgspec.Struct, frozen=True):
    """One field of `Config` as the outside sees it."""

    name: str
    parse: values.Parser
    form: str
    help: str
    default: object
    hidden: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "NODED_" + self.name.upper()


OPTIONS = tuple(Option(name=each.name, **each.metadata) for each in fields(Config) if each.metadata)


def _by_name(name: str) -> Option:
    return next(option for option in OPTIONS if option.name == name)


def free_node_name(env: Mapping[str, str], cluster: str) -> str:
    """The first of node-1, node-2, … whose daemon does not run: one that has ended is started again, with its work."""
    number = 1
    while True:
        name = f"node-{number}"
        node = node_in(run_base(env, cluster, name) / cluster / name)
        if node is None or not node.runs():
            return name
        number += 1


def chosen_cluster(flags: Mapping[str, object], env: Mapping[str, str]) -> str:
    """The cluster that the settings name, for commands that need nothing else of them."""
    return str(_pick(_by_name("cluster"), _layers(flags, env)))


def node_dir(config: Config) -> Path:
    return config.run_base / config.cluster / config.node_name


def make_node_dir(config: Config) -> Path:
    """`node_dir`, made: nobody else can reach into it, nor swap it through a directory above."""
    for path in (config.run_base, config.run_base / config.cluster):
        make_dir(path)
    return make_dir(node_dir(config))


def cluster_dir(config: Config) -> Path:
    """Durable state of the cluster."""
    return config.home / "clusters" / config.cluster


def storage_namespace(config: Config, token: bytes) -> str:
    """The same for every head of this cluster, wherever it runs, and another one for other clusters on a Redis."""
    if config.storage_namespace is not None:
        return config.storage_namespace
    if config.redis is None:
        return config.cluster
    return f"{config.cluster}-{hashlib.blake2b(token).hexdigest()[:12]}"


def log_dir(config: Config) -> Path:
    if config.private:
        return node_dir(config) / "logs"
    return (cluster_dir(config) if config.node_name == "head" else node_home(config)) / "logs"


def start_log(config: Config) -> Path:
    """What `noded start` has a daemon's output go to until it is ready; what comes later is a crash."""
    return log_dir(config) / f"daemon-{config.node_name}.log"


def node_home(config: Config) -> Path:
    """Durable things of one node, apart from those of others of its cluster on this host."""
    return cluster_dir(config) / "nodes" / config.node_name


# Where values may be: the source, the option's name there, the values by option.
_Layer = tuple[str, Callable[[Option], str], Mapping[str, object]]


def _layers(flags: Mapping[str, object], env: Mapping[str, str]) -> list[_Layer]:
    """The strongest first."""
    given = {name: value for name, value in flags.items() if value not in (None, False, ())}
    named = given.pop("config", None) or env.get("NODED_CONFIG")
    _refuse_unknown("command line", given, {option.name for option in OPTIONS})
    return [
        ("command line", lambda option: option.flag, given),
        ("environment", lambda option: option.variable, _from_environment(env)),
        *_from_file(Path(str(named)) if named else None, home(env) / "noded.toml"),
    ]


def _from_environment(env: Mapping[str, str]) -> dict[str, object]:
    """An empty variable counts as not set. Strange names are refused only where they look like a slip."""
    variables = {option.variable: option.name for option in OPTIONS if not option.hidden}
    known = _OTHER_VARIABLES | variables.keys()
    for name in sorted(name for name in env.keys() - known if name.startswith("NODED_")):
        if guess := _similar(name, known, 0.84):
            raise ConfigError(f"environment: {name} is no setting, {guess} is: rename it, or unset it")
    return {option: env[name] for name, option in variables.items() if env.get(name)}


def _from_file(named: Path | None, default: Path) -> Iterator[_Layer]:
    path = named or default
    try:
        text = path.read_text()
    except FileNotFoundError:
        if named is None:
            return
        raise ConfigError(f"file {path}, given with --config or NODED_CONFIG, does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"file {path} cannot be read: {error}") from None
    import tomllib  # only where there is a file

    try:
        found = {name.replace("-", "_"): value for name, value in tomllib.loads(text).items()}
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"file {path} is not TOML: {error}") from None
    _refuse_unknown(f"file {path}", found, {option.name for option in OPTIONS if not option.hidden})
    yield f"file {path}", lambda option: option.name, found


def _refuse_unknown(source: str, given: Mapping[str, object], known: set[str]) -> None:
    for name in sorted(given.keys() - known):
        guess = _similar(name, known, 0.6)
        hint = f"did you mean {guess!r}?" if guess else f"known are {', '.join(sorted(known))}"
        raise ConfigError(f"{source}: unknown key {name!r}; {hint}")


def _similar(name: str, known: set[str] | frozenset[str], likeness: float) -> str | None:
    import difflib  # only for what is wrong already

    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=likeness)), None)


def _pick(option: Option, layers: list[_Layer]) -> Any:
    """The value of the strongest layer that has one; None where it is to be found out."""
    for source, name_of, given in layers:
        if option.name in given:
            value = given[option.name]
            try:
                return option.parse(value)
            except values.REFUSALS:
                raise ConfigError(f"{source}: {name_of(option)} cannot be {value!r}: give {option.form}") from None
    return None if isinstance(option.default, Found) else option.default


def _all_or_none(chosen: Mapping[str, Any]) -> None:
    names = ("tls_cert", "tls_key", "tls_ca")
    missing = [name for name in names if chosen[name] is None]
    if missing and len(missing) < len(names):
        given = " and ".join(name for name in names if name not in missing)
        raise ConfigError(
            f"{given} without {' and '.join(missing)}: TLS needs all of --tls-cert, --tls-key and --tls-ca; "
            "without TLS give none of them"
        )


def _choose_redis(chosen: dict[str, Any]) -> None:
    """--redis implies the storage; a private cluster ends with its program and keeps nothing there."""
    if chosen["redis"] is None or chosen["private"]:
        chosen["redis"] = None
        return
    if (chosen["redis_cert"] is None) != (chosen["redis_key"] is None):
        raise ConfigError("redis_cert and redis_key belong together: give both, or none of them")
    if not chosen["redis"].tls and (chosen["redis_ca"] or chosen["redis_cert"]):
        raise ConfigError("redis_ca, redis_cert and redis_key are for TLS: write rediss:// (or rediss+sentinel://)")
    chosen["storage"] = "redis"


def _found_out(chosen: dict[str, Any]) -> dict[str, Any]:
    """`chosen` with what the machine says in place of None."""
    total = machine.total_memory()
    store = chosen["object_store_memory"]
    if store is None:
        # Where the least would be most of the machine, half of it.
        store = min(max(total * 30 // 100, min(LEAST_STORE, total // 2)), LARGEST_STORE)
    found = {
        "port": DEFAULT_PORT if chosen["head"] and not chosen["private"] else 0,
        "num_cpus": float(machine.cpu_count()),
        "memory": max(0, total - store) * 90 // 100,
        "object_store_memory": store,
        "resources": {},
        "labels": {},
    }
    return chosen | {name: value for name, value in found.items() if chosen[name] is None}
