/**
 * Goal: a client that does what no tool does by itself is served too: many pipelined commands in flight, FUA,
 * trim and zeroes of a part, and requests that must be refused without ending the connection.
 *
 * Method: libnbd's Python binding, with its own checks of requests switched off. The script prints what it
 * found as JSON.
 */
import t from 'tap';
import { requirePython, runPython } from './support/python.ts';
import { serveVolume } from './support/served.ts';

const PIPELINE = `
import json, nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
size, count, unit = h.get_size(), 512, 8192
finished = []
def done(name):
    def callback(error):
        finished.append((name, error.value))
        return 1  # retire the command
    return callback
def drain():
    while h.aio_in_flight() > 0:
        h.poll(-1)
most = 0
for i in range(count):
    flags = nbd.CMD_FLAG_FUA if i % 7 == 0 else 0
    content = nbd.Buffer.from_bytearray(bytearray([i % 251 + 1]) * (unit // 2))
    h.aio_pwrite(content, (i * 37 % count) * unit, done(i), flags)
    most = max(most, h.aio_in_flight())
drain()
h.aio_flush(done('flush'))
drain()
buffers = []
for i in range(count):
    buffer = nbd.Buffer(unit)
    buffers.append((i, buffer))
    h.aio_pread(buffer, (i * 37 % count) * unit, done('read'))
drain()
wrong = [i for i, buffer in buffers
         if buffer.to_bytearray() != bytearray([i % 251 + 1]) * (unit // 2) + bytearray(unit // 2)]
print(json.dumps({'finished': len(finished), 'wrong': wrong,
                  'errors': [f for f in finished if f[1] != 0], 'together': most > 16}))
`;

const PARTS = `
import errno, json, nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
size = h.get_size()
def refusal(call, *words, **named):
    try:
        call(*words, **named)
    except nbd.Error as error:
        return errno.errorcode.get(error.errnum, error.errnum)
    return None
h.pwrite(b'a' * 262144, 0, nbd.CMD_FLAG_FUA)
h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
h.zero(512, 1024)
h.zero(65536, 131072, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
expected = bytearray(b'a' * 262144)
expected[1024:1536] = bytes(512)
expected[8192:12288] = bytes(4096)
expected[131072:196608] = bytes(65536)
refused = {
    'read past the end': refusal(h.pread, 4096, size - 512),
    'read far outside': refusal(h.pread, 512, 2 ** 62),
    'write past the end': refusal(h.pwrite, b'b' * 4096, size - 512),
    'write far outside': refusal(h.pwrite, b'b' * 512, 2 ** 62),
    'trim past the end': refusal(h.trim, 4096, size - 512),
    'zero past the end': refusal(h.zero, 4096, size - 512),
    'read of too much': refusal(h.pread, 33554432 + 512, 0),
    'block status that nobody agreed on': refusal(h.block_status, 4096, 0, lambda *words: 0),
}
after = h.pread(262144, 0)
h.flush()
print(json.dumps({'equal': after == expected, 'refused': refused,
                  'last': h.pread(512, size - 512) == bytes(512)}))
`;

const READ_ONLY = `
import errno, json, nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
def refusal(call, *words):
    try:
        call(*words)
    except nbd.Error as error:
        return errno.errorcode.get(error.errnum, error.errnum)
    return None
print(json.dumps({'readOnly': h.is_read_only(), 'write': refusal(h.pwrite, b'b' * 512, 0),
                  'trim': refusal(h.trim, 512, 0), 'zero': refusal(h.zero, 512, 0),
                  'flush': refusal(h.flush), 'content': h.pread(512, 0) == bytes(512)}))
`;

t.test('hundreds of commands in flight', async (t) => {
  if (!(await requirePython(t))) return;
  const { uri } = await serveVolume(t, { size: '16M' });
  t.same(await runPython(PIPELINE, uri), { finished: 512 + 1 + 512, together: true, wrong: [], errors: [] });
});

t.test('FUA, parts, and refusals that leave the connection in use', async (t) => {
  if (!(await requirePython(t))) return;
  const { uri } = await serveVolume(t, { size: '64M' });
  t.same(await runPython(PARTS, uri), {
    equal: true,
    last: true,
    refused: {
      'read past the end': 'EINVAL',
      'read far outside': 'EINVAL',
      'write past the end': 'ENOSPC',
      'write far outside': 'ENOSPC',
      'trim past the end': 'EINVAL',
      'zero past the end': 'ENOSPC',
      'read of too much': 'EOVERFLOW',
      'block status that nobody agreed on': 'EINVAL',
    },
  });
});

t.test('a read-only export refuses every change', async (t) => {
  if (!(await requirePython(t))) return;
  const { uri } = await serveVolume(t, { size: '1M', serve: ['--read-only'] });
  t.same(await runPython(READ_ONLY, uri), {
    readOnly: true,
    write: 'EPERM',
    trim: 'EPERM',
    zero: 'EPERM',
    flush: null,
    content: true,
  });
});
