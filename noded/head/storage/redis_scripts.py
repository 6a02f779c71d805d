"""The Redis storage's keys, and the scripts that are its fence: each is one step of the server.

    noded:{NAMESPACE}:meta          hash: version, epoch, owner, seq, and table:NAME of each table there is
    noded:{NAMESPACE}:t:TABLE       hash: key -> value
    noded:{NAMESPACE}:lease         who is the head, for as long as it lives
    noded:{NAMESPACE}:new:OWNER:…   tables that are being written anew

All have one hash tag, so a Redis Cluster keeps them in one slot. Each script answers with a code and a number.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

VERSION = 1
LEASE_MS = 15_000

DONE = 0
SUPERSEDED = 1
"""With the epoch that is stored: it is newer, or the same of another owner."""
BEHIND = 2
"""With the sequence number that is stored: the server was emptied or restored, or is a replica that lagged."""


@dataclass(frozen=True)
class Keys:
    namespace: str

    def __post_init__(self) -> None:
        if not self.namespace or {"{", "}"} & {*self.namespace}:
            raise ValueError(f"a storage namespace must not be empty or have braces: {self.namespace!r}")

    @property
    def prefix(self) -> str:
        return f"noded:{{{self.namespace}}}:"

    @property
    def meta(self) -> str:
        return self.prefix + "meta"

    @property
    def lease(self) -> str:
        return self.prefix + "lease"

    def table(self, name: str) -> str:
        return f"{self.prefix}t:{name}"

    def draft(self, owner: str, name: str) -> str:
        return f"{self.prefix}new:{owner}:{name}"

    @property
    def pattern(self) -> str:
        """For MATCH: these keys and no others."""
        return "".join(f"\\{c}" if c in "*?[]\\^-" else c for c in self.prefix) + "*"


@dataclass(frozen=True)
class Script:
    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest())


_FENCE = """
local stored = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'seq')
local epoch, seq = tonumber(stored[1] or '0'), tonumber(stored[3] or '0')
local mine = tonumber(ARGV[1])
if epoch > mine or (epoch == mine and stored[2] ~= ARGV[2]) then return {1, epoch} end
"""

READ = Script("""
local answer = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local parts = {}
for _, text in ipairs(answer[2]) do
    parts[#parts + 1] = struct.pack('<I4', #text)
    parts[#parts + 1] = text
end
return {answer[1], table.concat(parts)}
""")
"""KEYS: a table. ARGV: cursor, count. The next cursor, and keys and values by turns, each behind its length: the client
reads a hundred thousand of them in a fraction of the time that as many replies take it.
"""

TAKE = Script("""
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'owner', ARGV[2], 'seq', 0)
return {0, epoch}
""")
"""ARGV: version, owner. The number is the epoch."""

WRITE = Script(
    _FENCE
    + """
local first, count = tonumber(ARGV[3]), tonumber(ARGV[4])
if epoch < mine or seq < first - 1 then return {2, seq} end
local at = 5
for table = 2, #KEYS do
    redis.call('HSET', KEYS[1], 'table:' .. ARGV[at], 1)
    at = at + 1
end
for number = first, first + count - 1 do
    local operations = tonumber(ARGV[at])
    at = at + 1
    for _ = 1, operations do
        local put = ARGV[at + 2] == '1'
        if number > seq then
            if put then
                redis.call('HSET', KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 3])
            else
                redis.call('HDEL', KEYS[tonumber(ARGV[at])], ARGV[at + 1])
            end
        end
        at = at + (put and 4 or 3)
    end
end
local last = math.max(seq, first + count - 1)
redis.call('HSET', KEYS[1], 'seq', string.format('%.0f', last))
return {0, last}
"""
)
"""KEYS: meta, tables. ARGV: epoch, owner, number of the first batch, batches, names of the tables; of each batch how
many operations; of each operation its table's place in KEYS, key, and '1' and the value, or '0'. Batches that are there
already are skipped.
"""

LEASE = Script(
    _FENCE
    + """
if epoch < mine or seq < tonumber(ARGV[3]) then return {2, seq} end
redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
return {0, seq}
"""
)
"""KEYS: meta, lease. ARGV: epoch, owner, number of the last batch that is known to be there, value, milliseconds."""

RELEASE = Script(
    _FENCE
    + """
if epoch == mine then redis.call('DEL', KEYS[2]) end
return {0, seq}
"""
)
"""KEYS: meta, lease. ARGV: epoch, owner."""

REPLACE = Script(
    _FENCE
    + """
local tables = (#KEYS - 1) / 2
for i = 1, tables do
    if redis.call('HLEN', KEYS[1 + i]) ~= tonumber(ARGV[5 + 2 * i]) then return {2, seq} end
end
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(name, 1, 6) == 'table:' then redis.call('DEL', ARGV[4] .. string.sub(name, 7)) end
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'version', ARGV[5], 'epoch', ARGV[1], 'owner', ARGV[2], 'seq', ARGV[3])
for i = 1, tables do
    local draft, final = KEYS[1 + i], KEYS[1 + tables + i]
    redis.call('HSET', KEYS[1], 'table:' .. ARGV[4 + 2 * i], 1)
    redis.call('DEL', final)
    if redis.call('EXISTS', draft) == 1 then
        redis.call('RENAME', draft, final)
        redis.call('PERSIST', final)
    end
end
return {0, tonumber(ARGV[3])}
"""
)
"""KEYS: meta, drafts, tables. ARGV: epoch, owner, number of the last batch, prefix of tables, version, of each table
its name and how many records its draft has. What the server had before is replaced, all or nothing.
"""
