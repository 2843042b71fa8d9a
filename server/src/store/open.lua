-- Takes a session in, or goes on with it, in one step.
local session, open, ended = KEYS[1], KEYS[2], KEYS[3]
local name, now, number, fingerprint = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local expires, until_, manifest, attested = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local key_len, max_sessions, max_bytes, max_tombstones = ARGV[9], ARGV[10], ARGV[11], ARGV[12]

local function larger(a, b)
    if tonumber(a) > tonumber(b) then return a else return b end
end

-- Lets a key live until a moment at least.
local function keep(key, moment)
    local ttl = tonumber(moment) - tonumber(now)
    if redis.call('PTTL', key) < ttl then
        redis.call('PEXPIRE', key, string.format('%.0f', ttl))
    end
end

local old = redis.call('HMGET', session, 'fingerprint', 'number', 'expires', 'until', 'len')
local is_open = old[1] and tonumber(old[3]) > tonumber(now)
if is_open then
    -- Both have 20 digits.
    if number <= old[2] then
        return {'replayed', old[2]}
    end
else
    local last = redis.call('ZSCORE', ended, name)
    if last and tonumber(last) > tonumber(now) then return {'ended', ''} end
end

local is_same = is_open and old[1] == fingerprint
if is_same then
    if tonumber(old[3]) < tonumber(expires) then expires = old[3] end
    until_ = larger(until_, old[4])
else
    local all, sessions, bytes = 0, 0, 0
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', open, '(' .. now, '+inf')) do
        all = all + 1
        local other, len = string.match(member, '^(.*):(%d+)$')
        if other ~= name then
            sessions = sessions + 1
            bytes = bytes + tonumber(len)
        end
    end
    local tombstones = redis.call('ZCOUNT', ended, '(' .. now, '+inf') - all
    if tombstones >= tonumber(max_tombstones) then return {'tombstones', ''} end
    if sessions >= tonumber(max_sessions) then return {'sessions', ''} end
    if bytes + tonumber(key_len) > tonumber(max_bytes) then return {'bytes', ''} end
    -- Whoever removes something first may write although memory is full.
    if old[1] then redis.call('DEL', session) end
    if old[5] then redis.call('ZREM', open, name .. ':' .. old[5]) end
end

redis.call('HSET', session, 'fingerprint', fingerprint, 'number', number, 'expires', expires,
    'until', until_, 'len', key_len, 'manifest', manifest)
if attested ~= '' then redis.call('HSET', session, 'attested', attested) end
redis.call('PEXPIRE', session, string.format('%.0f', tonumber(expires) - tonumber(now)))
redis.call('ZADD', open, expires, name .. ':' .. key_len)
redis.call('ZADD', ended, larger(until_, expires), name)
keep(open, expires)
keep(ended, larger(until_, expires))
return {is_same and 'continued' or 'new', ''}
